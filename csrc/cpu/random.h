// Random numbers of dropout and zoneout, several counters of philox.h at a time.
// Included by kernels.cpp inside the namespace of one instruction set.

template <class T>
void draw(const Draw<T>& d) {
  constexpr int QUADS = 16;  // at a time: loops over them become vectors
  const bool none = d.threshold > 0xffffffffu;
  const uint32_t least = uint32_t(d.threshold);
  for (int64_t first = 0; first < d.n; first += 4 * QUADS) {
    uint32_t c0[QUADS], c1[QUADS], c2[QUADS], c3[QUADS], key0 = d.key[0], key1 = d.key[1];
    for (int q = 0; q < QUADS; ++q) {
      c0[q] = d.counter[0] + uint32_t(first / 4) + uint32_t(q);
      c1[q] = d.counter[1], c2[q] = d.counter[2], c3[q] = d.counter[3];
    }
    for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u)
      for (int q = 0; q < QUADS; ++q) {
        const uint64_t p0 = uint64_t(0xD2511F53u) * c0[q], p1 = uint64_t(0xCD9E8D57u) * c2[q];
        c0[q] = uint32_t(p1 >> 32) ^ c1[q] ^ key0, c1[q] = uint32_t(p1);
        c2[q] = uint32_t(p0 >> 32) ^ c3[q] ^ key1, c3[q] = uint32_t(p0);
      }
    T words[4 * QUADS];
    for (int q = 0; q < QUADS; ++q) {
      words[4 * q] = c0[q] >= least ? d.kept : d.dropped;
      words[4 * q + 1] = c1[q] >= least ? d.kept : d.dropped;
      words[4 * q + 2] = c2[q] >= least ? d.kept : d.dropped;
      words[4 * q + 3] = c3[q] >= least ? d.kept : d.dropped;
    }
    const int64_t left = d.n - first < 4 * QUADS ? d.n - first : 4 * QUADS;
    for (int64_t i = 0; i < left; ++i) d.to[first + i] = none ? d.dropped : words[i];
  }
}
