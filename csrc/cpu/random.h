// Random numbers of dropout and zoneout, several counters of philox.h at a time.
// Included by kernels.cpp inside the namespace of one instruction set.

template <class T>
void draw(const Draw<T>& d) {
  constexpr int COUNTERS = 16;  // at a time, of one row after the other: loops over them become vectors
  const bool none = d.threshold > 0xffffffffu;
  const uint32_t least = uint32_t(d.threshold);
  const int64_t quads = (d.n + 3) / 4, all = d.rows * quads;
  int64_t row = 0, quad = 0;
  for (int64_t first = 0; first < all; first += COUNTERS) {
    const int count = all - first < COUNTERS ? int(all - first) : COUNTERS;
    uint32_t c0[COUNTERS] = {}, c1[COUNTERS], c2[COUNTERS] = {}, c3[COUNTERS], key0 = d.key[0], key1 = d.key[1];
    T* to[COUNTERS];
    int wanted[COUNTERS];
    for (int i = 0; i < count; ++i) {
      c0[i] = d.counter[0] + uint32_t(quad);
      c2[i] = uint32_t(d.row_words[row]);
      to[i] = d.to + row * d.stride + 4 * quad;
      wanted[i] = d.n - 4 * quad < 4 ? int(d.n - 4 * quad) : 4;
      if (++quad == quads) quad = 0, ++row;
    }
    for (int i = 0; i < COUNTERS; ++i) c1[i] = d.counter[1], c3[i] = d.call;
    for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u)
      for (int i = 0; i < COUNTERS; ++i) {
        const uint64_t p0 = uint64_t(0xD2511F53u) * c0[i], p1 = uint64_t(0xCD9E8D57u) * c2[i];
        c0[i] = uint32_t(p1 >> 32) ^ c1[i] ^ key0, c1[i] = uint32_t(p1);
        c2[i] = uint32_t(p0 >> 32) ^ c3[i] ^ key1, c3[i] = uint32_t(p0);
      }
    T words[4 * COUNTERS];
    for (int i = 0; i < COUNTERS; ++i) {
      words[4 * i] = !none && c0[i] >= least ? d.kept : d.dropped;
      words[4 * i + 1] = !none && c1[i] >= least ? d.kept : d.dropped;
      words[4 * i + 2] = !none && c2[i] >= least ? d.kept : d.dropped;
      words[4 * i + 3] = !none && c3[i] >= least ? d.kept : d.dropped;
    }
    for (int i = 0; i < count; ++i)
      if (wanted[i] == 4)
        __builtin_memcpy(to[i], words + 4 * i, 4 * sizeof(T));
      else
        for (int j = 0; j < wanted[i]; ++j) to[i][j] = words[4 * i + j];
  }
}
