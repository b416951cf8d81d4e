// Threads that walk through a step's phases together.
//
// A phase is a number of chunks, at most 65535, taken from two counters: of its first half, and of its second. Half of the threads
// begin with either, so that a thread mostly finds in its cache what it left there in the phase before; then they take from the
// other, so a thread that runs finishes the work of one that the system has put aside. A phase is over when its chunks are done, not when all threads have come, so a thread that was away finds them taken
// and passes on. Every counter carries the step's number: whoever comes after the step's end can take nothing, and leaves.
#pragma once

#include <stdint.h>

struct Job;

// What all threads call, each for itself: walks the phases of step `number` with Walk::phase below.
typedef void (*WalkFunction)(Job* job, uint32_t number, int thread);

struct alignas(64) Phase {
  uint64_t next;  // step number << 32 | chunks taken of the first half << 16 | of the second
  uint32_t done;  // chunks done, plus 1 when the tail has run
  uint32_t asleep;
};

struct Job {
  WalkFunction walk;
  Phase* phases;
  int n_phases;
  uint32_t number;
  const struct Ops* ops;
};

struct Pool;

Pool* pool_create(int n_threads);  // the caller of pool_run is one of them; null: no memory
void pool_free(Pool* pool);
int pool_threads(const Pool* pool);
// Runs one step of `job` on all threads; returns when it is done. One caller at a time.
void pool_run(Pool* pool, Job* job);
// Waits until no thread is in `job`, which can then be freed.
void pool_forget(Pool* pool, Job* job);

// A claim on chunks of a phase; -1: none is left, or the step is over.
int phase_take(Phase* phase, uint32_t number, int n, int thread);
void phase_finish(Phase* phase, uint32_t to);
bool phase_wait(Phase* phase, uint32_t number, uint32_t until);  // false: the step is over

// Walks one phase of `n` chunks, then `tail` once, on the thread that ended the last chunk. False: this thread is late, leave.
template <class Run, class Tail>
inline bool walk_phase(Phase* phase, uint32_t number, int thread, int n, Run run, Tail tail) {
  for (;;) {
    const int chunk = phase_take(phase, number, n, thread);
    if (chunk < 0) break;
    run(chunk);
    const uint32_t done = __atomic_add_fetch(&phase->done, 1, __ATOMIC_ACQ_REL);
    if (done == (uint32_t)n) {
      tail();
      phase_finish(phase, (uint32_t)n + 1);
    }
  }
  return phase_wait(phase, number, (uint32_t)n + 1);
}
