#include "pool.hpp"

#include <algorithm>
#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace istack {

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto SPIN = std::chrono::microseconds(50);
constexpr int LOOKS_PER_CLOCK = 64;
constexpr uint64_t LOW = 0xffffffffu;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

uint64_t tagged(uint32_t replay, uint64_t low) { return uint64_t(replay) << 32 | low; }
bool belongs(uint64_t value, uint32_t replay) { return uint32_t(value >> 32) == replay; }

}  // namespace

int64_t RowEntry::plan(const Step& step, int threads) {
  const int64_t rows = count(step, extent_);
  // Few rows stay with one thread: handing them over costs more than computing them.
  rows_per_tile_ = rows <= 2 ? 2 : std::clamp<int64_t>(rows / (threads * 4), 1, 16);
  return (rows + rows_per_tile_ - 1) / rows_per_tile_;
}

void RowEntry::run(const Step& step, int64_t tile) const {
  const int64_t begin = tile * rows_per_tile_;
  const int64_t end = std::min(begin + rows_per_tile_, count(step, extent_));
  run_rows(step, begin, end);
  for (const auto& next : next_) next->run_rows(step, begin, end);
}

void Tape::add_following(std::unique_ptr<RowEntry> entry) {
  RowEntry* before = entries_.empty() ? nullptr : dynamic_cast<RowEntry*>(entries_.back().get());
  if (before && before->extent() == entry->extent()) before->then(std::move(entry));
  else add(std::move(entry));
}

std::vector<std::string> Tape::names() const {
  std::vector<std::string> names;
  for (const auto& entry : entries_) names.emplace_back(entry->name());
  return names;
}

Tape::~Tape() {
  if (watch_) watch_->forget(this);
}

void Watch::forget(Tape* mine) {
  Tape* expected = mine;
  tape.compare_exchange_strong(expected, nullptr);
  while (inside.load() != 0) relax();
}

Pool::Pool(int threads) {
  for (int i = 1; i < threads; i++) workers_.emplace_back([this] { work(); });
}

Pool::~Pool() {
  stopping_ = true;
  notify();
  for (auto& worker : workers_) worker.join();
}

template <class Condition, class Meanwhile>
void Pool::wait(Condition done, Meanwhile meanwhile) {
  const auto until = Clock::now() + SPIN;
  do {
    for (int i = 0; i < LOOKS_PER_CLOCK; i++) {
      if (done()) return;
      if (!meanwhile()) relax();
    }
  } while (Clock::now() < until);
  std::unique_lock lock(mutex_);
  sleepers_++;  // from here on, whoever makes the condition true sees a sleeper and takes the lock to wake it
  changed_.wait(lock, done);
  sleepers_--;
}

void Pool::notify() {
  if (sleepers_.load() == 0 && !stopping_) return;
  std::lock_guard lock(mutex_);
  changed_.notify_all();
}

void Pool::run(Tape& tape, const Step& step, std::vector<double>* profile) {
  std::lock_guard lock(running_);
  const uint32_t replay = replay_.load() + 1;
  const size_t size = tape.entries_.size();
  if (tape.ready_ != size) {
    watch_->forget(&tape);
    tape.counters_ = std::make_unique<Tape::Counters[]>(size);
    tape.tiles_ = std::make_unique<std::atomic<int64_t>[]>(size);
    tape.ready_ = size;
  }
  if (tape.watch_ && tape.watch_ != watch_) tape.watch_->forget(&tape);
  tape.watch_ = watch_;
  tape.step_ = step;
  for (size_t i = 0; i < size; i++) {
    const int64_t tiles = tape.entries_[i]->plan(step, threads());
    tape.tiles_[i].store(tiles, std::memory_order_relaxed);
    tape.counters_[i].unclaimed.store(tagged(replay, tiles), std::memory_order_relaxed);
    tape.counters_[i].unfinished.store(tagged(replay, tiles), std::memory_order_relaxed);
    tape.counters_[i].fetched.store(0, std::memory_order_relaxed);
  }
  if (profile) profile->resize(size);
  watch_->tape.store(&tape);
  replay_.store(replay);
  if (!workers_.empty()) notify();
  walk(tape, replay, profile);
}

void Pool::work() {
  uint32_t seen = 0;
  while (true) {
    wait([&] { return stopping_.load() || replay_.load() != seen; }, [] { return false; });
    if (stopping_) return;
    watch_->inside++;
    seen = replay_.load();
    if (Tape* tape = watch_->tape.load()) walk(*tape, seen, nullptr);
    watch_->inside--;
  }
}

// Asks the memory for the streams of the entries from `first` on, a little at a time, as far as the caches may hold them.
class Pool::Ahead {
 public:
  Ahead(Tape& tape, size_t first) : tape_(tape), entry_(first), last_(std::min(first + ENTRIES, tape.ready_)) {}
  // Returns false when there is nothing left to ask for.
  bool fetch() {
    for (; entry_ < last_; entry_++) {
      const auto stream = tape_.entries_[entry_]->stream();
      const int64_t most = std::min(stream.bytes, BYTES);
      if (most == 0) continue;
      const int64_t from = tape_.counters_[entry_].fetched.fetch_add(PIECE, std::memory_order_relaxed);
      if (from >= most) continue;
      for (int64_t at = from; at < std::min(from + PIECE, most); at += 64) __builtin_prefetch(stream.data + at, 0, 2);
      return true;
    }
    return false;
  }

 private:
  static constexpr size_t ENTRIES = 6;
  static constexpr int64_t BYTES = 384 << 10, PIECE = 1 << 10;
  Tape& tape_;
  size_t entry_, last_;
};

// Returns false when the tape has gone on to another replay.
bool Pool::walk(Tape& tape, uint32_t replay, std::vector<double>* profile) {
  for (size_t i = 0; i < tape.ready_; i++) {
    const auto began = profile ? Clock::now() : Clock::time_point();
    auto& counters = tape.counters_[i];
    uint64_t left = counters.unclaimed.load();
    while (true) {
      if (!belongs(left, replay)) return false;
      if ((left & LOW) == 0) break;
      if (!counters.unclaimed.compare_exchange_weak(left, left - 1)) continue;
      // A claim in this replay keeps it from ending, so its sizes stand still.
      const int64_t tile = tape.tiles_[i].load(std::memory_order_relaxed) - int64_t(left & LOW);
      tape.entries_[i]->run(tape.step_, tile);
      if ((counters.unfinished.fetch_sub(1) & LOW) == 1) notify();
      left = counters.unclaimed.load();
    }
    auto over = [&] {
      const uint64_t value = counters.unfinished.load();
      return !belongs(value, replay) || (value & LOW) == 0;
    };
    if (!over()) {
      Ahead ahead(tape, i + 1);
      wait(over, [&] { return ahead.fetch(); });
    }
    if (!belongs(counters.unfinished.load(), replay)) return false;
    if (profile) (*profile)[i] += std::chrono::duration<double>(Clock::now() - began).count();
  }
  return true;
}

}  // namespace istack
