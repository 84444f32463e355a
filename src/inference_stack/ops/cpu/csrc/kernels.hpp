// The functions that exist once per ISA, and the data they share. All compute the same bits, whichever ISA (see simd.hpp).
// Included by every ISA's file: plain data only, since inline functions of the standard library would be linked from any of them.
#pragma once

#include <cstdint>

#include "attention.hpp"
#include "sample.hpp"

namespace istack {

// A weight [N, K] in tiles of 16 rows, so that a vector's lanes are 16 outputs and no sum crosses lanes.
//   quantised: per tile and group, (codes of 16 rows: per 4 columns 16 x 4 bytes; 4-bit: low nibbles are columns 0-3 of each 8, high
//              nibbles columns 4-7), then 16 scales, then 16 zeros if there are any. 8-bit codes are stored plus 128.
//   dense:     per tile and column, 16 values.
// Rows that fill up the last tile are zero.
enum class Form : int32_t { f32, f16, bf16, q4, q8 };

struct Weight {
  const uint8_t* data = nullptr;
  int64_t outputs = 0, inputs = 0, tile_bytes = 0;
  Form form = Form::f32;
  int32_t group = 0, block = 0;  // weights under one scale; activations under one scale
  bool has_zero = false, half = false;  // zeros; scales and zeros are fp16 instead of fp32
  const int32_t* order = nullptr;  // stored column k multiplies x[order[k]]
};

// Rows of activations as a quantised weight wants them; strides follow from K and block.
struct Activations {
  int8_t* codes;    // [rows, K]
  float* scale;     // [rows, K / block]
  float* scaled_sum;  // [rows, K / block]: scale times the sum of the codes
  int32_t* sum;     // [rows, K / block]
};

enum class Act : int32_t { silu, gelu_tanh };

struct Kernels {
  const char* name;
  // One row of activations. `row` is its place in `out`.
  void (*quantise)(const float* x, const Weight& w, const Activations& out, int64_t row);
  // y[m, 16 * tile ...] for rows m0 <= m < m1; bias may be null. y has `stride` floats from row to row.
  void (*linear_quantised)(const Weight& w, const Activations& a, int64_t tile, int64_t m0, int64_t m1, const float* bias,
                           float* y, int64_t stride);
  void (*linear_dense)(const Weight& w, const float* x, int64_t x_stride, int64_t tile, int64_t m0, int64_t m1,
                       const float* bias, float* y, int64_t stride);
  void (*weight_row)(const Weight& w, int64_t row, float scale, float* out);
  void (*rmsnorm)(const float* x, const float* weight, float eps, int64_t width, float* y);
  void (*add_rmsnorm)(const float* x, const float* residual, const float* weight, float eps, int64_t width, float* y,
                      float* sum);
  void (*act_mul)(const float* gate, const float* up, Act kind, int64_t width, float* y);
  AttentionKernels attention;
  SamplingKernels sampling;
};

const Kernels* portable_kernels();
const Kernels* avx2_kernels();    // null where this build or this processor lacks it
const Kernels* avx512_kernels();  // needs AVX-512 F, BW, DQ, VL and VNNI

}  // namespace istack
