#include "weights.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace istack {

namespace {

constexpr int64_t LANES = 16, BLOCK_BYTES = 32 << 20, HUGE_PAGE = 2 << 20;

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Eight columns of one row: their low nibbles become columns 0-3, their high nibbles columns 4-7.
void spread_nibbles(const uint8_t* from, uint8_t* to) {
  to[0] = uint8_t((from[0] & 15) | (from[2] & 15) << 4);
  to[1] = uint8_t(from[0] >> 4 | (from[2] & 0xf0));
  to[2] = uint8_t((from[1] & 15) | (from[3] & 15) << 4);
  to[3] = uint8_t(from[1] >> 4 | (from[3] & 0xf0));
}

// The codes of one tile and group, in quads of columns: see Weight.
uint8_t* pack_codes(const Canonical& w, int64_t tile, int64_t g, int64_t lanes, uint8_t* out) {
  const int64_t vectors = w.group / (w.bits == 8 ? 4 : 8), row_bytes = w.inputs * w.bits / 8;
  if (lanes < LANES) std::memset(out, w.bits == 8 ? 128 : 0, vectors * 64);
  for (int64_t lane = 0; lane < lanes; lane++) {
    const uint8_t* from = w.codes + (tile * LANES + lane) * row_bytes + g * w.group * w.bits / 8;
    uint8_t* to = out + lane * 4;
    for (int64_t v = 0; v < vectors; v++, from += 4, to += 64) {
      if (w.bits == 4) {
        spread_nibbles(from, to);
      } else {
        uint32_t four;
        std::memcpy(&four, from, 4);
        four ^= 0x80808080u;
        std::memcpy(to, &four, 4);
      }
    }
  }
  return out + vectors * 64;
}

uint8_t* pack_column(const void* values, int64_t width, int64_t groups, int64_t tile, int64_t g, int64_t lanes, uint8_t* out) {
  std::memset(out, 0, LANES * width);
  const auto* from = static_cast<const uint8_t*>(values);
  for (int64_t lane = 0; lane < lanes; lane++)
    std::memcpy(out + lane * width, from + ((tile * LANES + lane) * groups + g) * width, width);
  return out + LANES * width;
}

}  // namespace

WeightStore::~WeightStore() {
  for (auto& [start, bytes] : blocks_) munmap(start, bytes);
}

uint8_t* WeightStore::take(int64_t bytes) {
  bytes = round_up(bytes, 64);
  std::lock_guard lock(mutex_);
  if (blocks_.empty() || used_ + bytes > blocks_.back().second) {
    const int64_t size = round_up(bytes > BLOCK_BYTES ? bytes : BLOCK_BYTES, HUGE_PAGE);
    void* start = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    madvise(start, size, MADV_HUGEPAGE);
#endif
    blocks_.emplace_back(static_cast<uint8_t*>(start), size);
    used_ = 0;
  }
  uint8_t* piece = blocks_.back().first + used_;
  used_ += bytes;
  return piece;
}

Weight pack(WeightStore& store, const Canonical& w) {
  const int64_t tiles = (w.outputs + LANES - 1) / LANES, groups = w.inputs / w.group, width = w.half ? 2 : 4;
  Weight out;
  out.outputs = w.outputs;
  out.inputs = w.inputs;
  out.form = w.bits == 4 ? Form::q4 : Form::q8;
  out.group = w.group;
  out.block = w.block;
  out.has_zero = w.zero != nullptr;
  out.half = w.half;
  out.tile_bytes = groups * (w.group * LANES * w.bits / 8 + LANES * width * (out.has_zero ? 2 : 1));
  uint8_t* to = store.take(tiles * out.tile_bytes);
  out.data = to;
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t lanes = std::min(LANES, w.outputs - tile * LANES);
    for (int64_t g = 0; g < groups; g++) {
      to = pack_codes(w, tile, g, lanes, to);
      to = pack_column(w.scale, width, groups, tile, g, lanes, to);
      if (w.zero) to = pack_column(w.zero, width, groups, tile, g, lanes, to);
    }
  }
  if (w.order) {
    auto* order = reinterpret_cast<int32_t*>(store.take(w.inputs * 4));
    std::memcpy(order, w.order, w.inputs * 4);
    out.order = order;
  }
  return out;
}

Weight pack_dense(WeightStore& store, const void* data, int64_t outputs, int64_t inputs, Form form) {
  const int64_t tiles = (outputs + LANES - 1) / LANES, width = form == Form::f32 ? 4 : 2;
  Weight out;
  out.outputs = outputs;
  out.inputs = inputs;
  out.form = form;
  out.tile_bytes = inputs * LANES * width;
  uint8_t* to = store.take(tiles * out.tile_bytes);
  out.data = to;
  for (int64_t tile = 0; tile < tiles; tile++)
    for (int64_t k = 0; k < inputs; k++)
      to = pack_column(data, width, inputs, tile, k, std::min(LANES, outputs - tile * LANES), to);
  return out;
}

int64_t packed_bytes(const Weight& w) {
  return (w.outputs + LANES - 1) / LANES * w.tile_bytes + (w.order ? w.inputs * 4 : 0);
}

}  // namespace istack
