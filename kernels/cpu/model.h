// What step.cpp and memory.cpp share: a model with all that its steps need.
#pragma once

#include "step.h"

constexpr int PREFILL_ROWS = 48;  // query rows of one key head that attention takes at once

inline int ceil_of(int a, int b) { return (a + b - 1) / b; }
inline int at_least(int a, int b) { return a > b ? a : b; }
inline int at_most(int a, int b) { return a < b ? a : b; }

struct Block {  // neighbouring tokens of one row, for attention
  int32_t row, token, n_tokens, position;
};

struct Model : Job {
  ModelDesc desc;
  LayerDesc* layers;
  Pool* pool;
  BatchDesc batch;
  // For `room` tokens, `head_room` logits: made when a step needs more than any before.
  int room, head_room, rows_room;
  char* memory;
  char* head_memory;
  float *x, *branch;
  uint16_t* q;
  float* scratch;  // of each thread
  int64_t scratch_each;
  // Each in all precisions, over the same memory; what a layer's weights take says which is used.
  Act hidden[PRECISIONS], mixed[PRECISIONS], wide[PRECISIONS], last[PRECISIONS];
  Best* bests;
  Block* blocks;
  int n_blocks, head_chunks;
  int64_t nanoseconds[N_PARTS];  // of all steps so far, by the caller's clock
};

// Memory for this batch, its activations cut into tiles. False: there is none.
bool make_ready(Model* m, const BatchDesc& batch);
void give_back(Model* m);
