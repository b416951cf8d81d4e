// Operations by themselves, for tests and benchmarks, and the machine's ceilings that they are measured against.
#include <stdlib.h>
#include <string.h>

#include "step.h"

const Ops* find_ops(const char* name);

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Linear : Job {
  Phase two[2];
  const Weight* weight;
  const float* from;
  float* to;
  Act act;
  int64_t ld;
};

void walk_linear(Job* job, uint32_t number, int thread) {
  Linear* l = (Linear*)job;
  const Act& a = l->act;
  const int panels = (l->weight->rows + PANEL - 1) / PANEL, tiles = (a.rows + a.height - 1) / a.height, each = panels < 64 ? 1 : 4;
  auto nothing = [] {};
  const auto fill = [&](int tile) {
    for (int r = tile * a.height; r < a.rows && r < (tile + 1) * a.height; r++)
      l->ops->give(&a, r, l->from + (int64_t)r * a.cols);
  };
  const auto multiply = [&](int c) {
    const int first = c * each, n = panels - first < each ? panels - first : each;
    l->ops->gemm(l->weight, first, n, &a, 0, tiles, l->to + first * PANEL, l->ld);
  };
  if (walk_phase(&l->two[0], number, thread, tiles, fill, nothing)) walk_phase(&l->two[1], number, thread, (panels + each - 1) / each, multiply, nothing);
}

}  // namespace

// from [rows][cols] times each of `n` weights of one shape in turn: to [rows][a weight's rows, filled up to a multiple of 16] is
// the last product. `precision`: of the activations, unless the weight is in bfloat16. 0, or -1: no memory or no such set.
EXPORT int bl_linear(Pool* pool, const char* isa, const Weight* weight, int n, const float* from, int rows, int precision, float* to) {
  const Ops* ops = find_ops(isa);
  void* memory = nullptr;
  if (!ops || rows < 1 || posix_memalign(&memory, 64, sizeof(Linear))) return -1;
  Linear* l = (Linear*)memset(memory, 0, sizeof(Linear));
  const int64_t padded = rows + MAX_TILE, cols = weight->cols;
  l->walk = walk_linear, l->phases = l->two, l->n_phases = 2, l->ops = ops;
  l->weight = weight, l->from = from, l->to = to, l->ld = (weight->rows + PANEL - 1) / PANEL * PANEL;
  const int64_t beside = padded * cols / GROUP, values_bytes = padded * act_bytes((int)cols);
  const int64_t nbytes = values_bytes + 16 * beside;
  void* values = nullptr;
  const bool made = !posix_memalign(&values, 64, (size_t)nbytes);
  if (made) memset(values, 0, (size_t)nbytes);
  int32_t* after = (int32_t*)((char*)values + values_bytes);
  l->act = {values, (float*)after, after + beside, after + 2 * beside, (float*)after + 3 * beside,
            nullptr, rows, weight->cols, tile_height(ops, rows), precision_of(*weight, !ops->has_tiles && precision == BYTES ? COARSE : (Precision)precision)};
  for (int i = 0; made && i < n; i++) {
    l->weight = weight + i;
    pool_run(pool, l);
  }
  pool_forget(pool, l);
  free(values);
  free(l);
  return made ? 0 : -1;
}

namespace {

struct Sweep : Job {
  Phase one;
  const char* bytes;
  int64_t n;
  int64_t found;
};

constexpr int64_t STRIDE = 1 << 18;

typedef long long Line __attribute__((vector_size(64)));

void walk_sweep(Job* job, uint32_t number, int thread) {
  Sweep* s = (Sweep*)job;
  const auto read = [&](int c) {
    const char* at = s->bytes + c * STRIDE;
    Line sums[8] = {};
    for (int64_t i = 0; i < STRIDE; i += 512)
      for (int j = 0; j < 8; j++) sums[j] += *(const Line*)(at + i + 64 * j);
    for (int j = 1; j < 8; j++) sums[0] += sums[j];
    __atomic_add_fetch(&s->found, (int64_t)sums[0][0], __ATOMIC_RELAXED);
  };
  walk_phase(&s->one, number, thread, (int)(s->n / STRIDE), read, [] {});
}

}  // namespace

// Reads `n` bytes (whole multiples of 256 KiB, 64-byte aligned) on all threads; the caller takes the time.
EXPORT int64_t bl_read_bytes(Pool* pool, const void* bytes, int64_t n) {
  Sweep s;
  memset((void*)&s, 0, sizeof s);
  s.walk = walk_sweep, s.phases = &s.one, s.n_phases = 1, s.ops = find_ops(""), s.bytes = (const char*)bytes, s.n = n;
  pool_run(pool, &s);
  pool_forget(pool, &s);
  return s.found;
}

namespace {

struct Peak : Job {
  Phase one;
  int64_t rounds;
  int chunks;
};

void walk_peak(Job* job, uint32_t number, int thread) {
  Peak* p = (Peak*)job;
  walk_phase(&p->one, number, thread, p->chunks, [&](int) { p->ops->products(p->rounds); }, [] {});
}

}  // namespace

// Multiply-adds (Ops::products) with nothing to load: returns how many operations (a product and a sum are two) all threads did.
EXPORT int64_t bl_products(Pool* pool, const char* isa, int64_t rounds) {
  const Ops* ops = find_ops(isa);
  if (!ops) return -1;
  Peak p;
  memset((void*)&p, 0, sizeof p);
  p.walk = walk_peak, p.phases = &p.one, p.n_phases = 1, p.ops = ops, p.rounds = rounds, p.chunks = pool_threads(pool) * 16;
  pool_run(pool, &p);
  pool_forget(pool, &p);
  return (int64_t)p.chunks * rounds * ops->round_operations;
}
