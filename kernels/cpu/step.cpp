// A whole decoder step: embedding to logits for one ragged batch, as phases that the pool's threads walk together.
//
//   for each layer:  qkv (+ rotation, KV write) | attention | o | gate, up (+ activation) | down
//
// The norm before a product, and the quantisation of what goes into it, is the tail of the phase before: of a few rows, one
// thread does it while it has them in its cache; of many rows, it is a phase of its own. So is what is left to do to whole rows
// where all of a row's activations share a scale.
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model.h"

namespace {

constexpr int FEW_ROWS = 3;      // normed by one thread
constexpr int TOGETHER = 8;      // rows in a chunk, where there are more
constexpr int HEAD_PANELS = 16;  // of the output head in a chunk
constexpr int CHUNKS = 8;        // a thread, at least, where the work can be cut so

// ------------------------------------------------------------------------------------------------- what goes into a product

inline Precision wanted(const LayerDesc& l, int bit) { return l.fine & bit ? FINE : l.bytes & bit ? BYTES : COARSE; }
inline const Act& into_qkv(const Model* m, int l) { return m->hidden[precision_of(m->layers[l].q, wanted(m->layers[l], 1))]; }
inline const Act& into_o(const Model* m, int l) { return m->mixed[precision_of(m->layers[l].o, wanted(m->layers[l], 2))]; }
inline const Act& into_mlp(const Model* m, int l) { return m->hidden[precision_of(m->layers[l].gate, wanted(m->layers[l], 4))]; }
inline const Act& into_down(const Model* m, int l) { return m->wide[precision_of(m->layers[l].down, wanted(m->layers[l], 8))]; }
inline const Act& into_head(const Model* m) { return m->last[precision_of(m->desc.head, m->ops->has_tiles ? FINE : COARSE)]; }

// ------------------------------------------------------------------------------------------------- chunks of work

inline int tiles_of(const Act& a) { return ceil_of(a.rows, a.height); }

struct Span {  // tiles of rows
  int first, last;
};

// Rows are cut into spans, evenly.
inline int spans_of(const Model* m, const Act& a) { return ceil_of(tiles_of(a), at_least(1, m->ops->span_rows / a.height)); }

inline Span span_of(const Model* m, const Act& a, int i) {
  const int spans = spans_of(m, a), tiles = tiles_of(a);
  return {tiles * i / spans, tiles * (i + 1) / spans};
}

inline uint8_t* page_part(const Model* m, int64_t page, int layer, int head) {
  const ModelDesc& d = m->desc;
  const int64_t part = (int64_t)2 * d.page_size * d.head_dim * 2;
  return d.pool + ((page * d.n_layers + layer) * d.n_kv_heads + head) * part;
}

void embed_token(Model* m, int t) {
  const ModelDesc& d = m->desc;
  m->ops->embed(&d.embed, m->batch.tokens[t], d.embed_scale, m->x + (int64_t)t * d.hidden);
  const int64_t slot = m->batch.slots[t], page = slot / d.page_size;
  if (slot % d.page_size) return;
  // A page begins: its values are multiplied, by 0, before they are written, and 0 times what an earlier owner left may be NaN.
  const int64_t values = (int64_t)d.page_size * d.head_dim * 2;
  for (int l = 0; l < d.n_layers; l++)
    for (int h = 0; h < d.n_kv_heads; h++) memset(page_part(m, page, l, h) + values, 0, values);
}

void norm_row(const Model* m, const Act& into, int t, const float* post, const float* weight, bool first) {
  const ModelDesc& d = m->desc;
  const int64_t at = (int64_t)t * d.hidden;
  const NormArgs args = {m->x + at, first ? nullptr : m->branch + at, post, weight, d.norm_eps, d.hidden};
  m->ops->norm(&args, &into, t);
}

// The final norm, of the rows whose logits are wanted.
void norm_last(const Model* m, const LayerDesc& layer, int i) {
  const ModelDesc& d = m->desc;
  const int64_t at = (int64_t)m->batch.logit_rows[i] * d.hidden;
  const NormArgs args = {m->x + at, m->branch + at, layer.post_mlp_norm, d.norm, d.norm_eps, d.hidden};
  m->ops->norm(&args, &into_head(m), i);
  if (m->batch.states) memcpy(m->batch.states + (int64_t)i * d.hidden, m->x + at, 4 * (size_t)d.hidden);
}

// Keys into [16 keys][2 dims] blocks, values into [2 keys] pairs: see attention.inc.
void write_key(uint16_t* part, int offset, const uint16_t* key, int dim) {
  uint16_t* block = part + (int64_t)(offset / 16) * 16 * dim + offset % 16 * 2;
  for (int i = 0; i < dim / 2; i++) memcpy(block + 32 * i, key + 2 * i, 4);
}

void write_value(uint16_t* part, int offset, const uint16_t* value, int dim) {
  uint16_t* pair = part + (int64_t)(offset / 2) * 2 * dim + offset % 2;
  for (int i = 0; i < dim; i++) pair[2 * i] = value[i];
}

// One head (of q, then k, then v) of some tiles: product, bias, norm and rotation, and to where attention reads it.
void project_head(Model* m, int l, int head, Span span, float* temp) {
  const ModelDesc& d = m->desc;
  const LayerDesc& layer = m->layers[l];
  const Act& a = into_qkv(m, l);
  const int dim = d.head_dim, panels = dim / PANEL;
  const int token0 = span.first * a.height, rows = at_most(a.rows, span.last * a.height) - token0;
  const bool is_q = head < d.n_heads, is_k = !is_q && head < d.n_heads + d.n_kv_heads;
  const int own = is_q ? head : is_k ? head - d.n_heads : head - d.n_heads - d.n_kv_heads;
  const Weight* w = is_q ? &layer.q : is_k ? &layer.k : &layer.v;
  const float* bias = is_q ? layer.q_bias : is_k ? layer.k_bias : layer.v_bias;
  m->ops->gemm(w, own * panels, panels, &a, span.first, span.last, temp, dim);
  const HeadArgs args = {bias ? bias + own * dim : nullptr,
                         is_q   ? layer.q_norm
                         : is_k ? layer.k_norm
                                : nullptr,
                         d.norm_eps,
                         is_q || is_k ? layer.cos : nullptr,
                         layer.sin,
                         dim,
                         m->batch.positions + token0};
  m->ops->head(&args, temp, rows, dim);
  for (int r = 0; r < rows; r++) {
    const int t = token0 + r;
    if (is_q) {
      m->ops->to_bf16(temp + r * dim, m->q + ((int64_t)t * d.n_heads + own) * dim, dim);
      continue;
    }
    uint16_t half[dim];
    m->ops->to_bf16(temp + r * dim, half, dim);
    const int64_t slot = m->batch.slots[t], page = slot / d.page_size;
    uint16_t* part = (uint16_t*)page_part(m, page, l, own);
    if (is_k) write_key(part, (int)(slot % d.page_size), half, dim);
    else write_value(part + (int64_t)d.page_size * dim, (int)(slot % d.page_size), half, dim);
  }
}

AttendArgs attention_of(const Model* m, int l, int chunk) {
  const ModelDesc& d = m->desc;
  const int group = d.n_heads / d.n_kv_heads, head = chunk % d.n_kv_heads;
  const Block& block = m->blocks[chunk / d.n_kv_heads];
  return {m->q,
          page_part(m, 0, l, head),
          (int64_t)d.n_layers * d.n_kv_heads * 4 * d.page_size * d.head_dim,
          (int64_t)2 * d.page_size * d.head_dim,
          m->batch.page_tables + (int64_t)block.row * m->batch.pages_wide,
          d.page_size,
          d.head_dim,
          d.n_heads,
          group,
          head * group,
          block.token,
          block.n_tokens,
          block.position,
          m->layers[l].window,
          d.attn_scale,
          d.attn_softcap,
          nullptr};
}

void attend_chunk(const Model* m, int l, int chunk, float* scratch) {
  AttendArgs args = attention_of(m, l, chunk), next;
  if (chunk + 1 < m->n_blocks * m->desc.n_kv_heads) args.next = &(next = attention_of(m, l, chunk + 1));
  m->ops->attend(&args, &into_o(m, l), scratch);
}

// Panels first .. last of `w`, into branch.
void project(Model* m, const Weight* w, const Act* a, Span span, int first, int last) {
  float* to = m->branch + (int64_t)span.first * a->height * m->desc.hidden + first * PANEL;
  m->ops->gemm(w, first, last - first, a, span.first, span.last, to, m->desc.hidden);
}

// 32 outputs of gate and of up: the activation, quantised for `down`.
void gate_and_up(Model* m, int l, Span span, int part, float* temp) {
  const LayerDesc& layer = m->layers[l];
  const Act &a = into_mlp(m, l), &to = into_down(m, l);
  float* up = temp + m->ops->span_rows * GROUP;
  const int first_row = span.first * a.height, rows = at_most(a.rows, span.last * a.height) - first_row;
  m->ops->gemm(&layer.gate, part * 2, 2, &a, span.first, span.last, temp, GROUP);
  m->ops->gemm(&layer.up, part * 2, 2, &a, span.first, span.last, up, GROUP);
  m->ops->glu(temp, up, rows, m->desc.activation, &to, first_row, part);
}

void head_chunk(Model* m, int chunk, float* temp) {
  const ModelDesc& d = m->desc;
  const Act& a = into_head(m);
  Best* bests = m->bests + (int64_t)chunk * a.rows;
  for (int i = 0; i < a.rows; i++) bests[i] = {-__builtin_inff(), 0, 0};
  const int last_panel = at_most((chunk + 1) * HEAD_PANELS, ceil_of(d.vocab, PANEL)), spans = spans_of(m, a);
  for (int p = chunk * HEAD_PANELS; p < last_panel; p += 2)
    for (int s = 0; s < spans; s++) {
      const Span span = span_of(m, a, s);
      const int both = at_most(2, last_panel - p), first_row = span.first * a.height;
      m->ops->gemm(&d.head, p, both, &a, span.first, span.last, temp, 2 * PANEL);
      for (int i = first_row; i < at_most(a.rows, span.last * a.height); i++)
        for (int j = 0; j < both; j++) {
          float* logits = temp + (2 * (i - first_row) + j) * PANEL;
          const int first = (p + j) * PANEL, n = at_most(PANEL, d.vocab - first);
          m->ops->best(logits, n, first, d.final_softcap, &bests[i]);
          if (m->batch.full_logits[i]) memcpy(m->batch.logits + (int64_t)i * d.vocab + first, logits, 4 * n);
        }
    }
}

void choose_best(Model* m) {
  const int rows = m->batch.n_logits;
  for (int i = 0; i < rows; i++) {
    Best best = m->bests[i];
    for (int c = 1; c < m->head_chunks; c++) {
      const Best& other = m->bests[(int64_t)c * rows + i];
      best.broken |= other.broken;
      if (other.value > best.value) best.value = other.value, best.index = other.index;
    }
    m->batch.best[i] = best.index;
    m->batch.finite[i] = !best.broken && best.value - best.value == 0;
  }
}

// ------------------------------------------------------------------------------------------------- the step

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ll + t.tv_nsec;
}

void nothing() {}
void nothing_of(int) {}

void walk(Job* job, uint32_t number, int thread) {
  Model* m = (Model*)job;
  const ModelDesc& d = m->desc;
  const int tokens = m->batch.n_tokens, threads = pool_threads(m->pool);
  float* scratch = m->scratch + m->scratch_each * thread;
  Phase* phase = m->phases;
  bool here = true;  // until this thread finds that it is late

  int64_t started = thread ? 0 : now();
  auto run = [&](Part part, int n, auto chunk, auto tail) {
    here = here && walk_phase(phase++, number, thread, n, chunk, tail);
    if (thread) return;
    const int64_t ended = now();
    m->nanoseconds[part] += ended - started;
    started = ended;
  };
  // A phase whose results `finish` each row afterwards, in its tail or in a phase of their own.
  auto run_rows = [&](Part part, int n, auto chunk, auto row) {
    if (tokens <= FEW_ROWS) return run(part, n, chunk, [&] { for (int t = 0; t < tokens; t++) row(t); });
    run(part, n, chunk, nothing);
    const auto rows = [&](int c) { for (int t = c * TOGETHER; t < at_most(tokens, (c + 1) * TOGETHER); t++) row(t); };
    run(part, ceil_of(tokens, TOGETHER), rows, nothing);
  };
  const auto run_groups = [&](Part part, int n, auto chunk, const Act& to) {
    if (to.whole) run_rows(part, n, chunk, [&](int t) { m->ops->complete(&to, t); });
    else run(part, n, chunk, nothing);
  };
  // The panels of `w` times `a`, span by span.
  auto run_panels = [&](Part part, const Weight& w, const Act& a, auto row) {
    const int panels = d.hidden / PANEL, spans = spans_of(m, a);
    const int each = at_least(1, panels * spans / (CHUNKS * threads)), parts = ceil_of(panels, at_most(each, panels));
    const auto chunk = [&](int c) {
      const int first = c % parts * each;
      project(m, &w, &a, span_of(m, a, c / parts), first, at_most(panels, first + each));
    };
    run_rows(part, parts * spans, chunk, row);
  };

  const auto embed = [&](int c) { for (int t = c * TOGETHER; t < at_most(tokens, (c + 1) * TOGETHER); t++) embed_token(m, t); };
  run_rows(EMBED, ceil_of(tokens, TOGETHER), embed,
           [&](int t) { norm_row(m, into_qkv(m, 0), t, nullptr, m->layers[0].attn_norm, true); });
  for (int l = 0; l < d.n_layers && here; l++) {
    const LayerDesc& layer = m->layers[l];
    const Act& a = into_qkv(m, l);
    const int heads = d.n_heads + 2 * d.n_kv_heads, spans = spans_of(m, a);
    run(QKV, heads * spans, [&](int c) { project_head(m, l, c % heads, span_of(m, a, c / heads), scratch); }, nothing);
    const auto attend = [&](int c) { attend_chunk(m, l, c, scratch); };
    run_groups(ATTENTION, m->n_blocks * d.n_kv_heads, attend, into_o(m, l));
    run_panels(O, layer.o, into_o(m, l), [&](int t) { norm_row(m, into_mlp(m, l), t, layer.post_attn_norm, layer.mlp_norm, false); });
    const Act& mlp = into_mlp(m, l);
    const int parts = d.intermediate / GROUP;
    const auto gate_up = [&](int c) { gate_and_up(m, l, span_of(m, mlp, c / parts), c % parts, scratch); };
    run_groups(GATE_UP, parts * spans_of(m, mlp), gate_up, into_down(m, l));
    if (l + 1 < d.n_layers) {
      const float* next = m->layers[l + 1].attn_norm;
      run_panels(DOWN, layer.down, into_down(m, l), [&](int t) { norm_row(m, into_qkv(m, l + 1), t, layer.post_mlp_norm, next, false); });
    } else if (m->batch.n_logits) {
      run_panels(DOWN, layer.down, into_down(m, l), nothing_of);
      run(HEAD, m->batch.n_logits, [&](int i) { norm_last(m, layer, i); }, nothing);
    }
  }
  if (m->batch.n_logits) run(HEAD, m->head_chunks, [&](int c) { head_chunk(m, c, scratch); }, [&] { choose_best(m); });
}

void find_blocks(Model* m) {
  const BatchDesc& b = m->batch;
  const int most = at_least(1, PREFILL_ROWS / (m->desc.n_heads / m->desc.n_kv_heads));
  m->n_blocks = 0;
  // The last tokens see the most keys: they go first, so that no thread begins the longest piece when the others end.
  for (int row = 0; row < b.n_rows; row++)
    for (int end = b.row_starts[row + 1]; end > b.row_starts[row];) {
      const int n = at_most(most, end - b.row_starts[row]);
      end -= n;
      m->blocks[m->n_blocks++] = {row, end, n, b.positions[end]};
    }
}

}  // namespace

// ------------------------------------------------------------------------------------------------- the ABI

#define EXPORT extern "C" __attribute__((visibility("default")))

const Ops* find_ops(const char* name);

EXPORT Pool* bl_pool_create(int n_threads) { return pool_create(n_threads); }
EXPORT void bl_pool_free(Pool* pool) { pool_free(pool); }
EXPORT int bl_pool_threads(const Pool* pool) { return pool_threads(pool); }

// Null: no memory, or no such instruction set. What the description points to must outlive the model.
EXPORT Model* bl_model_create(const ModelDesc* desc, Pool* pool, const char* isa) {
  const Ops* ops = find_ops(isa);
  Model* m = ops ? (Model*)calloc(1, sizeof(Model)) : nullptr;
  if (!m) return nullptr;
  m->desc = *desc;
  m->pool = pool;
  m->walk = walk;
  m->ops = ops;
  m->n_phases = desc->n_layers * 9 + 4;
  m->head_chunks = ceil_of(ceil_of(desc->vocab, PANEL), HEAD_PANELS);
  m->layers = (LayerDesc*)malloc(sizeof(LayerDesc) * (size_t)desc->n_layers);
  void* phases = nullptr;
  if (!m->layers || posix_memalign(&phases, 64, sizeof(Phase) * (size_t)m->n_phases)) {
    free(m->layers);
    free(m);
    return nullptr;
  }
  memcpy(m->layers, desc->layers, sizeof(LayerDesc) * (size_t)desc->n_layers);
  m->phases = (Phase*)memset(phases, 0, sizeof(Phase) * (size_t)m->n_phases);
  return m;
}

EXPORT void bl_model_free(Model* m) {
  pool_forget(m->pool, m);
  give_back(m);
  free(m->phases);
  free(m->layers);
  free(m);
}

// Nanoseconds that each part of a step has taken so far, [N_PARTS].
EXPORT void bl_times(const Model* m, int64_t* into) { memcpy(into, m->nanoseconds, sizeof m->nanoseconds); }

// 0, or -1: no memory.
EXPORT int bl_step(Model* m, const BatchDesc* batch) {
  if (!batch->n_tokens) return 0;
  if (!make_ready(m, *batch)) return -1;
  m->batch = *batch;
  find_blocks(m);
  pool_run(m->pool, m);
  return 0;
}
