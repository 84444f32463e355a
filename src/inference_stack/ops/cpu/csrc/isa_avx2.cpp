#include "kernels.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define ISTACK_ISA avx2
#define ISTACK_AVX2
#include "isa.inc"

namespace istack {
const Kernels* avx2_kernels() {
  static constexpr Kernels kernels = avx2::make("avx2");
  const bool able = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return able ? &kernels : nullptr;
}
}  // namespace istack
#else
namespace istack {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace istack
#endif
