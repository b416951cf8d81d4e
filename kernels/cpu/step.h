// The C ABI: what library.py declares for ctypes. Plain ints, floats and pointers; arrays belong to the caller.
#pragma once

#include <stdint.h>

#include "ops.h"
#include "pool.h"

struct LayerDesc {
  Weight q, k, v, o, gate, up, down;
  const float *attn_norm, *mlp_norm;
  const float *post_attn_norm, *post_mlp_norm;  // null where the family has none, as are the next
  const float *q_bias, *k_bias, *v_bias, *q_norm, *k_norm;
  const float *cos, *sin;  // [positions][D / 2]
  int32_t window;
  int32_t fine;  // whose inputs are FINE activations: bit 0 q, k and v; 1 o; 2 gate and up; 3 down
  int32_t bytes, padding;  // whose are, if not FINE, BYTES
};

struct ModelDesc {
  int32_t n_layers, hidden, n_heads, n_kv_heads, head_dim, intermediate, vocab, activation;
  float norm_eps, embed_scale, attn_scale, attn_softcap, final_softcap;
  int32_t page_size, padding[2];
  const LayerDesc* layers;
  Weight embed, head;
  const float* norm;
  uint8_t* pool;  // [page][layer][key head][keys, values], see attention.inc
};

// The parts of a step, for bl_times.
enum Part : int32_t { EMBED, QKV, ATTENTION, O, GATE_UP, DOWN, HEAD, N_PARTS };

struct BatchDesc {  // kernels/spec.py's StepBatch
  int32_t n_tokens, n_rows, n_logits, pages_wide;
  const int32_t *tokens, *positions, *row_starts, *page_tables, *logit_rows;
  const int64_t* slots;
  const uint8_t* full_logits;
  int32_t* best;
  uint8_t* finite;
  float* logits;  // [n_logits][vocab]; null if none is wanted
  float* states;  // [n_logits][hidden], before the final norm; null likewise
};
