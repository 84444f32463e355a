#define ISTACK_ISA portable
#include "isa.inc"

namespace istack {
const Kernels* portable_kernels() {
  static constexpr Kernels kernels = portable::make("portable");
  return &kernels;
}
}  // namespace istack
