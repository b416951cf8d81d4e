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
// Instruction sets with tiles have BF16 as it is, and of other formats a record for each panel and STEP inputs:
//   [2 groups][D, or D and M][16 outputs] int16, then [2 groups][4 (4 bits) or 8][16 outputs][4] bytes of codes
// and float32 scales, one of each output. With 4 bits a weight is the integer code * D + M, where code 0 .. 15, with 8 bits the
// integer nearest to code * D / 128 + M, where code is signed, times a 256th of that scale. M is stored as M + 128; a format with
// a bias has M = -8 * D, or 0. Dword i of an output holds inputs 8 i + {0, 1, 4, 5, 2, 3, 6, 7} (4 bits), or 4 i + {0 .. 3}.
enum Format : int32_t { Q4_MIN = 0, Q4_BIAS = 1, Q8_MIN = 2, Q8_BIAS = 3, BF16 = 4 };

constexpr int GROUP = 32;   // inputs that share a scale, in weights and activations
constexpr int STEP = 64;    // inputs of 8 bits that tiles multiply at once
constexpr int PANEL = 16;   // outputs
constexpr int MAX_TILE = 16;  // rows of activations that any kernel takes at once
constexpr int KEYS = 64;    // of attention's inner loop, at absolute positions
constexpr int MAX_DIM = 512;  // of a head

struct Weight {
  const uint8_t* codes;
  const uint16_t* scales;
  int32_t format, rows, cols, padding;
};

// Activations on their way into a linear: M rows in tiles of `height` (the last may be lower), in groups of 32 inputs.
//   COARSE  [group][row][32] int8; an integer a stands for scale * (a - zero)
//   FINE    [group][2][row][32] int8: the high, then the low bytes of 16-bit integers; a stands for scale * a
//   WIDE    [group][row][32] bfloat16, nothing else
// Scale and zero are those of 32 inputs of one row. Beside them lie minus the sum of the 32 (a - zero), and scale times that sum.
//
// With tiles all but WIDE ones are [step of 64 inputs][2][height][64] int8, the high, then the low bytes of 16-bit integers, and
// `scale` is one of each row. Coarse then is what they meet: weights of 8 bits, and FINE meets weights of 16. Only with tiles:
//   BYTES   [step of 64 inputs][height][64] int8, of 8-bit integers; `scale` is one of each row; meets weights of 8 bits
enum Precision : int32_t { COARSE = 0, FINE = 1, WIDE = 2, BYTES = 3 };
constexpr int PRECISIONS = 4;

struct Act {
  void* values;
  float* scale;
  int32_t* minus_zero;
  int32_t* negative;
  float* total;
  float* whole;  // with tiles: as many floats, where a row waits until it is complete
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
  const AttendArgs* next;  // what this thread will probably be asked next; or null
};

struct Best {  // of one row, over some outputs
  float value;
  int32_t index, broken;
};

struct Ops {
  const char* name;
  int32_t max_tile;
  int32_t span_rows;   // multiplied before what comes next is done to them, while they are in the cache
  int32_t has_tiles;   // weights and activations lie as these want them
  // Once in each thread before it uses the others.
  void (*enter)();
  void (*leave)();
  // out[r * ld + 0 .. 16 * n] = `n` panels of w, from `panel`, times the rows of tiles first .. last
  void (*gemm)(const Weight* w, int panel, int n, const Act* a, int first, int last, float* out, int64_t ld);
  // Quantised into row `row`, from floats.
  void (*give)(const Act* a, int row, const float* from);
  // When all of a row's groups were given by `glu` or `attend`.
  void (*complete)(const Act* a, int row);
  void (*norm)(const NormArgs* n, const Act* out, int row);
  void (*embed)(const Weight* table, int token, float scale, float* out);
  // In place on [rows][ld]: bias, norm over D, rotation.
  void (*head)(const HeadArgs* h, float* x, int rows, int64_t ld);
  void (*to_bf16)(const float* from, uint16_t* to, int n);
  // activation(gate) * up, each [rows][32], quantised into group `group` of `out` from row `row`. kind 0 silu, 1 gelu (tanh)
  void (*glu)(const float* gate, const float* up, int rows, int kind, const Act* out, int row, int group);
  void (*attend)(const AttendArgs* a, const Act* out, float* scratch);
  // The largest of `n` (at most 16) outputs that begin at `index`, after the soft-cap, which is applied in place.
  void (*best)(float* logits, int n, int index, float softcap, Best* best);
  // The machine's ceiling: products of registers, integers or (with tiles) bfloat16, `round_operations` in a round.
  int64_t (*products)(int64_t rounds);
  int64_t round_operations;
};

// Rows shared out evenly among as few tiles as can hold them.
inline int tile_height(const Ops* ops, int rows) {
  return rows ? (rows + (rows - 1) / ops->max_tile) / ((rows - 1) / ops->max_tile + 1) : 1;
}

inline Precision precision_of(const Weight& w, Precision wanted) { return w.format == BF16 ? WIDE : wanted; }

// Bytes of a row of activations in any precision.
inline int64_t act_bytes(int cols) { return 2 * ((cols + STEP - 1) / STEP * STEP); }

// Floats of scratch that `attend` needs for so many query rows: accumulators, sums, maxima, weights, and the queries in bfloat16.
constexpr int attend_scratch(int rows, int dim) { return (rows + MAX_TILE) * (dim + 2 + KEYS + dim / 2); }
