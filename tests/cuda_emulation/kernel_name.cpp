// The name of a kernel, of which a launch knows the address only: looked up in the symbols of its file when it is
// asked for.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

#include "emulation.h"

namespace emulation {
namespace {

std::string demangled(const char* name) {
  int status = 0;
  char* const text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  const std::string result = text ? text : name;
  free(text);
  return result;
}

template <class T>
T read(const std::vector<char>& file, size_t offset) {
  T value{};
  if (offset + sizeof value <= file.size()) memcpy(&value, file.data() + offset, sizeof value);
  return value;
}

// The symbol at an address of a file that is loaded at `base`; "" if there is none, as in a stripped file.
std::string symbol_at(const std::vector<char>& file, uintptr_t address, uintptr_t base) {
  const auto header = read<Elf64_Ehdr>(file, 0);
  if (header.e_type == ET_DYN) address -= base;
  for (unsigned i = 0; i < header.e_shnum; ++i) {
    const auto table = read<Elf64_Shdr>(file, header.e_shoff + i * sizeof(Elf64_Shdr));
    if (table.sh_type != SHT_SYMTAB) continue;
    const auto names = read<Elf64_Shdr>(file, header.e_shoff + table.sh_link * sizeof(Elf64_Shdr));
    for (size_t at = 0; at < table.sh_size; at += sizeof(Elf64_Sym)) {
      const auto symbol = read<Elf64_Sym>(file, table.sh_offset + at);
      if (symbol.st_value == address && ELF64_ST_TYPE(symbol.st_info) == STT_FUNC)
        return file.data() + names.sh_offset + symbol.st_name;
    }
  }
  return "";
}

}  // namespace

std::string kernel_name(const Launch& launch) {
  Dl_info info;
  if (dladdr(launch.kernel, &info) && info.dli_fname) {
    std::ifstream stream(info.dli_fname, std::ios::binary);
    const std::vector<char> file{std::istreambuf_iterator<char>(stream), {}};
    const std::string symbol =
        symbol_at(file, reinterpret_cast<uintptr_t>(launch.kernel), reinterpret_cast<uintptr_t>(info.dli_fbase));
    if (!symbol.empty()) return demangled(symbol.c_str());
  }
  return "a kernel of type " + demangled(launch.signature);
}

}  // namespace emulation
