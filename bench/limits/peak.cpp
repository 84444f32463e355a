// What this processor can do at most, with nothing but the operation itself: no loads, no stores, independent chains.
//
// Prints one `name value` a line: giga-operations a second of all threads together (a multiply and an add count as two), or GB/s.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr int CHAINS = 10, PASSES = 400'000, TRIES = 12;

// The best of some tries of `work` on every thread at once, as units per second / 1e9.
template <class Work>
double best(int threads, double units, Work work) {
  double seconds = 1e9;
  for (int i = 0; i < TRIES; i++) {
    const auto began = Clock::now();
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; t++) pool.emplace_back([&, t] { work(t); });
    for (auto& one : pool) one.join();
    seconds = std::min(seconds, std::chrono::duration<double>(Clock::now() - began).count());
  }
  return units * threads / seconds / 1e9;
}

// Makes a value unknown to the compiler, which would otherwise compute equal chains once.
template <class Vector>
void keep(Vector&& value) {
  asm volatile("" : "+x"(value));
}

#if defined(__AVX512F__)
using Floats = __m512;
using Ints = __m512i;
Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
#else
using Floats = __m256;
using Ints = __m256i;
Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
#endif

void floats(int) {
  Floats a[CHAINS]{}, b{}, c{};
  keep(b), keep(c);
  for (int i = 0; i < PASSES; i++) {
#pragma GCC unroll 10
    for (int j = 0; j < CHAINS; j++) keep(a[j] = multiply_add(a[j], b, c));
  }
}

// One product of 4 bytes and 4 bytes in every 32-bit lane, added to it: the instruction, or its AVX2 spelling.
Ints dot(Ints acc, Ints a, Ints b, [[maybe_unused]] Ints ones) {
#if defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(acc, a, b);
#elif defined(__AVX512BW__)
  return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), ones));
#else
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
#endif
}

void bytes(int) {
  Ints acc[CHAINS]{}, a{}, b{}, ones{};
  keep(a), keep(b), keep(ones);
  for (int i = 0; i < PASSES; i++) {
#pragma GCC unroll 10
    for (int j = 0; j < CHAINS; j++) keep(acc[j] = dot(acc[j], a, b, ones));
  }
}

// A block of a 4-bit projection as the kernels define it, for one row and a vector of outputs: 32 columns of integer products,
// then its scale, the row's scale and the zero point in fp32.
void blocks(int) {
  Ints acc[CHAINS]{}, a{}, b{}, ones{};
  Floats sum[CHAINS]{}, scale{}, low{}, row{};
  keep(a), keep(b), keep(ones), keep(scale), keep(low), keep(row);
  for (int i = 0; i < PASSES / 8; i++) {
#pragma GCC unroll 10
    for (int j = 0; j < CHAINS; j++) {
      acc[j] = Ints{};
      for (int quad = 0; quad < 8; quad++) keep(acc[j] = dot(acc[j], a, b, ones));
#if defined(__AVX512F__)
      const Floats whole = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[j]), scale);
#else
      const Floats whole = _mm256_mul_ps(_mm256_cvtepi32_ps(acc[j]), scale);
#endif
      keep(sum[j] = multiply_add(low, row, multiply_add(whole, row, sum[j])));
    }
  }
}

double reading(int threads) {
  const size_t size = size_t(1) << 29, share = size / threads / 256 * 256;
  auto* memory = static_cast<uint8_t*>(std::aligned_alloc(64, size));
  std::fill(memory, memory + size, uint8_t(1));
  const double found = best(threads, double(share), [&](int thread) {
    const uint8_t* p = memory + thread * share;
    for (const uint8_t* end = p + share; p < end; p += 4 * sizeof(Floats))
      for (int i = 0; i < 4; i++) {
        Floats value = *reinterpret_cast<const Floats*>(p + i * sizeof(Floats));
        keep(value);
      }
  });
  std::free(memory);
  return found;
}

}  // namespace

// Built for one instruction set at a time; -Wno-uninitialized is for gcc's own header.
int main(int count, char** words) {
  const int threads = count > 1 ? std::atoi(words[1]) : int(std::thread::hardware_concurrency());
  const double lanes = sizeof(Floats) / sizeof(float), products = double(PASSES) * CHAINS * lanes;
  std::printf("float_gops %.1f\n", best(threads, products * 2, floats));
  std::printf("int8_gops %.1f\n", best(threads, products * 4 * 2, bytes));
  std::printf("w4_block_gops %.1f\n", best(threads, products * 4 * 2, blocks));
  std::printf("read_gb_per_s %.1f\n", reading(threads));
}
