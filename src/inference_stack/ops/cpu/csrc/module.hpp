// What the Python side holds.
#pragma once

#include <nanobind/nanobind.h>

#include "attention_entries.hpp"
#include "entries.hpp"
#include "pool.hpp"
#include "weights.hpp"

namespace nb = nanobind;

namespace istack {

using Address = uintptr_t;  // of raw memory that the caller keeps alive and in place; 0 for none

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// A tape in the making, and then to replay: entries, and the scratch memory they share.
struct Recording {
  Recording(const Kernels* kernels, int64_t most_tokens, int64_t most_samples)
      : kernels(kernels), most_tokens(most_tokens), most_samples(most_samples) {}
  int64_t most(Extent extent) const { return extent == Extent::tokens ? most_tokens : most_samples; }
  const Kernels* kernels;
  int64_t most_tokens, most_samples;
  Scratch scratch;
  bool profiling = false;
  std::vector<double> seconds;  // of each entry, summed over replays while profiling
  AttentionPlans plans;
  Tape tape;  // last: it ends first, and waits for threads that still look at it
};

// Throws std::invalid_argument where this build or this processor has none of that name.
const Kernels* kernels_named(const std::string& name);

void bind_attention(nb::module_& module, nb::class_<Recording>& tape);
void bind_sampling(nb::module_& module);

}  // namespace istack
