#include "workspace.h"

#include <cstdlib>
#include <mutex>
#include <vector>

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
  void* user() { return reinterpret_cast<char*>(this) + kPage; }
  static Block* of(void* user) { return reinterpret_cast<Block*>(static_cast<char*>(user) - kPage); }
};

// Locks are only tried: a child of fork may inherit one that nobody will ever release.
std::mutex g_lock;
std::vector<Block*>& kept() {
  static auto* blocks = new std::vector<Block*>;  // never destroyed: buffers may be freed after static destructors
  return *blocks;
}
int64_t g_kept_bytes = 0;

Block* take_kept(int64_t bytes) {
  std::unique_lock<std::mutex> lock(g_lock, std::try_to_lock);
  if (!lock) return nullptr;
  auto& blocks = kept();
  auto best = blocks.end();
  for (auto it = blocks.begin(); it != blocks.end(); ++it)
    if ((*it)->bytes >= bytes && (*it)->bytes <= 2 * bytes && (best == blocks.end() || (*it)->bytes < (*best)->bytes))
      best = it;
  if (best == blocks.end()) return nullptr;
  Block* block = *best;
  g_kept_bytes -= block->bytes;
  blocks.erase(best);
  return block;
}

// The oldest go first.
void make_room(int64_t bytes) {
  auto& blocks = kept();
  auto end = blocks.begin();
  for (; g_kept_bytes + bytes > kMostKept && end != blocks.end(); ++end) {
    g_kept_bytes -= (*end)->bytes;
    std::free(*end);
  }
  blocks.erase(blocks.begin(), end);
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
        kept().push_back(block);
        g_kept_bytes += block->bytes;
        return;
      } catch (const std::bad_alloc&) {  // then it is freed
      }
  }
  std::free(block);
}

}  // namespace fastlstm
