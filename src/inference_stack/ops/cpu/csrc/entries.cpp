#include "entries.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace istack {

namespace {

constexpr int64_t LANES = 16;
constexpr int64_t ROWS_PER_CHUNK = 128;      // activations of a chunk stay in the second-level cache
constexpr int64_t STREAMED_ROWS = 8;         // with more, multiplying takes longer than reading
constexpr int64_t BYTES_PER_CLAIM = 96 << 10;  // of weights, a few microseconds' worth of reading

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Embed : public RowEntry {
 public:
  Embed(const Kernels& k, const int64_t* tokens, const Weight& table, float scale, Rows out)
      : RowEntry(Extent::tokens), k_(k), tokens_(tokens), table_(table), scale_(scale), out_(out) {}
  void run_rows(const Step&, int64_t begin, int64_t end) const override {
    for (int64_t i = begin; i < end; i++) k_.weight_row(table_, tokens_[i], scale_, out_.row(i));
  }
  const char* name() const override { return "embed"; }

 private:
  const Kernels& k_;
  const int64_t* tokens_;
  Weight table_;
  float scale_;
  Rows out_;
};

class RmsNorm : public RowEntry {
 public:
  RmsNorm(const Kernels& k, Extent extent, Rows x, const float* weight, float eps, int64_t width, Rows y)
      : RowEntry(extent), k_(k), x_(x), weight_(weight), eps_(eps), width_(width), y_(y) {}
  void run_rows(const Step&, int64_t begin, int64_t end) const override {
    for (int64_t i = begin; i < end; i++) k_.rmsnorm(x_.row(i), weight_, eps_, width_, y_.row(i));
  }
  const char* name() const override { return "rmsnorm"; }

 private:
  const Kernels& k_;
  Rows x_;
  const float* weight_;
  float eps_;
  int64_t width_;
  Rows y_;
};

class AddRmsNorm : public RowEntry {
 public:
  AddRmsNorm(const Kernels& k, Extent extent, Rows x, Rows residual, const float* weight, float eps, int64_t width, Rows y,
             Rows sum)
      : RowEntry(extent), k_(k), x_(x), residual_(residual), weight_(weight), eps_(eps), width_(width), y_(y), sum_(sum) {}
  void run_rows(const Step&, int64_t begin, int64_t end) const override {
    for (int64_t i = begin; i < end; i++)
      k_.add_rmsnorm(x_.row(i), residual_.row(i), weight_, eps_, width_, y_.row(i), sum_.row(i));
  }
  const char* name() const override { return "add_rmsnorm"; }

 private:
  const Kernels& k_;
  Rows x_, residual_;
  const float* weight_;
  float eps_;
  int64_t width_;
  Rows y_, sum_;
};

class ActMul : public RowEntry {
 public:
  ActMul(const Kernels& k, Extent extent, Rows gate_up, Act kind, int64_t width, Rows y)
      : RowEntry(extent), k_(k), gate_up_(gate_up), kind_(kind), width_(width), y_(y) {}
  void run_rows(const Step&, int64_t begin, int64_t end) const override {
    for (int64_t i = begin; i < end; i++)
      k_.act_mul(gate_up_.row(i), gate_up_.row(i) + width_, kind_, width_, y_.row(i));
  }
  const char* name() const override { return "act_mul"; }

 private:
  const Kernels& k_;
  Rows gate_up_;
  Act kind_;
  int64_t width_;
  Rows y_;
};

class Select : public RowEntry {
 public:
  Select(const int64_t* rows, Rows x, int64_t width, Rows y)
      : RowEntry(Extent::samples), rows_(rows), x_(x), width_(width), y_(y) {}
  void run_rows(const Step&, int64_t begin, int64_t end) const override {
    for (int64_t i = begin; i < end; i++) std::memcpy(y_.row(i), x_.row(rows_[i]), width_ * sizeof(float));
  }
  const char* name() const override { return "select"; }

 private:
  const int64_t* rows_;
  Rows x_;
  int64_t width_;
  Rows y_;
};

class Quantise : public RowEntry {
 public:
  Quantise(const Kernels& k, Extent extent, Rows x, const Weight& weight, const Activations& out)
      : RowEntry(extent), k_(k), x_(x), weight_(weight), out_(out) {}
  void run_rows(const Step&, int64_t begin, int64_t end) const override {
    for (int64_t i = begin; i < end; i++) k_.quantise(x_.row(i), weight_, out_, i);
  }
  const char* name() const override { return "quantise"; }

 private:
  const Kernels& k_;
  Rows x_;
  Weight weight_;
  Activations out_;
};

// Tiles are ranges of weight tiles times chunks of rows. How they are cut changes no bit.
class LinearBase : public Entry {
 public:
  LinearBase(const Kernels& k, Extent extent, const Weight& weight, const float* bias, Rows y)
      : k_(k), extent_(extent), weight_(weight), bias_(bias), y_(y) {}
  int64_t plan(const Step& step, int threads) override {
    const int64_t rows = count(step, extent_), tiles = ceil_div(weight_.outputs, LANES);
    const int64_t most = std::max<int64_t>(1, BYTES_PER_CLAIM / weight_.tile_bytes);
    per_claim_ = std::clamp<int64_t>(tiles / (threads * 4), 1, rows > 8 ? std::min<int64_t>(most, 8) : most);
    claims_ = ceil_div(tiles, per_claim_);
    stream_ = rows > 0 && rows <= STREAMED_ROWS ? Stream{weight_.data, tiles * weight_.tile_bytes} : Stream{};
    return rows == 0 ? 0 : claims_ * ceil_div(rows, ROWS_PER_CHUNK);
  }
  void run(const Step& step, int64_t tile) const override {
    const int64_t m0 = tile / claims_ * ROWS_PER_CHUNK, m1 = std::min(m0 + ROWS_PER_CHUNK, count(step, extent_));
    const int64_t first = tile % claims_ * per_claim_;
    const int64_t last = std::min(first + per_claim_, ceil_div(weight_.outputs, LANES));
    for (int64_t n = first; n < last; n++) run_tile(n, m0, m1);
  }
  const char* name() const override { return "linear"; }
  Stream stream() const override { return stream_; }

 protected:
  virtual void run_tile(int64_t n, int64_t m0, int64_t m1) const = 0;
  const Kernels& k_;
  Extent extent_;
  Weight weight_;
  const float* bias_;
  Rows y_;
  int64_t per_claim_ = 1, claims_ = 1;
  Stream stream_;
};

class DenseLinear : public LinearBase {
 public:
  DenseLinear(const Kernels& k, Extent extent, Rows x, const Weight& weight, const float* bias, Rows y)
      : LinearBase(k, extent, weight, bias, y), x_(x) {}
  void run_tile(int64_t n, int64_t m0, int64_t m1) const override {
    k_.linear_dense(weight_, x_.data, x_.stride, n, m0, m1, bias_, y_.data, y_.stride);
  }

 private:
  Rows x_;
};

class QuantisedLinear : public LinearBase {
 public:
  QuantisedLinear(const Kernels& k, Extent extent, const Activations& x, const Weight& weight, const float* bias, Rows y)
      : LinearBase(k, extent, weight, bias, y), x_(x) {}
  void run_tile(int64_t n, int64_t m0, int64_t m1) const override {
    k_.linear_quantised(weight_, x_, n, m0, m1, bias_, y_.data, y_.stride);
  }

 private:
  Activations x_;
};

}  // namespace

Activations Scratch::reserve(int64_t rows, const Weight& weight) {
  const int64_t blocks = rows * (weight.inputs / weight.block);
  const int64_t codes = ceil_div(rows * weight.inputs, 64) * 64, column = ceil_div(blocks * 4, 64) * 64;
  const size_t size = size_t(codes + 3 * column + 64);
  if (sizes_.empty() || size > sizes_.back()) {
    memory_.push_back(std::make_unique_for_overwrite<uint8_t[]>(size));
    sizes_.push_back(size);
  }
  uint8_t* base = memory_.back().get();
  base += -reinterpret_cast<uintptr_t>(base) & 63;
  Activations out;
  out.codes = reinterpret_cast<int8_t*>(base);
  out.scale = reinterpret_cast<float*>(base + codes);
  out.scaled_sum = reinterpret_cast<float*>(base + codes + column);
  out.sum = reinterpret_cast<int32_t*>(base + codes + 2 * column);
  return out;
}

size_t Scratch::bytes() const { return std::accumulate(sizes_.begin(), sizes_.end(), size_t(0)); }

std::unique_ptr<Entry> make_embed(const Kernels& k, const int64_t* tokens, const Weight& table, float scale, Rows out) {
  return std::make_unique<Embed>(k, tokens, table, scale, out);
}
std::unique_ptr<RowEntry> make_rmsnorm(const Kernels& k, Extent extent, Rows x, const float* weight, float eps,
                                       int64_t width, Rows y) {
  return std::make_unique<RmsNorm>(k, extent, x, weight, eps, width, y);
}
std::unique_ptr<RowEntry> make_add_rmsnorm(const Kernels& k, Extent extent, Rows x, Rows residual, const float* weight,
                                           float eps, int64_t width, Rows y, Rows sum) {
  return std::make_unique<AddRmsNorm>(k, extent, x, residual, weight, eps, width, y, sum);
}
std::unique_ptr<RowEntry> make_act_mul(const Kernels& k, Extent extent, Rows gate_up, Act kind, int64_t width, Rows y) {
  return std::make_unique<ActMul>(k, extent, gate_up, kind, width, y);
}
std::unique_ptr<Entry> make_select(const int64_t* rows, Rows x, int64_t width, Rows y) {
  return std::make_unique<Select>(rows, x, width, y);
}

void add_linear(Tape& tape, const Kernels& k, Scratch& scratch, int64_t most_rows, Extent extent, Rows x,
                const Weight& weight, const float* bias, Rows y) {
  if (weight.form != Form::q4 && weight.form != Form::q8) {
    tape.add(std::make_unique<DenseLinear>(k, extent, x, weight, bias, y));
    return;
  }
  const Activations quantised = scratch.reserve(most_rows, weight);
  tape.add_following(std::make_unique<Quantise>(k, extent, x, weight, quantised));
  tape.add(std::make_unique<QuantisedLinear>(k, extent, quantised, weight, bias, y));
}

}  // namespace istack
