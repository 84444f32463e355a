#include <nanobind/stl/string.h>

#include "module.hpp"
#include "sampler.hpp"

namespace istack {

namespace {

Pairs pairs(Address row, Address token, int64_t count) { return {at<int64_t>(row), at<int64_t>(token), count}; }

void report(ScoreJob& job, Address wanted, Address logprob, Address rank, Address ids, Address logprobs, int64_t width) {
  job.wanted = at<int64_t>(wanted), job.logprob = at<float>(logprob), job.rank = at<int64_t>(rank);
  job.top_ids = at<int64_t>(ids), job.top_logprobs = at<float>(logprobs), job.width = width;
}

void bind_jobs(nb::module_& m) {
  nb::class_<ScoreJob>(m, "ScoreJob")
      .def("__init__",
           [](ScoreJob* self, int64_t rows, int64_t vocab, Address logits, int64_t stride, Address tokens) {
             ScoreJob& job = *new (self) ScoreJob;
             job.rows = rows, job.vocab = vocab, job.tokens = at<int64_t>(tokens);
             job.logits = at<float>(logits), job.stride = stride;
           })
      .def("report", &report);
  nb::class_<SampleJob>(m, "SampleJob")
      .def("__init__",
           [](SampleJob* self, int64_t rows, int64_t vocab, Address logits, int64_t stride, Address tokens, Address finite) {
             SampleJob& job = *new (self) SampleJob;
             job.score.rows = rows, job.score.vocab = vocab;
             job.score.logits = at<float>(logits), job.score.stride = stride;
             job.chosen = at<int64_t>(tokens), job.finite = at<bool>(finite);
           })
      .def("random",
           [](SampleJob& job, Address temperature, Address top_k, Address top_p, Address min_p, Address seed, Address choice,
              Address position) {
             job.temperature = at<float>(temperature), job.top_k = at<int64_t>(top_k);
             job.top_p = at<float>(top_p), job.min_p = at<float>(min_p);
             job.seed = at<int64_t>(seed), job.choice = at<int64_t>(choice), job.position = at<int64_t>(position);
           })
      .def("history",
           [](SampleJob& job, Address row, Address token, int64_t count, Address is_output, Address repetition,
              Address presence, Address frequency) {
             job.history = pairs(row, token, count), job.history_is_output = at<bool>(is_output);
             job.repetition = at<float>(repetition), job.presence = at<float>(presence), job.frequency = at<float>(frequency);
           })
      .def("bias",
           [](SampleJob& job, Address row, Address token, int64_t count, Address value) {
             job.bias = pairs(row, token, count), job.bias_value = at<float>(value);
           })
      .def("banned",
           [](SampleJob& job, Address row, Address token, int64_t count) { job.banned = pairs(row, token, count); })
      .def("allowed",
           [](SampleJob& job, Address bits, int64_t words) { job.allowed = at<uint32_t>(bits), job.allowed_words = words; })
      .def("report", [](SampleJob& job, Address wanted, Address logprob, Address rank, Address ids, Address logprobs,
                        int64_t width) { report(job.score, wanted, logprob, rank, ids, logprobs, width); });
}

}  // namespace

void bind_sampling(nb::module_& m) {
  bind_jobs(m);
  nb::class_<Sampler>(m, "Sampler")
      .def(
          "__init__",
          [](Sampler* self, Pool& pool, const std::string& kernels) { new (self) Sampler(pool, *kernels_named(kernels)); },
          nb::keep_alive<1, 2>())
      .def("sample", &Sampler::sample, nb::call_guard<nb::gil_scoped_release>())
      .def("score", &Sampler::score, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace istack
