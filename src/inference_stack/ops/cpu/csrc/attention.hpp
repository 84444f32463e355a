// Attention over the KV arena: what its kernels and entries share. Seen by every ISA's file, so plain data only: an inline function
// of the standard library here would be compiled for one ISA and linked for all.
#pragma once

#include <cstdint>

namespace istack {

constexpr int64_t BLOCK_TOKENS = 16;
constexpr int64_t KEY_TILE = 256;     // keys, at absolute positions, under one softmax maximum
constexpr int64_t MOST_HEAD_DIM = 1024;

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

// Splitting the fused projection, norms, rotation and the store: one layer's addresses.
struct RopeStore {
  const float* qkv;  // rows [(q_heads + 2 kv_heads) * head_dim]
  int64_t qkv_stride;
  float* q;  // rows [q_heads * head_dim]
  int64_t q_stride;
  const int64_t* positions;  // [T]
  const float* cosines;      // [positions, head_dim]
  const float* sines;
  const float* q_norm;  // [head_dim], or null
  const float* k_norm;
  float eps;
  int64_t q_heads;
  KvView kv;
  const int64_t* entries;  // [T], of the block that takes the token
  const int64_t* offsets;  // [T], its place there
};

// One layer's attention: its addresses and numbers.
struct Attention {
  const float* q;  // rows [q_heads * head_dim]
  int64_t q_stride;
  float* out;
  int64_t out_stride;
  const int64_t* entries;  // [R, entries_stride], of each row's blocks
  int64_t entries_stride;
  int64_t share;  // query heads of a KV head
  float scale, softcap;
  KvView kv;
};

// Consecutive queries of one row that are computed together, and the key tiles that any of them sees. With the query heads that
// share a KV head they are `count * share` vectors: query by query, in each query head by head.
struct QueryRun {
  int64_t row, token, count;  // its row, its first token, how many
  int64_t position;           // of the first
  int64_t first_tile, end_tile;
};

struct AttentionKernels {
  void (*rope_store)(const RopeStore& layer, int64_t token);
  // Attends to tiles begin … end-1 for one KV head. With `partials` it leaves each tile's result there, at its place among the
  // run's tiles; else the tiles are all that the run sees, and the output is written.
  void (*attend)(const Attention& layer, const QueryRun& run, int64_t head, int64_t begin, int64_t end, float* partials,
                 float* scratch);
  // Joins the partial results of all tiles of a run, in order, and writes the output.
  void (*join)(const Attention& layer, const QueryRun& run, int64_t head, const float* partials, float* scratch);
  int64_t (*scratch_floats)(int64_t vectors, int64_t head_dim);
  int64_t (*partial_floats)(int64_t head_dim);  // of one vector and tile
};

}  // namespace istack
