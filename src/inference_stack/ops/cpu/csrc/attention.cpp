#include "attention_entries.hpp"

#include <algorithm>
#include <array>
#include <bit>

namespace istack {

namespace {

constexpr int64_t VECTORS_PER_RUN = 128;     // enough to convert each key once for many
constexpr int64_t CLAIMS_PER_THREAD = 8;     // how finely a step is cut
constexpr int64_t MOST_PARTIALS = 4 << 20;   // floats; beyond them runs stay whole
constexpr int64_t VECTOR_COST = 2;           // of a key for one more vector, where reading and converting the key costs 3
constexpr int64_t KEY_COST = 3;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory of this thread, at least so many floats.
float* scratch(int64_t floats) {
  thread_local std::unique_ptr<float[]> memory;
  thread_local int64_t size = 0;
  if (floats > size) {
    memory = std::make_unique_for_overwrite<float[]>(size_t(floats + 16));
    size = floats;
  }
  return memory.get() + (-reinterpret_cast<uintptr_t>(memory.get()) & 63) / sizeof(float);
}

class StoreEntry : public RowEntry {
 public:
  StoreEntry(const Kernels& k, const RopeStore& layer) : RowEntry(Extent::tokens), k_(k), layer_(layer) {}
  void run_rows(const Step&, int64_t begin, int64_t end) const override {
    for (int64_t i = begin; i < end; i++) k_.attention.rope_store(layer_, i);
  }
  const char* name() const override { return "rope_store"; }

 private:
  const Kernels& k_;
  RopeStore layer_;
};

class AttendEntry : public Entry {
 public:
  AttendEntry(const Attention& layer, std::shared_ptr<AttentionPlan> plan, bool plans)
      : layer_(layer), plan_(std::move(plan)), plans_(plans) {}
  int64_t plan(const Step& step, int threads) override {
    if (plans_) plan_->make(step, threads);
    return plan_->claims();
  }
  void run(const Step&, int64_t claim) const override { plan_->run(layer_, claim); }
  const char* name() const override { return "attend"; }

 private:
  Attention layer_;
  std::shared_ptr<AttentionPlan> plan_;
  bool plans_;
};

}  // namespace

AttentionPlan::AttentionPlan(const AttentionShape& shape, const AttentionKernels& kernels)
    : shape_(shape), kernels_(kernels) {
  const int64_t queries = std::max<int64_t>(1, VECTORS_PER_RUN / shape.share);
  run_length_ = int64_t(std::bit_floor(uint64_t(queries)));  // divides a tile, so that a run ends in one
}

void AttentionPlan::make(const Step& step, int threads) {
  find_runs(step);
  int64_t total = 0;
  for (const QueryRun& run : runs_) total += cost(run) * shape_.kv_heads;
  const int64_t most = threads > 1 ? total / (threads * CLAIMS_PER_THREAD) : total;
  items_.clear();
  pieces_.clear();
  partials_needed_ = 0;
  for (size_t i = 0; i < runs_.size(); i++) divide(int64_t(i), most);
  claims_per_item_ = int64_t(items_.size()) < threads * CLAIMS_PER_THREAD ? shape_.kv_heads : 1;
  sort();
  reserve();
}

void AttentionPlan::find_runs(const Step& step) {
  runs_.clear();
  for (int64_t row = 0; row < step.rows; row++) {
    int64_t token = shape_.cu_q[row];
    const int64_t end = shape_.cu_q[row + 1];
    int64_t position = shape_.context[row] - (end - token);
    while (token < end) {
      const int64_t count = std::min(end - token, run_length_ - position % run_length_);
      const int64_t first = shape_.window ? std::max<int64_t>(0, position - shape_.window + 1) : 0;
      runs_.push_back({row, token, count, position, first / KEY_TILE, (position + count - 1) / KEY_TILE + 1});
      token += count;
      position += count;
    }
  }
}

// In units of one key's reading, for one KV head.
int64_t AttentionPlan::cost(const QueryRun& run) const {
  const int64_t last = run.position + run.count;
  const int64_t keys = shape_.window ? std::min(last, shape_.window + run.count) : last;
  return (keys + 16) * (KEY_COST + VECTOR_COST * run.count * shape_.share);
}

void AttentionPlan::divide(int64_t number, int64_t most) {
  const QueryRun& run = runs_[number];
  const int64_t tiles = run.end_tile - run.first_tile, each = std::max<int64_t>(1, most * tiles / cost(run));
  const int64_t vectors = run.count * shape_.share;
  const int64_t floats = tiles * vectors * kernels_.partial_floats(shape_.head_dim) * shape_.kv_heads;
  if (each >= tiles || partials_needed_ + floats > MOST_PARTIALS) {
    items_.push_back({number, run.first_tile, run.end_tile, -1, 0});
    return;
  }
  const int64_t pieces = ceil_div(tiles, each), left = int64_t(pieces_.size());
  for (int64_t i = 0; i < pieces; i++)
    items_.push_back({number, run.first_tile + tiles * i / pieces, run.first_tile + tiles * (i + 1) / pieces,
                      partials_needed_, left});
  pieces_.insert(pieces_.end(), size_t(shape_.kv_heads), int32_t(pieces));
  partials_needed_ += floats;
}

// Expensive items first, by counting: to a quarter of a power of two.
void AttentionPlan::sort() {
  auto rank = [&](const Item& item) {
    const QueryRun& run = runs_[item.run];
    const uint64_t own = uint64_t(cost(run) * (item.end - item.begin) / (run.end_tile - run.first_tile)) | 4;
    const int width = int(std::bit_width(own));
    return 255 - (4 * width + int(own >> (width - 3) & 3));
  };
  std::array<int32_t, 257> start{};
  for (const Item& item : items_) start[size_t(rank(item) + 1)]++;
  for (size_t i = 1; i < start.size(); i++) start[i] += start[i - 1];
  unsorted_.swap(items_);
  items_.resize(unsorted_.size());
  for (const Item& item : unsorted_) items_[size_t(start[size_t(rank(item))]++)] = item;
}

void AttentionPlan::reserve() {
  if (partials_needed_ > partials_size_) {
    partials_ = std::make_unique_for_overwrite<float[]>(size_t(partials_needed_));
    partials_size_ = partials_needed_;
  }
  if (pieces_.size() > counters_) {
    left_ = std::make_unique<std::atomic<int32_t>[]>(pieces_.size());
    counters_ = pieces_.size();
  }
  for (size_t i = 0; i < pieces_.size(); i++) left_[i].store(pieces_[i], std::memory_order_relaxed);
}

void AttentionPlan::run(const Attention& layer, int64_t claim) {
  const Item& item = items_[size_t(claim / claims_per_item_)];
  if (claims_per_item_ > 1) return run_head(layer, item, claim % claims_per_item_);
  for (int64_t head = 0; head < shape_.kv_heads; head++) run_head(layer, item, head);
}

void AttentionPlan::run_head(const Attention& layer, const Item& item, int64_t head) {
  const QueryRun& run = runs_[size_t(item.run)];
  const int64_t vectors = run.count * shape_.share, tiles = run.end_tile - run.first_tile;
  float* own = scratch(kernels_.scratch_floats(vectors, shape_.head_dim));
  if (item.partials < 0) return kernels_.attend(layer, run, head, item.begin, item.end, nullptr, own);
  float* partials = partials_.get() + item.partials + head * tiles * vectors * kernels_.partial_floats(shape_.head_dim);
  kernels_.attend(layer, run, head, item.begin, item.end, partials, own);
  std::atomic<int32_t>& left = left_[size_t(item.left + head)];
  if (left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  left.store(pieces_[size_t(item.left + head)], std::memory_order_relaxed);  // for the next layer of this plan
  kernels_.join(layer, run, head, partials, own);
}

std::pair<std::shared_ptr<AttentionPlan>, bool> AttentionPlans::find(const AttentionShape& shape,
                                                                     const AttentionKernels& kernels) {
  for (const auto& plan : plans_)
    if (plan->shape() == shape) return {plan, false};
  plans_.push_back(std::make_shared<AttentionPlan>(shape, kernels));
  return {plans_.back(), true};
}

size_t AttentionPlans::bytes() const {
  size_t total = 0;
  for (const auto& plan : plans_) total += plan->bytes();
  return total;
}

std::unique_ptr<Entry> make_rope_store(const Kernels& k, const RopeStore& layer) {
  return std::make_unique<StoreEntry>(k, layer);
}

std::unique_ptr<Entry> make_attend(const Kernels&, const Attention& layer, std::shared_ptr<AttentionPlan> plan, bool plans) {
  return std::make_unique<AttendEntry>(layer, std::move(plan), plans);
}

}  // namespace istack
