// Threads that replay a tape together.
//
// All walk the entries in order and claim tiles from an atomic counter; an entry is over when its tiles are finished, not when
// all threads have come. So a thread that the system has put aside delays nothing but the tile it holds: gateway and clients may
// share these cores. Waiting spins for at most 50 µs, then sleeps. A spinning thread asks the memory for the weights that come next, so
// that reading goes on while small operations run.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "step.hpp"

namespace istack {

class Pool {
 public:
  // `threads` in all; the caller of `run` is one of them.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return int(workers_.size()) + 1; }
  // Replays the tape; returns when it is done. One caller at a time (a lock sees to it).
  // With `profile`, adds each entry's seconds, as this thread saw them, to it.
  void run(Tape& tape, const Step& step, std::vector<double>* profile = nullptr);
 private:
  class Ahead;
  void work();
  bool walk(Tape& tape, uint32_t replay, std::vector<double>* profile);
  template <class Condition, class Meanwhile>
  void wait(Condition done, Meanwhile meanwhile);
  void notify();

  std::vector<std::thread> workers_;
  std::mutex running_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<int> sleepers_{0};
  const std::shared_ptr<Watch> watch_ = std::make_shared<Watch>();
  std::atomic<uint32_t> replay_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace istack
