#pragma once
namespace istack {
struct SamplingKernels {};
}  // namespace istack
