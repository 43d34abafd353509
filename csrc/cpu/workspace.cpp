#include "workspace.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

namespace fastlstm {
namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kMostKept = int64_t(1) << 30;  // MADV_FREE on what is kept was tried: it costs as much as new pages
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kKeep = false;  // a kept block would hide its use after being freed
#else
constexpr bool kKeep = true;
#endif

// The page before what the caller gets says how large the block is.
struct Block {
  int64_t bytes;
  int64_t freed;  // a number that grows with each block that is kept
  void* user() { return reinterpret_cast<char*>(this) + kPage; }
  static Block* of(void* user) { return reinterpret_cast<Block*>(static_cast<char*>(user) - kPage); }
};

// Locks are only tried: a child of fork may inherit one that nobody will ever release.
std::mutex g_lock;
// Programs that call step by step keep thousands of blocks, so none of these looks at each.
struct Kept {
  std::map<std::pair<int64_t, int64_t>, Block*> by_size;  // of one size, the last freed comes first: it is the warmest
  std::map<int64_t, Block*> by_age;
  int64_t bytes = 0, frees = 0;

  void add(Block* block) {
    block->freed = ++frees;
    const auto aged = by_age.emplace(block->freed, block).first;
    try {
      by_size.emplace(std::pair(block->bytes, -block->freed), block);
    } catch (...) {
      by_age.erase(aged);
      throw;
    }
    bytes += block->bytes;
  }
  void remove(Block* block) {
    by_age.erase(block->freed);
    by_size.erase({block->bytes, -block->freed});
    bytes -= block->bytes;
  }
};
Kept& kept() {
  static auto* blocks = new Kept;  // never destroyed: buffers may be freed after static destructors
  return *blocks;
}

Block* take_kept(int64_t bytes) {
  std::unique_lock<std::mutex> lock(g_lock, std::try_to_lock);
  if (!lock) return nullptr;
  const auto best = kept().by_size.lower_bound({bytes, INT64_MIN});
  if (best == kept().by_size.end() || best->first.first > 2 * bytes) return nullptr;
  Block* block = best->second;
  kept().remove(block);
  return block;
}

// The oldest go first.
void make_room(int64_t bytes) {
  while (kept().bytes + bytes > kMostKept && !kept().by_age.empty()) {
    Block* block = kept().by_age.begin()->second;
    kept().remove(block);
    std::free(block);
  }
}

}  // namespace

void release_pages() noexcept {
  std::unique_lock<std::mutex> lock(g_lock, std::try_to_lock);
  if (lock) make_room(kMostKept);
}

void* allocate_pages(int64_t size) {
  const int64_t bytes = round_up(size, kPage) + 2 * kPage;  // one for the head, one because tiles may read past the end
  if (Block* block = take_kept(bytes)) return block->user();
  auto* block = static_cast<Block*>(std::aligned_alloc(kPage, std::size_t(bytes)));
  if (!block) {
    release_pages();
    block = static_cast<Block*>(std::aligned_alloc(kPage, std::size_t(bytes)));
  }
  if (!block) throw OutOfMemory(bytes);
  block->bytes = bytes;
  return block->user();
}

void free_pages(void* pages) noexcept {
  if (!pages) return;
  Block* block = Block::of(pages);
  if (kKeep && block->bytes <= kMostKept) {
    std::unique_lock<std::mutex> lock(g_lock, std::try_to_lock);
    if (lock) try {
        make_room(block->bytes);
        kept().add(block);
        return;
      } catch (const std::bad_alloc&) {  // then it is freed
      }
  }
  std::free(block);
}

}  // namespace fastlstm
