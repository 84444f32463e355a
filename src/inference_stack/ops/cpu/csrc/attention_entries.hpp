// Attention as tape entries, and the plan that layers of equal geometry share.
#pragma once

#include <vector>

#include "kernels.hpp"
#include "step.hpp"

namespace istack {

// What a plan follows from, besides the step.
struct AttentionShape {
  const int64_t* cu_q;     // [R+1], bounds of the rows' queries
  const int64_t* context;  // [R], tokens that each row's last query may see
  int64_t kv_heads, share, head_dim, window;
  bool operator==(const AttentionShape&) const = default;
};

// How one step's attention is cut into claims that threads take, expensive ones first.
//
//   run    queries of a row between two multiples of a fixed length
//   item   a run with some of its key tiles; a run has several items only when it is long beside the whole step
//   claim  an item for one KV head, or for all of them when there are many items
//
// Each item of a divided run leaves partial results of its tiles, and the last to finish joins them. Nothing here changes a bit.
class AttentionPlan {
 public:
  explicit AttentionPlan(const AttentionShape& shape, const AttentionKernels& kernels);
  const AttentionShape& shape() const { return shape_; }
  void make(const Step& step, int threads);
  int64_t claims() const { return int64_t(items_.size()) * claims_per_item_; }
  void run(const Attention& layer, int64_t claim);
  size_t bytes() const { return partials_size_ * sizeof(float); }

 private:
  struct Item {
    int64_t run, begin, end;  // tiles
    int64_t partials;         // where the run's begin, for head 0; -1: the item is the whole run
    int64_t left;             // the run's first counter
  };
  void find_runs(const Step& step);
  int64_t cost(const QueryRun& run) const;
  void divide(int64_t run, int64_t most);
  void sort();
  void reserve();
  void run_head(const Attention& layer, const Item& item, int64_t head);

  AttentionShape shape_;
  const AttentionKernels& kernels_;
  int64_t run_length_;
  int64_t claims_per_item_ = 1;
  std::vector<QueryRun> runs_;
  std::vector<Item> items_, unsorted_;
  int64_t partials_needed_ = 0, partials_size_ = 0;
  std::unique_ptr<float[]> partials_;
  std::vector<int32_t> pieces_;               // by counter: items of the run
  std::unique_ptr<std::atomic<int32_t>[]> left_;  // by counter: items still to finish
  size_t counters_ = 0;
};

// The plans of a tape.
class AttentionPlans {
 public:
  // The plan of this shape, and whether it is new: the entry that made it makes it anew in each replay.
  std::pair<std::shared_ptr<AttentionPlan>, bool> find(const AttentionShape& shape, const AttentionKernels& kernels);
  size_t bytes() const;

 private:
  std::vector<std::shared_ptr<AttentionPlan>> plans_;
};

// Its output is read by other rows' attention: nothing may be joined to it.
std::unique_ptr<Entry> make_rope_store(const Kernels&, const RopeStore&);
std::unique_ptr<Entry> make_attend(const Kernels&, const Attention&, std::shared_ptr<AttentionPlan>, bool plans);

}  // namespace istack
