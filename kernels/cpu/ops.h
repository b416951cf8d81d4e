// What step.cpp asks of an instruction set: a table of operations, and the data that they work on.
#pragma once

#include <stdint.h>

// How a linear weight lies in memory. Outputs stand in panels of 16, inputs in groups of 32:
//   codes   [panel][group][..], 4 or 8 bits: 64 bytes hold 4 inputs of each of the 16 outputs. With 4 bits, byte j of the
//           group's i-th 64 bytes holds inputs of step i in its low half, and of step i + 4 in its high one.
//   scales  [panel][group][16 or 32] float16: d of each output, then (formats with a minimum) m of each.
// A weight is d * (code - bias) + m: bias 8 or 128 in the formats without m, where m = 0, and 0 in those with it.
// BF16: codes [panel][group][16][16][2] bfloat16, pairs of inputs; no scales.
//
// Instruction sets with tiles have the codes of each panel and group in another order: [16 outputs][32 inputs], with 8 bits; with
// 16, so that input i is followed by i + 16; with 4, as with 16, but each 16 bits hold a code of each of four outputs.
enum Format : int32_t { Q4_MIN = 0, Q4_BIAS = 1, Q8_MIN = 2, Q8_BIAS = 3, BF16 = 4 };

constexpr int GROUP = 32;   // inputs that share a scale, in weights and activations
constexpr int PANEL = 16;   // outputs
constexpr int MAX_TILE = 16;  // rows of activations that any kernel takes at once
constexpr int KEYS = 64;    // of attention's inner loop, at absolute positions

struct Weight {
  const uint8_t* codes;
  const uint16_t* scales;
  int32_t format, rows, cols, padding;
};

// Activations on their way into a linear: M rows in tiles of `height` (the last may be lower), in groups of 32 inputs.
//   COARSE  [group][row][32] int8; an integer a stands for scale * (a - zero)
//   FINE    [group][2][row][32] int8: the high, then the low bytes of 16-bit integers; a stands for scale * a
//   WIDE    [group][row][32] bfloat16, nothing else; for tiles [group][16][height][2], inputs i and i + 16 side by side
// Scale and zero are those of 32 inputs of one row. Beside them lie minus the sum of the 32 (a - zero), and scale times that sum.
enum Precision : int32_t { COARSE = 0, FINE = 1, WIDE = 2 };

struct Act {
  void* values;
  float* scale;
  int32_t* minus_zero;
  int32_t* negative;
  float* total;
  int32_t rows, cols, height;
  Precision precision;
};

struct NormArgs {
  float* x;             // [hidden], the residual stream
  const float* branch;  // [hidden] to be added first, or null
  const float* post;    // norm of the branch before it is added, or null
  const float* weight;
  float eps;
  int32_t hidden;
};

struct HeadArgs {  // one head of q, k or v for one tile of tokens
  const float* bias;  // [D] or null
  const float* norm;  // [D] or null
  float eps;
  const float* cos;  // [positions][D / 2] or null (v)
  const float* sin;
  int32_t dim;
  const int32_t* positions;  // of the tile's tokens
};

struct AttendArgs {
  const uint16_t* q;    // [T][H][D] bfloat16
  const uint8_t* pool;  // this layer's and head's place in page 0
  int64_t page_bytes, value_bytes;  // from page to page; from a page's keys to its values
  const int32_t* pages;
  int32_t page_size, dim, n_heads, group, head0;  // `group` query heads from head0 share this key head
  int32_t token0, n_tokens, position0;            // neighbouring tokens of one sequence
  int32_t window;
  float scale, softcap;
};

struct Best {  // of one row, over some outputs
  float value;
  int32_t index, broken;
};

struct Ops {
  const char* name;
  int32_t max_tile;
  int32_t span_rows;   // multiplied before what comes next is done to them, while they are in the cache
  int32_t has_tiles;   // weights lie as these want them, and all activations are WIDE
  // Once in each thread before it uses the others.
  void (*enter)();
  void (*leave)();
  // out[r * ld + 0 .. 16 * n] = `n` panels of w, from `panel`, times the rows of tiles first .. last
  void (*gemm)(const Weight* w, int panel, int n, const Act* a, int first, int last, float* out, int64_t ld);
  // `n` groups from `group` of row `row`, from floats
  void (*quantise)(const Act* a, int row, int group, int n, const float* from);
  void (*norm)(const NormArgs* n, const Act* out, int row);
  void (*embed)(const Weight* table, int token, float scale, float* out);
  // In place on [rows][ld]: bias, norm over D, rotation.
  void (*head)(const HeadArgs* h, float* x, int rows, int64_t ld);
  void (*to_bf16)(const float* from, uint16_t* to, int n);
  // gate [rows][2][..] and up, 32 wide each: gate = activation(gate) * up. kind 0 silu, 1 gelu (tanh)
  void (*glu)(float* gate, const float* up, int rows, int64_t ld, int kind);
  void (*attend)(const AttendArgs* a, const Act* out, float* scratch);
  // The largest of `n` (at most 16) outputs that begin at `index`, after the soft-cap, which is applied in place.
  void (*best)(float* logits, int n, int index, float softcap, Best* best);
  // The machine's ceiling: products of registers, integers or (with tiles) bfloat16, `round_operations` in a round.
  int64_t (*products)(int64_t rounds);
  int64_t round_operations;
};

// Rows shared out evenly among as few tiles as can hold them; or, as tiles are loaded best, a power of two.
inline int tile_height(const Ops* ops, int rows) {
  int height = 1;
  if (!ops->has_tiles) return rows ? (rows + (rows - 1) / ops->max_tile) / ((rows - 1) / ops->max_tile + 1) : 1;
  while (height < rows && height < ops->max_tile) height *= 2;
  return height;
}

inline Precision precision_of(const Ops* ops, const Weight& w, bool fine) {
  return ops->has_tiles || w.format == BF16 ? WIDE : fine ? FINE : COARSE;
}

// Floats of scratch that `attend` needs for so many query rows: accumulators, sums and maxima, and the queries in bfloat16.
constexpr int attend_scratch(int rows, int dim) { return (rows + MAX_TILE) * (dim + 2 + dim / 2); }
