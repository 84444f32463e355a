// The operations of a model step as tape entries, but for attention and sampling, which have files of their own.
#pragma once

#include "kernels.hpp"
#include "step.hpp"

namespace istack {

// fp32 rows at a fixed address: row i begins `stride` floats after row i-1.
struct Rows {
  float* data;
  int64_t stride;
  float* row(int64_t i) const { return data + i * stride; }
};

// Quantised activations of the projection in hand. One place serves a whole tape: it is read before the next is written.
class Scratch {
 public:
  Activations reserve(int64_t rows, const Weight& weight);
  size_t bytes() const;

 private:
  std::vector<std::unique_ptr<uint8_t[]>> memory_;  // smaller ones stay: earlier entries point there
  std::vector<size_t> sizes_;
};

std::unique_ptr<Entry> make_embed(const Kernels&, const int64_t* tokens, const Weight&, float scale, Rows out);
std::unique_ptr<RowEntry> make_rmsnorm(const Kernels&, Extent, Rows x, const float* weight, float eps, int64_t width, Rows y);
std::unique_ptr<RowEntry> make_add_rmsnorm(const Kernels&, Extent, Rows x, Rows residual, const float* weight, float eps,
                                           int64_t width, Rows y, Rows sum);
std::unique_ptr<RowEntry> make_act_mul(const Kernels&, Extent, Rows gate_up, Act, int64_t width, Rows y);
std::unique_ptr<Entry> make_select(const int64_t* rows, Rows x, int64_t width, Rows y);
// A projection is one entry, or two when activations are quantised: the first joins what made x, when that is a RowEntry.
void add_linear(Tape&, const Kernels&, Scratch&, int64_t most_rows, Extent, Rows x, const Weight&, const float* bias, Rows y);

}  // namespace istack
