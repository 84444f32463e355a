// Attention over the KV arena: what its kernels and entries share. Seen by every ISA's file, so plain data only: an inline function
// of the standard library here would be compiled for one ISA and linked for all.
#pragma once

#include <cstdint>

namespace istack {

enum class KvForm : int32_t { f32, f16, bf16, i8 };

// One layer's KV memory. The unit behind block-table entry e starts at arena + e * granule + offset; per KV head it holds
// keys [head_dim][16 tokens], values [16 tokens][head_dim], and for i8 the tokens' scales fp16 [16] of keys, then of values.
struct KvView {
  uint8_t* arena = nullptr;
  int64_t offset = 0, granule = 0;
  int64_t kv_heads = 0, head_dim = 0;
  KvForm form = KvForm::f32;
  int64_t window = 0;  // in tokens; 0: none
};

struct AttentionKernels {};

}  // namespace istack
