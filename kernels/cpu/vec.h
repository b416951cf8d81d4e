// Sixteen lanes at a time, on any machine: clang's vector types, and the few operations that need an instruction of their own.
//
// Everything lies in an unnamed namespace: each instruction set compiles this file for itself, and the linker must not take
// one's inline function for another's.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;

// Before a loop over rows whose values must stay in registers.
#define UNROLL _Pragma("clang loop unroll(full)")
#define INLINE inline __attribute__((always_inline))  // and what they call

typedef float F32 __attribute__((vector_size(64)));
typedef int32_t I32 __attribute__((vector_size(64)));
typedef uint32_t U32 __attribute__((vector_size(64)));
typedef uint8_t U8 __attribute__((vector_size(64)));
typedef int16_t I16 __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(64)));
typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint16_t Half __attribute__((vector_size(32)));  // 16 bfloat16 or float16, as their bits

template <class T>
inline T load(const void* from) {
  T v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
inline void store(void* to, T v) {
  memcpy(to, &v, sizeof v);
}

inline F32 splat(float x) { return F32{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
inline I32 splat(int32_t x) { return I32{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

inline F32 fma(F32 a, F32 b, F32 c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_elementwise_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// A NaN in `x` stays one: it has to reach the logits, where it is found.
inline F32 at_least(F32 x, float low) { return x < splat(low) ? splat(low) : x; }
inline F32 at_most(F32 x, float high) { return x > splat(high) ? splat(high) : x; }
inline F32 larger(F32 a, F32 b) { return a > b ? a : b; }
inline F32 magnitude(F32 x) { return (F32)((U32)x & 0x7fffffffu); }

#if defined(__AVX512F__)
inline float sum(F32 v) { return _mm512_reduce_add_ps((__m512)v); }
inline float largest(F32 v) { return _mm512_reduce_max_ps((__m512)v); }
#else
template <class Join>
inline float across(F32 v, Join join) {
  for (int step = 8; step; step /= 2) {
    F32 moved;
    for (int i = 0; i < LANES; i++) moved[i] = v[i ^ step];
    v = join(v, moved);
  }
  return v[0];
}

inline float sum(F32 v) {
  return across(v, [](F32 a, F32 b) { return a + b; });
}
inline float largest(F32 v) {
  return across(v, [](F32 a, F32 b) { return larger(a, b); });
}
#endif

// The same of 16 vectors at once, each in its lane.
#if defined(__AVX512F__)
template <class Join>
inline F32 across_all(const F32* v, Join join) {
  __m512 a[8], b[4], c[2];
  UNROLL
  for (int i = 0; i < 8; i++)
    a[i] = join(_mm512_shuffle_f32x4((__m512)v[i], (__m512)v[i + 8], 0x44), _mm512_shuffle_f32x4((__m512)v[i], (__m512)v[i + 8], 0xee));
  UNROLL
  for (int i = 0; i < 4; i++) b[i] = join(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88), _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd));
  UNROLL
  for (int i = 0; i < 2; i++) {
    const __m512d x = (__m512d)b[i], y = (__m512d)b[i + 2];
    c[i] = join((__m512)_mm512_unpacklo_pd(x, y), (__m512)_mm512_unpackhi_pd(x, y));
  }
  const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
  return (F32)_mm512_permutexvar_ps(order, join(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xdd)));
}

inline F32 sums_of(const F32* v) {
  return across_all(v, [](__m512 a, __m512 b) __attribute__((always_inline)) { return a + b; });
}
inline F32 largest_of(const F32* v) {
  return across_all(v, [](__m512 a, __m512 b) __attribute__((always_inline)) { return _mm512_max_ps(a, b); });
}
#else
inline F32 sums_of(const F32* v) {
  F32 all;
  for (int i = 0; i < LANES; i++) all[i] = sum(v[i]);
  return all;
}
inline F32 largest_of(const F32* v) {
  F32 all;
  for (int i = 0; i < LANES; i++) all[i] = largest(v[i]);
  return all;
}
#endif

inline void store_bytes(int8_t* to, I32 v) {  // what fits a byte
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)v));
#else
  typedef int8_t SignedBytes __attribute__((vector_size(16)));
  store(to, __builtin_convertvector(v, SignedBytes));
#endif
}

inline bool any(I32 mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#else
  return __builtin_reduce_or(mask);
#endif
}

inline I32 nearest(F32 x) {  // to even
#if defined(__AVX512F__)
  return (I32)_mm512_cvtps_epi32((__m512)x);
#else
  return __builtin_convertvector(__builtin_elementwise_roundeven(x), I32);
#endif
}

// ------------------------------------------------------------------------------------------------- half precision

inline F32 from_bf16(Half bits) { return (F32)(__builtin_convertvector(bits, U32) << 16); }

// Rounded to even; NaN stays NaN.
inline Half to_bf16(F32 x) {
#if defined(__AVX512BF16__)
  return (Half)_mm512_cvtneps_pbh((__m512)x);
#else
  const U32 bits = (U32)x;
  const U32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U32 broken = (bits >> 16) | 0x40u;
  return __builtin_convertvector(x == x ? rounded : broken, Half);
#endif
}

inline F32 from_f16(Half bits) {
#if defined(__AVX512F__)
  return (F32)_mm512_cvtph_ps((__m256i)bits);
#else
  // The exponent is moved by multiplying with 2^112, which also makes subnormal numbers right; infinity and NaN do not occur.
  const U32 wide = __builtin_convertvector(bits, U32);
  const F32 value = (F32)((wide & 0x7fffu) << 13) * splat(0x1p112f);
  return (F32)((U32)value | ((wide & 0x8000u) << 16));
#endif
}

// acc += a.low * b.low + a.high * b.high in each lane of 32 bits, which hold two bfloat16; `b` is the same in all lanes.
inline F32 dot2(F32 acc, U32 a, uint32_t b) {
#if defined(__AVX512BF16__)
  return (F32)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)_mm512_set1_epi32((int)b));
#else
  float low, high;
  const uint32_t low_bits = b << 16, high_bits = b & 0xffff0000u;
  memcpy(&low, &low_bits, 4);
  memcpy(&high, &high_bits, 4);
  acc = fma((F32)(a << 16), splat(low), acc);
  return fma((F32)(a & 0xffff0000u), splat(high), acc);
#endif
}

// ------------------------------------------------------------------------------------------------- integer products

// acc += sum over 4 bytes of w (unsigned) * a (signed; the same 4 bytes for all lanes), exactly. `SMALL`: no w is above 15.
template <bool SMALL>
inline I32 dot4(I32 acc, U8 w, int32_t a) {
#if defined(__AVX512VNNI__)
  return (I32)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(a));
#elif defined(__AVX2__)
  const __m256i four = _mm256_set1_epi32(a), ones = _mm256_set1_epi16(1), bytes = _mm256_set1_epi16(0xff);
  __m256i halves[2], sums[2];
  memcpy(halves, &w, sizeof w);
  memcpy(sums, &acc, sizeof acc);
  for (int i = 0; i < 2; i++) {
    if constexpr (SMALL) {  // 2 * 15 * 127 fits 16 bits
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(halves[i], four), ones));
    } else {
      const __m256i even = _mm256_madd_epi16(_mm256_and_si256(halves[i], bytes), _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8));
      const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(halves[i], 8), _mm256_srai_epi16(four, 8));
      sums[i] = _mm256_add_epi32(sums[i], _mm256_add_epi32(even, odd));
    }
  }
  memcpy(&acc, sums, sizeof acc);
  return acc;
#else
  const I32 whole = (I32)w;
  for (int i = 0; i < 4; i++) acc += ((whole >> (8 * i)) & 0xff) * splat((int32_t)(int8_t)(a >> (8 * i)));
  return acc;
#endif
}

// acc += a * b, where both fit 16 bits and a is not negative
inline I32 multiply_short(I32 acc, I32 a, int32_t b) {
#if defined(__AVX512VNNI__)
  return (I32)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, _mm512_set1_epi32(b));
#else
  return acc + a * splat(b);
#endif
}

// ------------------------------------------------------------------------------------------------- functions

// 2^x within 2 units in the last place, or `ROUGH`: within 1 in 380,000 (a polynomial of the least largest error, by Remez), for what
// will be rounded to bfloat16. 0 far below, infinity far above, NaN for NaN.
template <bool ROUGH = false>
inline F32 power_of_two(F32 x) {
#if defined(__AVX512F__)
  const F32 n = (F32)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const F32 r = x - n;
#else
  const F32 bounded = at_most(at_least(x, -126.0f), 128.0f);
  const F32 n = __builtin_elementwise_roundeven(bounded), r = bounded - n;
#endif
  F32 p;
  if constexpr (ROUGH) {
    p = splat(9.570101909e-3f);
    p = fma(p, r, splat(5.591786032e-2f));
    p = fma(p, r, splat(2.402474483e-1f));
    p = fma(p, r, splat(6.931218147e-1f));
    p = fma(p, r, splat(9.999992614e-1f));
  } else {
    p = splat(1.535336188319500e-4f);
    p = fma(p, r, splat(1.339887440266574e-3f));
    p = fma(p, r, splat(9.618437357674640e-3f));
    p = fma(p, r, splat(5.550332471162809e-2f));
    p = fma(p, r, splat(2.402264791363012e-1f));
    p = fma(p, r, splat(6.931472028550421e-1f));
    p = fma(p, r, splat(1.0f));
  }
#if defined(__AVX512F__)
  return (F32)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  // 2^n in two steps, for n = 128 has no float of its own. A NaN's n is any number; the product is NaN all the same.
  const I32 whole = __builtin_convertvector(x == x ? n : F32{}, I32), half = whole >> 1;
  const F32 scaled = p * (F32)((half + 127) << 23) * (F32)((whole - half + 127) << 23);
  return x < splat(-126.0f) ? F32{} : scaled;
#endif
}

// 1 / x within 2 units in the last place, for x from 2^-100 to 2^100 or NaN: a division takes three times as long.
inline F32 inverse(F32 x) {
#if defined(__AVX512F__)
  const F32 near = (F32)_mm512_rcp14_ps((__m512)x);
  return fma(near, fma(-x, near, splat(1.0f)), near);
#else
  return splat(1.0f) / x;
#endif
}

constexpr float LOG2_E = 1.44269504f;

inline F32 exponential(F32 x) { return power_of_two(x * splat(LOG2_E)); }

inline F32 hyperbolic_tangent(F32 x) {
  const F32 bounded = at_most(at_least(x, -15.0f), 15.0f);
  return splat(1.0f) - splat(2.0f) / (exponential(bounded + bounded) + splat(1.0f));
}

inline F32 softcapped(F32 x, float cap) { return cap > 0 ? splat(cap) * hyperbolic_tangent(x / splat(cap)) : x; }

}  // namespace
