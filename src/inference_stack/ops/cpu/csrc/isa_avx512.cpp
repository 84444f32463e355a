#include "kernels.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define ISTACK_ISA avx512
#define ISTACK_AVX512
#include "isa.inc"

namespace istack {
const Kernels* avx512_kernels() {
  static constexpr Kernels kernels = avx512::make("avx512vnni");
  const bool able = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vnni");
  return able ? &kernels : nullptr;
}
}  // namespace istack
#else
namespace istack {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace istack
#endif
