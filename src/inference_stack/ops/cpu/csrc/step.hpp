// What changes from step to step, and what a recorded operation is.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace istack {

// The sizes of one step: T tokens in R rows, S of them sampled.
struct Step {
  int64_t tokens = 0, rows = 0, samples = 0;
};

enum class Extent { tokens, samples };  // what the leading dimension of an operand counts

inline int64_t count(const Step& step, Extent extent) {
  return extent == Extent::tokens ? step.tokens : step.samples;
}

// One operation over fixed addresses. Its work splits into tiles that any thread may run in any order.
class Entry {
 public:
  virtual ~Entry() = default;
  // Called once per replay by one thread, before any tile of any entry runs; returns the number of tiles.
  virtual int64_t plan(const Step& step, int threads) = 0;
  virtual void run(const Step& step, int64_t tile) const = 0;
  virtual const char* name() const = 0;
  // Memory that the next replay of this entry reads once, front to back, and that no cache holds: weights. Valid after plan().
  struct Stream {
    const uint8_t* data = nullptr;
    int64_t bytes = 0;
  };
  virtual Stream stream() const { return {}; }
};

// An operation whose rows are independent: a tile is a range of rows.
class RowEntry : public Entry {
 public:
  explicit RowEntry(Extent extent) : extent_(extent) {}
  int64_t plan(const Step& step, int threads) override;
  void run(const Step& step, int64_t tile) const override;
  virtual void run_rows(const Step& step, int64_t begin, int64_t end) const = 0;
  Extent extent() const { return extent_; }
  // Runs `next` on each range of rows right after this, by the same thread: for what only reads this entry's output.
  void then(std::unique_ptr<RowEntry> next) { next_.push_back(std::move(next)); }

 private:
  Extent extent_;
  int64_t rows_per_tile_ = 1;
  std::vector<std::unique_ptr<RowEntry>> next_;
};

class Tape;

// Which tape the threads of a pool are at, and how many look at it. Shared by the two, since either may end first.
struct Watch {
  std::atomic<Tape*> tape{nullptr};
  std::atomic<int> inside{0};
  // Waits until no thread looks at the tape any more.
  void forget(Tape* mine);
};

// Entries in order, replayed as one.
class Tape {
 public:
  void add(std::unique_ptr<Entry> entry) { entries_.push_back(std::move(entry)); }
  // As `add`, but joined to the entry before it when that is a RowEntry of the same extent: see RowEntry::then.
  void add_following(std::unique_ptr<RowEntry> entry);
  size_t size() const { return entries_.size(); }
  std::vector<std::string> names() const;

  ~Tape();

 private:
  friend class Pool;
  // High half: the replay; low half: tiles not yet claimed, or not yet finished. A thread left over from an earlier replay
  // sees another number there and claims nothing.
  struct alignas(64) Counters {
    std::atomic<uint64_t> unclaimed{0}, unfinished{0};
    std::atomic<int64_t> fetched{0};  // bytes of the entry's stream that waiting threads have asked the memory for
  };
  std::vector<std::unique_ptr<Entry>> entries_;
  std::unique_ptr<Counters[]> counters_;
  std::unique_ptr<std::atomic<int64_t>[]> tiles_;
  size_t ready_ = 0;  // entries that have counters
  Step step_;
  std::shared_ptr<Watch> watch_;  // of the pool that last ran it
};

}  // namespace istack
