// Weights in the kernels' layout, in memory of their own.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "kernels.hpp"

namespace istack {

// Hands out pieces of large blocks, which the system may back with huge pages: weights are read front to back in every step.
// Pieces are never given back one by one; all memory goes with the store.
class WeightStore {
 public:
  ~WeightStore();
  uint8_t* take(int64_t bytes);

 private:
  std::mutex mutex_;
  std::vector<std::pair<uint8_t*, int64_t>> blocks_;
  int64_t used_ = 0;
};

// A weight in canonical group-quantised form (see ops/api.py); null pointers where a part is missing.
struct Canonical {
  const uint8_t* codes;
  const void* scale;
  const void* zero;
  const int32_t* order;
  int64_t outputs, inputs;
  int32_t bits, group, block;
  bool half;
};

Weight pack(WeightStore& store, const Canonical& weight);
// `data` is [outputs, inputs] in `form`.
Weight pack_dense(WeightStore& store, const void* data, int64_t outputs, int64_t inputs, Form form);
int64_t packed_bytes(const Weight& weight);

}  // namespace istack
