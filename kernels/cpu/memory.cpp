// The memory of a model's steps: made when a step needs more than any before, and cut into aligned parts.
#include <stdlib.h>
#include <string.h>

#include "model.h"

namespace {

struct Cutter {  // cuts one allocation into aligned parts; without memory, it counts
  char* at;
  template <class T>
  T* take(int64_t n) {
    char* here = at;
    at += (n * (int64_t)sizeof(T) + 127) & ~(int64_t)63;
    return (T*)here;
  }
};

void cut_act(const Ops* ops, Cutter& from, Act all[PRECISIONS], int rows, int cols) {
  // MAX_TILE rows more: a kernel that always takes so many may read, though not use, what follows the last.
  const int64_t padded = rows + MAX_TILE;
  Act* a = all;
  a->cols = cols;
  a->values = from.take<char>(padded * act_bytes(cols));
  a->scale = from.take<float>(padded * (cols / GROUP));
  a->minus_zero = from.take<int32_t>(padded * (cols / GROUP));
  a->negative = from.take<int32_t>(padded * (cols / GROUP));
  a->total = from.take<float>(padded * (cols / GROUP));
  a->whole = ops->has_tiles ? from.take<float>(padded * cols) : nullptr;
  for (int i = 0; i < PRECISIONS; i++) all[i] = *a, all[i].precision = (Precision)i;
  all[WIDE].whole = nullptr;
}

void lay_out(Model* m, Cutter& from, int tokens, int rows) {
  const ModelDesc& d = m->desc;
  const int heads = d.n_heads * d.head_dim, group = d.n_heads / d.n_kv_heads;
  m->x = from.take<float>((int64_t)tokens * d.hidden);
  m->branch = from.take<float>((int64_t)tokens * d.hidden);
  m->q = from.take<uint16_t>((int64_t)tokens * heads);
  cut_act(m->ops, from, m->hidden, tokens, d.hidden);
  cut_act(m->ops, from, m->mixed, tokens, heads);
  cut_act(m->ops, from, m->wide, tokens, d.intermediate);
  const int span = (m->ops->span_rows + MAX_TILE) * at_least(d.head_dim, 2 * GROUP);
  m->scratch_each = at_least(attend_scratch(at_least(group, PREFILL_ROWS), d.head_dim), span);
  m->scratch_each = (m->scratch_each + 63) & ~(int64_t)15;
  m->scratch = from.take<float>(m->scratch_each * pool_threads(m->pool));
  m->blocks = from.take<Block>(tokens + rows);
}

void lay_out_head(Model* m, Cutter& from, int logits) {
  cut_act(m->ops, from, m->last, logits, m->desc.hidden);
  m->bests = from.take<Best>((int64_t)m->head_chunks * logits);
}

template <class LayOut>
bool make_room(char** memory, LayOut lay) {
  Cutter count = {nullptr};
  lay(count);
  void* made = nullptr;
  if (posix_memalign(&made, 64, (size_t)count.at + 64)) return false;
  // Never NaN where nothing was written yet: a kernel may compute, though not use, rows past the last.
  memset(made, 0, (size_t)count.at);
  free(*memory);
  *memory = (char*)made;
  Cutter cut = {*memory};
  lay(cut);
  return true;
}

bool make_room(Model* m, const BatchDesc& b) {
  if (b.n_tokens > m->room || b.n_rows > m->rows_room) {
    const int tokens = at_least(b.n_tokens, m->room), rows = at_least(b.n_rows, m->rows_room);
    if (!make_room(&m->memory, [&](Cutter& c) { lay_out(m, c, tokens, rows); })) return m->room = 0, false;
    m->room = tokens, m->rows_room = rows;
  }
  if (b.n_logits > m->head_room) {
    if (!make_room(&m->head_memory, [&](Cutter& c) { lay_out_head(m, c, b.n_logits); })) return m->head_room = 0, false;
    m->head_room = b.n_logits;
  }
  return true;
}

void set_rows(const Ops* ops, Act all[PRECISIONS], int rows) {
  for (int i = 0; i < PRECISIONS; i++) {
    all[i].rows = rows;
    all[i].height = tile_height(ops, rows);
  }
}

}  // namespace

bool make_ready(Model* m, const BatchDesc& batch) {
  if (!make_room(m, batch)) return false;
  set_rows(m->ops, m->hidden, batch.n_tokens);
  set_rows(m->ops, m->mixed, batch.n_tokens);
  set_rows(m->ops, m->wide, batch.n_tokens);
  set_rows(m->ops, m->last, batch.n_logits);
  return true;
}

void give_back(Model* m) {
  free(m->memory);
  free(m->head_memory);
}
