#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>

namespace istack {

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();
constexpr Cut UNCUT = {-INF, std::numeric_limits<int64_t>::max()};
constexpr uint32_t LOW = 0x7fffffff;

// A token and its value as one number, larger for what comes before; -0 counts as 0.
int64_t order_key(float value, int64_t token) {
  value += 0.0f;
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (bits < 0) bits ^= LOW;
  return int64_t(bits) * (int64_t(1) << 32) + int64_t(LOW - uint32_t(token));
}
int64_t token_of(int64_t key) { return LOW - uint32_t(key & LOW); }

Cut shorter(Cut a, Cut b) {
  if (a.value != b.value) return a.value > b.value ? a : b;
  return a.token < b.token ? a : b;
}

// Pairs by row: those of row r are order[begin[r]] … order[begin[r + 1] - 1], in the order in which they were given.
class ByRow {
 public:
  ByRow(const Pairs& pairs, int64_t rows, int64_t vocab) : begin_(pairs.count ? rows + 2 : 0), order_(pairs.count) {
    if (pairs.count == 0) return;
    for (int64_t i = 0; i < pairs.count; i++) {
      const bool exists = pairs.row[i] >= 0 && pairs.row[i] < rows && pairs.token[i] >= 0 && pairs.token[i] < vocab;
      if (!exists) throw std::out_of_range("a (row, token) pair lies outside the logits");
      begin_[pairs.row[i] + 2]++;
    }
    for (int64_t row = 0; row < rows; row++) begin_[row + 2] += begin_[row + 1];
    for (int64_t i = 0; i < pairs.count; i++) order_[begin_[pairs.row[i] + 1]++] = int32_t(i);
  }
  bool has(int64_t row) const { return !begin_.empty() && begin_[row] != begin_[row + 1]; }
  const int32_t* begin(int64_t row) const { return begin_.empty() ? nullptr : order_.data() + begin_[row]; }
  const int32_t* end(int64_t row) const { return begin_.empty() ? nullptr : order_.data() + begin_[row + 1]; }

 private:
  std::vector<int64_t> begin_;
  std::vector<int32_t> order_;
};

struct Span {
  const int32_t *first, *last;
  const int32_t* begin() const { return first; }
  const int32_t* end() const { return last; }
};
Span of(const ByRow& pairs, int64_t row) { return {pairs.begin(row), pairs.end(row)}; }

}  // namespace

struct SampleScratch {
  std::vector<float> adjusted, tempered, weights, maxima;
  std::vector<int32_t> ids;
  std::vector<int64_t> keys;
  std::vector<uint32_t> seen;  // per token; all zero between rows
  void fit(int64_t vocab) {
    const size_t padded = size_t((vocab + DRAW_CHUNK - 1) / DRAW_CHUNK * DRAW_CHUNK);
    if (tempered.size() < padded) tempered.resize(padded);
  }
  template <class T>
  static T* room(std::vector<T>& memory, size_t size) {
    if (memory.size() < size) memory.resize(size);
    return memory.data();
  }
};

namespace {

// Which tokens of one tempered row may be drawn.
class Filter {
 public:
  Filter(const SamplingKernels& k, SampleScratch& scratch, const float* y, int64_t n) : k_(k), s_(scratch), y_(y), n_(n) {}

  Cut cut(int64_t top_k, float top_p, float min_p) {
    if (min_p > 1) top_k = 1;  // no token is that likely; the best one stays
    Cut cut = UNCUT;
    if (top_k > 0 && top_k < n_) cut = best_of(top_k, top_p);
    else if (top_p < 1) cut = nucleus(top_p);
    return min_p > 0 ? shorter(cut, {least_logit(min_p), UNCUT.token}) : cut;
  }

  // Keys of the best `count` tokens, best first if `sorted`.
  std::vector<int64_t>& best(int64_t count, bool sorted) {
    gather(lower_bound(count), INF);
    auto& keys = s_.keys;
    if (int64_t(keys.size()) > count) {
      std::nth_element(keys.begin(), keys.begin() + count - 1, keys.end(), std::greater<>());
      keys.resize(count);
    }
    if (sorted) sort(keys);
    return keys;
  }

  std::vector<int64_t>& everything() {
    s_.keys.resize(n_);
    for (int64_t i = 0; i < n_; i++) s_.keys[i] = order_key(y_[i], i);
    return s_.keys;
  }

  static void sort(std::vector<int64_t>& keys) {
    if (!std::is_sorted(keys.begin(), keys.end(), std::greater<>())) std::sort(keys.begin(), keys.end(), std::greater<>());
  }

 private:
  Cut at_key(int64_t key) const { return {y_[token_of(key)], token_of(key)}; }
  double weight(int64_t key) const { return std::exp(double(y_[token_of(key)])); }

  // A value that at least `count` tokens reach: the count-th largest of the maxima of enough groups.
  float lower_bound(int64_t count) {
    for (int64_t size : {64, 4}) {
      if (count * 4 * size > n_) continue;
      float* maxima = SampleScratch::room(s_.maxima, size_t(n_ / size));
      const int64_t groups = k_.group_maxima(y_, n_, size, maxima);
      if (groups < count) continue;
      std::nth_element(maxima, maxima + count - 1, maxima + groups, std::greater<>());
      return maxima[count - 1];
    }
    return -INF;
  }

  void gather(float low, float high) {
    int32_t* ids = SampleScratch::room(s_.ids, size_t(n_));
    s_.keys.resize(size_t(k_.collect(y_, n_, low, high, ids)));
    for (size_t i = 0; i < s_.keys.size(); i++) s_.keys[i] = order_key(y_[ids[i]], ids[i]);
  }

  Cut best_of(int64_t top_k, float top_p) {
    const auto& keys = best(top_k, top_p < 1);
    if (top_p >= 1) return at_key(top_k == int64_t(keys.size()) ? *std::min_element(keys.begin(), keys.end()) : keys.back());
    double whole = 0;
    for (int64_t key : keys) whole += weight(key);
    const Cut cut = crossing(keys, 0, double(top_p) * whole);
    return cut.token < 0 ? at_key(keys.back()) : cut;
  }

  // The first token with which the sum reaches `mass`; token -1 if none does.
  Cut crossing(const std::vector<int64_t>& keys, double sum, double mass) const {
    float value = NOT_A_NUMBER;
    double weight_here = 0;
    for (int64_t key : keys) {
      const Cut here = at_key(key);
      if (here.value != value) value = here.value, weight_here = weight(key);
      sum += weight_here;
      if (sum >= mass) return here;
    }
    return {0, -1};
  }

  // top-p over the whole vocabulary: thresholds on fp32 weights close in on the token that crosses p; float64 sums decide.
  Cut nucleus(float top_p) {
    float* w = SampleScratch::room(s_.weights, s_.tempered.size());
    const double total = k_.weigh(y_, n_, w), mass = double(top_p) * total;
    // All tokens below `low` together weigh less than half of what may be cut off.
    float low = float((1 - std::max(0.0, double(top_p))) * total / double(n_) * 0.5), high = 1.5f;
    close_in(w, mass, low, high);
    const double before = k_.weight_above(y_, w, n_, high);
    int32_t* ids = SampleScratch::room(s_.ids, size_t(n_));
    s_.keys.resize(size_t(k_.collect(w, n_, low, high, ids)));
    for (size_t i = 0; i < s_.keys.size(); i++) s_.keys[i] = order_key(y_[ids[i]], ids[i]);
    sort(s_.keys);
    Cut cut = before < mass || high > 1 ? crossing(s_.keys, before, mass) : Cut{0, -1};
    if (cut.token >= 0) return cut;
    auto& keys = everything();  // the thresholds were too close for fp32 sums to tell
    sort(keys);
    cut = crossing(keys, 0, mass);
    return cut.token < 0 ? UNCUT : cut;
  }

  // Narrows [low, high) around the weight of the token that crosses `mass`, until few tokens are left in it.
  void close_in(const float* w, double mass, float& low, float& high) const {
    constexpr double ENOUGH = 192, SURE = 1e-5;
    double count_low = double(n_), count_high = 0;
    for (int pass = 0; pass < 24 && count_low - count_high > ENOUGH && high > low * 1.000001f; pass++) {
      const float step = std::pow(high / low, 1.0f / (LEVELS + 1));
      float levels[LEVELS];
      for (int i = 0; i < LEVELS; i++) levels[i] = i ? levels[i - 1] * step : low * step;
      double sums[LEVELS], counts[LEVELS];
      k_.above(w, n_, levels, sums, counts);
      bool moved = false;
      for (int i = 0; i < LEVELS; i++)
        if (sums[i] >= mass * (1 + SURE) && levels[i] > low) low = levels[i], count_low = counts[i], moved = true;
      for (int i = LEVELS - 1; i >= 0; i--)
        if (sums[i] < mass * (1 - SURE) && levels[i] < high) high = levels[i], count_high = counts[i], moved = true;
      if (!moved) return;
    }
  }

  // The least y with e^y >= min_p, by bisection over the floats from -infinity to 0.
  static float least_logit(float min_p) {
    uint32_t reaches = 0, fails = 0x7f800000;  // magnitudes, as bits
    while (fails - reaches > 1) {
      const uint32_t middle = reaches + (fails - reaches) / 2;
      float magnitude;
      std::memcpy(&magnitude, &middle, sizeof magnitude);
      (std::exp(-double(magnitude)) >= double(min_p) ? reaches : fails) = middle;
    }
    float magnitude;
    std::memcpy(&magnitude, &reaches, sizeof magnitude);
    return -magnitude;
  }

  const SamplingKernels& k_;
  SampleScratch& s_;
  const float* y_;
  int64_t n_;
};

// Everything about one call that rows share.
struct Call {
  Call(const SampleJob& job, const SamplingKernels& k)
      : job(job), k(k), history(job.history, job.score.rows, job.score.vocab), bias(job.bias, job.score.rows, job.score.vocab),
        banned(job.banned, job.score.rows, job.score.vocab) {}

  bool adjusts(int64_t row) const { return job.allowed || history.has(row) || bias.has(row) || banned.has(row); }

  void penalise(int64_t row, SampleScratch& scratch, float* z) const {
    uint32_t* seen = SampleScratch::room(scratch.seen, size_t(job.score.vocab));  // twice the times emitted, plus 1
    for (int32_t i : of(history, row)) {
      uint32_t& mark = seen[job.history.token[i]];
      mark = (mark | 1) + 2 * uint32_t(job.history_is_output[i]);
    }
    const float repetition = job.repetition[row], frequency = job.frequency[row], presence = job.presence[row];
    for (int32_t i : of(history, row)) {
      const int64_t token = job.history.token[i];
      if (seen[token] == 0) continue;
      const float emitted = float(seen[token] / 2);
      seen[token] = 0;
      z[token] = z[token] > 0 ? z[token] / repetition : z[token] * repetition;
      z[token] -= frequency * emitted;
      z[token] -= presence * float(emitted > 0);
    }
  }

  // The row after grammar, bias, penalties and bans.
  const float* adjusted(int64_t row, bool finite, SampleScratch& scratch) const {
    const int64_t n = job.score.vocab;
    const float* x = job.score.logits + row * job.score.stride;
    if (finite && !adjusts(row)) return x;
    float* z = SampleScratch::room(scratch.adjusted, size_t(n));
    if (finite) std::copy(x, x + n, z);
    else std::fill(z, z + n, 0.0f);
    if (job.allowed) k.allow(job.allowed + row * job.allowed_words, n, z);
    for (int32_t i : of(bias, row)) z[job.bias.token[i]] += job.bias_value[i];
    if (history.has(row)) penalise(row, scratch, z);
    for (int32_t i : of(banned, row)) z[job.banned.token[i]] = -INF;
    return z;
  }

  void choose(int64_t row, SampleScratch& scratch) const {
    const int64_t n = job.score.vocab;
    const float* x = job.score.logits + row * job.score.stride;
    Peak peak = k.peak(x, n);
    job.finite[row] = peak.finite;
    const float* z = adjusted(row, peak.finite, scratch);
    if (z != x) peak = k.peak(z, n);
    const bool random = job.temperature && job.temperature[row] > 0 && peak.value > -INF;
    job.chosen[row] = random ? draw(row, z, peak, scratch) : peak.token;
  }

  int64_t draw(int64_t row, const float* z, Peak peak, SampleScratch& scratch) const {
    const int64_t n = job.score.vocab;
    scratch.fit(n);
    float* y = scratch.tempered.data();
    k.temper(z, n, peak.value, job.temperature[row], y);
    const Cut cut = Filter(k, scratch, y, n).cut(job.top_k[row], job.top_p[row], job.min_p[row]);
    const uint64_t seed = uint64_t(job.seed[row]);
    return k.draw(y, n, cut, {uint32_t(seed), uint32_t(seed >> 32), uint32_t(job.position[row]), uint32_t(job.choice[row])},
                  peak.token);
  }

  const SampleJob& job;
  const SamplingKernels& k;
  ByRow history, bias, banned;
};

void score_row(const ScoreJob& job, const SamplingKernels& k, int64_t row, int64_t token, SampleScratch& scratch) {
  int64_t* ids = job.top_ids + row * job.width;
  float* logprobs = job.top_logprobs + row * job.width;
  if (job.wanted && job.wanted[row] < 0) {
    job.logprob[row] = NOT_A_NUMBER, job.rank[row] = 0;
    std::fill(ids, ids + job.width, -1);
    std::fill(logprobs, logprobs + job.width, NOT_A_NUMBER);
    return;
  }
  const float* x = job.logits + row * job.stride;
  const Peak peak = k.peak(x, job.vocab);
  const bool fine = peak.finite && peak.value > -INF;
  const double log_sum = fine ? double(peak.value) + std::log(k.exp_sum(x, job.vocab, peak.value)) : double(NOT_A_NUMBER);
  job.logprob[row] = float(double(x[token]) - log_sum);
  job.rank[row] = k.ahead(x, job.vocab, token) + 1;
  if (job.width == 0) return;
  Filter order(k, scratch, x, job.vocab);
  auto& keys = fine ? order.best(job.width, true) : order.everything();
  if (!fine) Filter::sort(keys);
  for (int64_t i = 0; i < job.width; i++) {
    ids[i] = token_of(keys[i]);
    logprobs[i] = float(double(x[ids[i]]) - log_sum);
  }
}

}  // namespace

// Rows as tiles.
template <class Work>
class RowTiles : public Entry {
 public:
  RowTiles(int64_t rows, const char* name, const Work& work) : rows_(rows), name_(name), work_(work) {}
  int64_t plan(const Step&, int) override { return rows_; }
  void run(const Step&, int64_t tile) const override { work_(tile); }
  const char* name() const override { return name_; }

 private:
  int64_t rows_;
  const char* name_;
  const Work& work_;
};

Sampler::Sampler(Pool& pool, const Kernels& kernels) : pool_(pool), k_(kernels.sampling) {}
Sampler::~Sampler() = default;

std::unique_ptr<SampleScratch> Sampler::borrow() {
  std::lock_guard lock(mutex_);
  if (idle_.empty()) return std::make_unique<SampleScratch>();
  auto scratch = std::move(idle_.back());
  idle_.pop_back();
  return scratch;
}

void Sampler::give_back(std::unique_ptr<SampleScratch> scratch) {
  std::lock_guard lock(mutex_);
  idle_.push_back(std::move(scratch));
}

template <class Work>
void Sampler::each_row(int64_t rows, const char* name, Work work) {
  const auto one = [&](int64_t row) {
    auto scratch = borrow();
    work(row, *scratch);
    give_back(std::move(scratch));
  };
  if (rows == 1) return one(0);  // waking threads costs more than it gains
  Tape tape;
  tape.add(std::make_unique<RowTiles<decltype(one)>>(rows, name, one));
  pool_.run(tape, {});
}

void Sampler::sample(const SampleJob& job) {
  const Call call(job, k_);
  each_row(job.score.rows, "sample", [&](int64_t row, SampleScratch& scratch) {
    call.choose(row, scratch);
    if (job.score.logprob) score_row(job.score, k_, row, job.chosen[row], scratch);
  });
}

void Sampler::score(const ScoreJob& job) {
  for (int64_t row = 0; row < job.rows; row++)
    if (job.tokens[row] < 0 || job.tokens[row] >= job.vocab) throw std::out_of_range("a scored token lies outside the logits");
  each_row(job.rows, "score",
           [&](int64_t row, SampleScratch& scratch) { score_row(job, k_, row, job.tokens[row], scratch); });
}

}  // namespace istack
