// Sixteen floats at a time, with one meaning on every processor.
//
// F is one AVX-512 register, two AVX2 registers, or an array. Each function below rounds each lane in the same way whichever it is,
// and reductions add lanes in one fixed tree. A kernel written with F alone therefore gives the same bits on every ISA.
// This header is compiled once per ISA, inside that ISA's namespace (see kernels_isa.inc).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace istack {
namespace ISTACK_ISA {

constexpr int LANES = 16;

// ---- what differs by ISA: load, store, arithmetic ----------------------------------------------------------------------------

#if defined(ISTACK_AVX512)

struct F { __m512 v; };
inline F set1(float x) { return {_mm512_set1_ps(x)}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
inline F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c, rounded once
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }              // b where a lane is NaN
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }              // b where a lane is NaN
inline F sqrt(F a) { return {_mm512_sqrt_ps(a.v)}; }
inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
inline F less(F a, F b, F yes, F no) {  // a < b ? yes : no
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
inline F load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline void store_f16(uint16_t* p, F a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F load_bf16(const uint16_t* p) {
  __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(w, 16))};
}
inline F load_i8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))};
}
inline void store_i8(int8_t* p, F a) {  // whole numbers within int8
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
inline F scale2(F p, F n) { return {_mm512_scalef_ps(p.v, n.v)}; }  // p 2^n, rounded once, for whole n in -126 … 127
// 2^n for whole n in -126 … 127
inline F exp2_whole(F n) {
  __m512i bits = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
  return {_mm512_castsi512_ps(bits)};
}

#elif defined(ISTACK_AVX2)

struct F { __m256 a, b; };
#define ISTACK_BOTH(expression_a, expression_b) return {expression_a, expression_b}
inline F set1(float x) { ISTACK_BOTH(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
inline F load(const float* p) { ISTACK_BOTH(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
inline F add(F x, F y) { ISTACK_BOTH(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)); }
inline F sub(F x, F y) { ISTACK_BOTH(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)); }
inline F mul(F x, F y) { ISTACK_BOTH(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)); }
inline F div(F x, F y) { ISTACK_BOTH(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)); }
inline F fma(F x, F y, F z) { ISTACK_BOTH(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)); }
inline F max(F x, F y) { ISTACK_BOTH(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)); }
inline F min(F x, F y) { ISTACK_BOTH(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)); }
inline F sqrt(F x) { ISTACK_BOTH(_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)); }
inline F round(F x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  ISTACK_BOTH(_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode));
}
inline F abs(F x) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  ISTACK_BOTH(_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask));
}
inline F less(F x, F y, F yes, F no) {
  ISTACK_BOTH(_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
              _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)));
}
inline F load_f16(const uint16_t* p) {
  ISTACK_BOTH(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
              _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8))));
}
inline void store_f16(uint16_t* p, F x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, mode));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, mode));
}
inline __m256 bf16_half(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline F load_bf16(const uint16_t* p) { ISTACK_BOTH(bf16_half(p), bf16_half(p + 8)); }
inline __m256 i8_half(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
inline F load_i8(const int8_t* p) { ISTACK_BOTH(i8_half(p), i8_half(p + 8)); }
inline void store_i8(int8_t* p, F x) {
  __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
  words = _mm256_permute4x64_epi64(words, 0xD8);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline __m256 exp2_half(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline F exp2_whole(F n) { ISTACK_BOTH(exp2_half(n.a), exp2_half(n.b)); }
inline F scale2(F p, F n) { return mul(p, exp2_whole(n)); }
#undef ISTACK_BOTH

#else  // portable: plain C++, compiled for the baseline of the architecture

struct F { float v[LANES]; };
template <class Op>
inline F lanes(Op op) {
  F out;
  for (int i = 0; i < LANES; i++) out.v[i] = op(i);
  return out;
}
inline F set1(float x) { return lanes([=](int) { return x; }); }
inline F load(const float* p) { F out; std::memcpy(out.v, p, sizeof out.v); return out; }
inline void store(float* p, F a) { std::memcpy(p, a.v, sizeof a.v); }
inline F add(F a, F b) { return lanes([&](int i) { return a.v[i] + b.v[i]; }); }
inline F sub(F a, F b) { return lanes([&](int i) { return a.v[i] - b.v[i]; }); }
inline F mul(F a, F b) { return lanes([&](int i) { return a.v[i] * b.v[i]; }); }
inline F div(F a, F b) { return lanes([&](int i) { return a.v[i] / b.v[i]; }); }
inline F fma(F a, F b, F c) { return lanes([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); }); }
inline F max(F a, F b) { return lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline F min(F a, F b) { return lanes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline F sqrt(F a) { return lanes([&](int i) { return std::sqrt(a.v[i]); }); }
inline F round(F a) { return lanes([&](int i) { return std::nearbyint(a.v[i]); }); }
inline F abs(F a) { return lanes([&](int i) { return std::fabs(a.v[i]); }); }
inline F less(F a, F b, F yes, F no) { return lanes([&](int i) { return a.v[i] < b.v[i] ? yes.v[i] : no.v[i]; }); }
inline float f16_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
  uint32_t bits;
  if (exponent == 31) bits = sign | 0x7f800000 | (mantissa << 13) | (mantissa ? 0x00400000 : 0);
  else if (exponent) bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  else {
    float tiny = float(mantissa) * 0x1p-24f;
    std::memcpy(&bits, &tiny, 4);
    bits |= sign;
  }
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline uint16_t float_to_f16(float x) {  // to nearest, ties to even, as the hardware converts
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return uint16_t(sign | 0x7e00 | ((bits >> 13) & 0x1ff));
  if (bits >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (bits < 0x38800000) {  // a subnormal half: the sum rounds at the right place
    float whole;
    std::memcpy(&whole, &bits, 4);
    const float shifted = whole + 0.5f;
    uint32_t low;
    std::memcpy(&low, &shifted, 4);
    return uint16_t(sign | (low - 0x3f000000));
  }
  const uint32_t odd = (bits >> 13) & 1;
  return uint16_t(sign | ((bits - 0x38000000 + 0xfff + odd) >> 13));
}
inline F load_f16(const uint16_t* p) { return lanes([&](int i) { return f16_to_float(p[i]); }); }
inline void store_f16(uint16_t* p, F a) { for (int i = 0; i < LANES; i++) p[i] = float_to_f16(a.v[i]); }
inline F load_bf16(const uint16_t* p) {
  return lanes([&](int i) { uint32_t bits = uint32_t(p[i]) << 16; float out; std::memcpy(&out, &bits, 4); return out; });
}
inline F load_i8(const int8_t* p) { return lanes([&](int i) { return float(p[i]); }); }
inline void store_i8(int8_t* p, F a) { for (int i = 0; i < LANES; i++) p[i] = int8_t(a.v[i]); }
inline F exp2_whole(F n) {
  return lanes([&](int i) { uint32_t bits = uint32_t(int(n.v[i]) + 127) << 23; float out; std::memcpy(&out, &bits, 4); return out; });
}

inline F scale2(F p, F n) { return mul(p, exp2_whole(n)); }

#endif

// ---- what follows from the above, equal everywhere -----------------------------------------------------------------------------

inline F zero() { return set1(0.0f); }

// The first n lanes from memory, the others `fill`. Never reads beyond p[n-1].
inline F load_n(const float* p, int64_t n, float fill = 0.0f) {
  if (n >= LANES) return load(p);
  float whole[LANES];
  for (int i = 0; i < LANES; i++) whole[i] = i < n ? p[i] : fill;
  return load(whole);
}
inline void store_n(float* p, F a, int64_t n) {
  if (n >= LANES) return store(p, a);
  float whole[LANES];
  store(whole, a);
  for (int i = 0; i < n; i++) p[i] = whole[i];
}
inline F load_f16_n(const uint16_t* p, int64_t n) {
  if (n >= LANES) return load_f16(p);
  uint16_t whole[LANES] = {};
  for (int i = 0; i < n; i++) whole[i] = p[i];
  return load_f16(whole);
}
inline F load_bf16_n(const uint16_t* p, int64_t n) {
  if (n >= LANES) return load_bf16(p);
  uint16_t whole[LANES] = {};
  for (int i = 0; i < n; i++) whole[i] = p[i];
  return load_bf16(whole);
}
// bfloat16, to nearest, ties to even; NaN stays NaN.
inline uint16_t float_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline void store_bf16(uint16_t* p, F a) {
  float whole[LANES];
  store(whole, a);
  for (int i = 0; i < LANES; i++) p[i] = float_to_bf16(whole[i]);
}

// Sum and maximum of the lanes, in a fixed tree: i with i+8, then i+4, i+2, i+1.
#if defined(ISTACK_AVX512) || defined(ISTACK_AVX2)
inline __m256 lower(F a) {
#if defined(ISTACK_AVX512)
  return _mm512_castps512_ps256(a.v);
#else
  return a.a;
#endif
}
inline __m256 upper(F a) {
#if defined(ISTACK_AVX512)
  return _mm512_extractf32x8_ps(a.v, 1);
#else
  return a.b;
#endif
}
inline float sum(F a) {
  const __m256 eight = _mm256_add_ps(lower(a), upper(a));
  __m128 v = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
}
inline float largest(F a) {
  const __m256 eight = _mm256_max_ps(lower(a), upper(a));
  __m128 v = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  v = _mm_max_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)));
}
#else
inline float sum(F a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; i++) a.v[i] = a.v[i] + a.v[i + half];
  return a.v[0];
}
inline float largest(F a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; i++) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  return a.v[0];
}
#endif

// e^x 2^-n for n near x / ln 2: with r = x - n ln 2, |r| ≤ ln 2 / 2, a polynomial in r.
inline F exp_rest(F x, F n) {
  F r = fma(n, set1(-0.693145752f), x);
  r = fma(n, set1(-1.42860677e-6f), r);
  F p = set1(1.98756915e-4f);
  p = fma(p, r, set1(1.39819995e-3f));
  p = fma(p, r, set1(8.33345205e-3f));
  p = fma(p, r, set1(4.16657962e-2f));
  p = fma(p, r, set1(1.66666657e-1f));
  p = fma(p, r, set1(0.5f));
  return fma(mul(r, r), p, add(r, set1(1.0f)));
}

// e^x to 1 ulp or so. Below -87.3 it is 0; above 88.7 infinity.
inline F exp(F x) {
  const F low = set1(-87.33654f), high = set1(88.72283f);
  const F n = round(mul(min(max(x, low), high), set1(1.44269504f)));
  const F n_safe = min(n, set1(127.0f));
  F p = mul(mul(exp_rest(x, n), exp2_whole(n_safe)), exp2_whole(sub(n, n_safe)));
  p = less(x, low, zero(), p);
  return less(high, x, set1(INFINITY), p);  // NaN came through the rest
}

// The same bits for x ≤ 0, in fewer instructions.
inline F exp_below(F x) {
  const F low = set1(-87.33654f);
  const F n = round(mul(max(x, low), set1(1.44269504f)));
  return less(x, low, zero(), scale2(exp_rest(x, n), n));
}

}  // namespace ISTACK_ISA
}  // namespace istack
