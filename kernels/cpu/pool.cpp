#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

#include "ops.h"

namespace {

constexpr int SPINS = 4000;  // some 20 to 60 us: longer than most phases, shorter than what a sleeper's waking costs
constexpr int MOST_THREADS = 256;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// Sleep while *word is `value`; may return early. A bound, so that a lost wake-up costs a millisecond and not the step.
void sleep_on(const uint32_t* word, uint32_t value, long nanoseconds) {
#ifdef __linux__
  const timespec bound = {0, nanoseconds};
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nanoseconds ? &bound : nullptr, nullptr, 0);
#else
  (void)word, (void)value, (void)nanoseconds;
  sched_yield();
#endif
}

void wake_all(const uint32_t* word) {
#ifdef __linux__
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

template <class T>
inline T get(const T* from) {
  return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}

template <class T>
inline void set(T* to, T value) {
  __atomic_store_n(to, value, __ATOMIC_SEQ_CST);
}

struct Worker {
  Pool* pool;
  int index;
  pthread_t thread;
  alignas(64) Job* inside;  // the job that it may be walking
};

}  // namespace

struct Pool {
  int n_threads;  // with the caller
  int n_workers;  // started
  alignas(64) uint32_t posted;  // counts jobs; workers wait for it to change
  uint32_t asleep;
  uint32_t over;
  Job* job;
  uint32_t number;
  Worker workers[MOST_THREADS];
};

int phase_take(Phase* phase, uint32_t number, int n, int thread) {
  const uint32_t sizes[2] = {(uint32_t)n / 2, (uint32_t)n - (uint32_t)n / 2};
  uint64_t seen = get(&phase->next);
  for (;;) {
    if ((uint32_t)(seen >> 32) != number) return -1;
    const uint32_t taken[2] = {(uint32_t)seen >> 16, (uint32_t)seen & 0xffff};
    const int own = 1 - thread % 2, half = taken[own] < sizes[own] ? own : 1 - own;
    if (taken[half] >= sizes[half]) return -1;
    if (__atomic_compare_exchange_n(&phase->next, &seen, seen + (half ? 1 : 1 << 16), true, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
      return (int)(half * sizes[0] + taken[half]);
  }
}

void phase_finish(Phase* phase, uint32_t to) {
  set(&phase->done, to);
  if (__atomic_load_n(&phase->asleep, __ATOMIC_SEQ_CST)) wake_all(&phase->done);
}

bool phase_wait(Phase* phase, uint32_t number, uint32_t until) {
  for (int spin = 0;; spin++) {
    const uint32_t done = get(&phase->done);
    if ((uint32_t)(get(&phase->next) >> 32) != number) return false;
    if (done >= until) return true;
    if (spin < SPINS) {
      relax();
      continue;
    }
    // Whoever holds the last chunk may wait for this very core: give it up rather than spin.
    __atomic_add_fetch(&phase->asleep, 1, __ATOMIC_SEQ_CST);
    sleep_on(&phase->done, done, 1000000);
    __atomic_sub_fetch(&phase->asleep, 1, __ATOMIC_SEQ_CST);
  }
}

namespace {

void* work(void* of) {
  Worker* me = (Worker*)of;
  Pool* pool = me->pool;
  const Ops* entered = nullptr;
  uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; get(&pool->posted) == seen; spin++) {
      if (spin < SPINS) {
        relax();
        continue;
      }
      __atomic_add_fetch(&pool->asleep, 1, __ATOMIC_SEQ_CST);
      if (get(&pool->posted) == seen) sleep_on(&pool->posted, seen, 0);
      __atomic_sub_fetch(&pool->asleep, 1, __ATOMIC_SEQ_CST);
    }
    if (get(&pool->over)) break;
    seen = get(&pool->posted);
    Job* job = get(&pool->job);
    set(&me->inside, job);
    // pool_forget looks at `inside` after it has taken the job away: one of the two sees the other.
    if (job && __atomic_load_n(&pool->job, __ATOMIC_SEQ_CST) == job) {
      if (entered != job->ops) {
        if (entered) entered->leave();
        (entered = job->ops)->enter();
      }
      job->walk(job, get(&job->number), me->index);
    }
    set(&me->inside, (Job*)nullptr);
  }
  if (entered) entered->leave();
  return nullptr;
}

}  // namespace

Pool* pool_create(int n_threads) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, sizeof(Pool))) return nullptr;
  Pool* pool = (Pool*)memset(memory, 0, sizeof(Pool));
  pool->n_threads = n_threads < 1 ? 1 : n_threads > MOST_THREADS ? MOST_THREADS : n_threads;
  for (int i = 1; i < pool->n_threads; i++) {
    Worker* worker = &pool->workers[i];
    worker->pool = pool;
    worker->index = i;
    if (pthread_create(&worker->thread, nullptr, work, worker)) break;  // fewer threads do the same work
    pool->n_workers = i;
  }
  return pool;
}

int pool_threads(const Pool* pool) { return pool->n_workers + 1; }

void pool_free(Pool* pool) {
  set(&pool->over, 1u);
  __atomic_add_fetch(&pool->posted, 1, __ATOMIC_SEQ_CST);
  wake_all(&pool->posted);
  for (int i = 1; i <= pool->n_workers; i++) pthread_join(pool->workers[i].thread, nullptr);
  free(pool);
}

void pool_run(Pool* pool, Job* job) {
  const uint32_t number = job->number + 1;
  const auto set_all = [&](uint64_t next) { for (int i = 0; i < job->n_phases; i++) set(&job->phases[i].next, next); };
  // `done` first: who sees the new number must not see the old count.
  for (int i = 0; i < job->n_phases; i++) set(&job->phases[i].done, 0u);
  set_all((uint64_t)number << 32);
  set(&job->number, number);
  set(&pool->job, job);
  __atomic_add_fetch(&pool->posted, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&pool->asleep, __ATOMIC_SEQ_CST)) wake_all(&pool->posted);
  job->ops->enter();
  job->walk(job, number, 0);
  job->ops->leave();
  // Closed: the caller may now change what the job describes, and a late thread would count its chunks by that.
  set_all((uint64_t)(number + 1) << 32 | UINT32_MAX);
}

void pool_forget(Pool* pool, Job* job) {
  Job* none = nullptr;
  Job* mine = job;
  __atomic_compare_exchange_n(&pool->job, &mine, none, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  for (int i = 1; i <= pool->n_workers; i++)
    while (__atomic_load_n(&pool->workers[i].inside, __ATOMIC_SEQ_CST) == job) sched_yield();
}
