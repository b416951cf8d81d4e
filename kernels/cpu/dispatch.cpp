// Which instruction sets this machine has, by CPUID, best first.
#include <stdlib.h>
#include <string.h>

#include "ops.h"

extern const Ops portable;
#ifdef __x86_64__
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
extern const Ops avx2, avx512, amx;
#endif

namespace {

#ifdef __x86_64__

struct Cpu {
  bool avx2, avx512, amx;
};

inline unsigned long long enabled_state() {  // what the system saves when it switches threads
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (unsigned long long)high << 32 | low;
}

Cpu look() {
  Cpu found = {};
  unsigned a, b, c, d, a7, b7, c7, d7;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return found;
  const unsigned basic = c;
  if (!__get_cpuid_count(7, 0, &a7, &b7, &c7, &d7)) return found;
  const unsigned long long state = enabled_state();
  const bool ymm = (state & 6) == 6, zmm = (state & 0xe6) == 0xe6, tiles = (state & 0x60000) == 0x60000;
  found.avx2 = ymm && (basic & bit_FMA) && (basic & bit_F16C) && (b7 & bit_AVX2) && (b7 & bit_BMI2);
  const unsigned wanted = bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL;
  const bool has_vnni = c7 & (1u << 11), has_tiles = (d7 & (1u << 22)) && (d7 & (1u << 24)) && (d7 & (1u << 25));
  bool has_bf16 = false;
  if (a7 >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) has_bf16 = a & (1u << 5);
  found.avx512 = found.avx2 && zmm && (b7 & wanted) == wanted && has_vnni && has_bf16;
  found.amx = found.avx512 && tiles && has_tiles;
#ifdef __linux__
  constexpr int ASK = 0x1023, TILE_DATA = 18;  // arch_prctl: the system gives a process tiles when asked
  found.amx = found.amx && syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
#else
  found.amx = false;
#endif
  return found;
}

const Ops* const* available() {
  static const Ops* list[5];
  static int state = 0;  // 2: made
  if (__atomic_load_n(&state, __ATOMIC_ACQUIRE) != 2) {
    const Cpu cpu = look();
    const Ops* made[5] = {};
    int n = 0;
    if (cpu.amx) made[n++] = &amx;
    if (cpu.avx512) made[n++] = &avx512;
    if (cpu.avx2) made[n++] = &avx2;
    made[n++] = &portable;
    memcpy(list, made, sizeof list);  // whoever does it at the same time writes the same
    __atomic_store_n(&state, 2, __ATOMIC_RELEASE);
  }
  return list;
}

#else

const Ops* const* available() {
  static const Ops* const list[] = {&portable, nullptr};
  return list;
}

#endif

}  // namespace

// The table called `name`, or the best one if that is empty; null if this machine does not have it.
const Ops* find_ops(const char* name) {
  for (const Ops* const* o = available(); *o; o++)
    if (!*name || !strcmp((*o)->name, name)) return *o;
  return nullptr;
}

extern "C" __attribute__((visibility("default"))) const char* bl_isa(int i) {
  const Ops* const* list = available();
  for (int n = 0; list[n]; n++)
    if (n == i) return list[n]->name;
  return nullptr;
}

extern "C" __attribute__((visibility("default"))) const char* bl_sources_hash() { return BASELOAD_SOURCES_HASH; }
