// Aligned memory that says how much it asked for when it cannot be had, and sizes that cannot overflow silently.
#pragma once
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

namespace fastlstm {

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The product of sizes; throws std::length_error where it does not fit.
template <class... N>
int64_t size_product(N... n) {
  int64_t size = 1;
  const bool overflow = (__builtin_mul_overflow(size, int64_t(n), &size) || ...);
  if (overflow || size > (int64_t(1) << 60)) throw std::length_error("the product of the sizes overflows");
  return size;
}

// Why not bad_alloc: its message cannot name a size. The bindings turn this into MemoryError.
struct OutOfMemory : std::runtime_error {
  explicit OutOfMemory(int64_t bytes)
      : std::runtime_error("cannot allocate " + std::to_string(bytes) + " bytes (" + std::to_string(bytes >> 20) +
                           " MiB)") {}
};

// Page-aligned memory. What is freed is kept for the next call, up to 1 GiB in all: fresh pages cost a fault each, which is most of
// the time of a small training step, and a quarter of a large one's of few units. Throws OutOfMemory.
void* allocate_pages(int64_t bytes);
void free_pages(void* pages) noexcept;
void release_pages() noexcept;  // gives back what is kept

// The caller's memory, of which buffers take a part each, one after the other; of none, how much they would take is counted.
class Lent {
 public:
  static constexpr int64_t kAlignment = 64;  // the widest vector

  Lent() = default;
  explicit Lent(void* memory) : next_(static_cast<char*>(memory)) {}
  void* take(int64_t bytes) {
    const int64_t whole = round_up(bytes, kPage);
    used_ += whole;
    return next_ ? std::exchange(next_, next_ + whole) : nullptr;
  }
  int64_t used() const { return used_ + kPage; }  // tiles may read past the end

 private:
  static constexpr int64_t kPage = 4096;
  char* next_ = nullptr;
  int64_t used_ = 0;
};

// An uninitialised array on a page of its own, so that threads' parts never share lines that a prefetcher would steal.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  // lent: where it lies instead of in memory of its own; null: nowhere.
  explicit Buffer(int64_t size, Lent* lent = nullptr)
      : data_(at(size_product(size, sizeof(T)), lent), Free{!lent}), size_(size) {}

  T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  int64_t bytes() const { return size_ * int64_t(sizeof(T)); }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  static T* at(int64_t bytes, Lent* lent) { return static_cast<T*>(lent ? lent->take(bytes) : allocate_pages(bytes)); }
  struct Free {
    bool own = true;
    void operator()(T* p) const {
      if (own) free_pages(p);
    }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

}  // namespace fastlstm
