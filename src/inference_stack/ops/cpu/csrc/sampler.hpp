// One token per row of logits: grammar, bias, penalties, bans, temperature, filters, arg-max of Gumbel-perturbed logits, and
// log-probabilities. Rows are independent; the tokens are those of ops/reference/sampler.py.
#pragma once

#include <mutex>

#include "kernels.hpp"
#include "pool.hpp"

namespace istack {

// (row, token) pairs, in any order.
struct Pairs {
  const int64_t* row = nullptr;
  const int64_t* token = nullptr;
  int64_t count = 0;
};

// What to report of the raw distribution: of `tokens` [S], with `width` alternatives. `wanted` may be null: all rows; where it is
// negative the row holds NaN, rank 0 and ids -1.
struct ScoreJob {
  int64_t rows = 0, vocab = 0, stride = 0, width = 0;
  const float* logits = nullptr;
  const int64_t* tokens = nullptr;
  const int64_t* wanted = nullptr;
  float* logprob = nullptr;  // null: no scores
  int64_t* rank = nullptr;
  int64_t* top_ids = nullptr;       // [S, width]
  float* top_logprobs = nullptr;    // [S, width]
};

// Columns are [S] as in ops/api.py's SampleInputs. A null `temperature`: all rows are greedy.
struct SampleJob {
  ScoreJob score;  // the logits too
  int64_t* chosen = nullptr;
  bool* finite = nullptr;
  const float* temperature = nullptr;
  const int64_t* top_k = nullptr;
  const float* top_p = nullptr;
  const float* min_p = nullptr;
  const int64_t* seed = nullptr;
  const int64_t* choice = nullptr;
  const int64_t* position = nullptr;
  Pairs history, bias, banned;
  const bool* history_is_output = nullptr;
  const float* bias_value = nullptr;
  const float* repetition = nullptr;
  const float* presence = nullptr;
  const float* frequency = nullptr;
  const uint32_t* allowed = nullptr;  // [S, allowed_words]
  int64_t allowed_words = 0;
};

// Memory for one row in hand.
struct SampleScratch;

class Sampler {
 public:
  Sampler(Pool& pool, const Kernels& kernels);
  ~Sampler();
  // Throws std::out_of_range for a pair whose row or token does not exist.
  void sample(const SampleJob& job);
  void score(const ScoreJob& job);

 private:
  template <class Work>
  void each_row(int64_t rows, const char* name, Work work);
  std::unique_ptr<SampleScratch> borrow();
  void give_back(std::unique_ptr<SampleScratch> scratch);

  Pool& pool_;
  const SamplingKernels& k_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<SampleScratch>> idle_;
};

}  // namespace istack
