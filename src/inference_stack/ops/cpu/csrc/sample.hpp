// Choosing tokens: what the kernels and their caller share. Seen by every ISA's file, so plain data only.
#pragma once

#include <cstdint>

namespace istack {

constexpr int64_t DRAW_CHUNK = 64;  // tokens; tempered rows are padded to a multiple of it with -infinity
constexpr int LEVELS = 3;           // thresholds that one pass over a row compares with

// The largest of a row and the first place where it is. `finite`: nothing in the row is NaN or +infinity.
struct Peak {
  float value;
  int64_t token;
  bool finite;
};

// The last token that may be drawn, in the order of the samplers: by value, highest first, then by id.
struct Cut {
  float value;
  int64_t token;
};

// What noise is a function of, beside the token: Philox4x32-10 under key (seed_low, seed_high), counter (token / 4, position,
// choice, 0); token % 4 picks the word.
struct NoiseKey {
  uint32_t seed_low, seed_high, position, choice;
};

// Rows named y are tempered: highest value 0, none above; rows named x are any. w holds e^y rounded to fp32.
struct SamplingKernels {
  Peak (*peak)(const float* x, int64_t n);
  // z = -infinity where bit i % 32 of word i / 32 is 0.
  void (*allow)(const uint32_t* bits, int64_t n, float* z);
  // y = (x - top) / temperature, and the padding.
  void (*temper)(const float* x, int64_t n, float top, float temperature, float* y);
  // w; returns the sum of e^y in float64.
  double (*weigh)(const float* y, int64_t n, float* w);
  // How many weights are at least each threshold, and about what they sum to (relative error below 5e-6).
  void (*above)(const float* w, int64_t n, const float* thresholds, double* sums, double* counts);
  // The sum in float64 of e^y where w >= threshold.
  double (*weight_above)(const float* y, const float* w, int64_t n, float threshold);
  // The ids, ascending, where low <= x < high; returns how many.
  int64_t (*collect)(const float* x, int64_t n, float low, float high, int32_t* ids);
  // Maxima of disjoint groups of `vectors` values; returns how many groups. What is left at the row's end is in none.
  int64_t (*group_maxima)(const float* x, int64_t n, int64_t vectors, float* out);
  // Arg-max of y + noise among the tokens up to the cut, in float64, the lowest id among equals; `start` if none is above
  // -infinity. The search begins with `start`: the better it is, the less is looked at.
  int64_t (*draw)(const float* y, int64_t n, Cut cut, NoiseKey key, int64_t start);
  // The sum of e^(x - top).
  double (*exp_sum)(const float* x, int64_t n, float top);
  // How many tokens come before `token` by value, highest first, then by id.
  int64_t (*ahead)(const float* x, int64_t n, int64_t token);
};

}  // namespace istack
