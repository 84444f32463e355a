// Python bindings: memory comes in as addresses, so that no array library's headers are needed here.
#include "module.hpp"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

namespace istack {

const Kernels* kernels_named(const std::string& name) {
  for (const Kernels* kernels : {avx512_kernels(), avx2_kernels(), portable_kernels()})
    if (kernels && name == kernels->name) return kernels;
  throw std::invalid_argument("no kernels called " + name + " on this processor");
}

namespace {

// Fastest first.
std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const Kernels* kernels : {avx512_kernels(), avx2_kernels(), portable_kernels()})
    if (kernels) names.emplace_back(kernels->name);
  return names;
}

Rows rows(Address address, int64_t stride) { return {at<float>(address), stride}; }

void bind_weights(nb::module_& m) {
  nb::class_<WeightStore>(m, "WeightStore").def(nb::init<>());
  nb::class_<Weight>(m, "Weight")
      .def_ro("outputs", &Weight::outputs)
      .def_ro("inputs", &Weight::inputs)
      .def_prop_ro("nbytes", &packed_bytes);
  m.def(
      "pack_quantised",
      [](WeightStore& store, Address codes, Address scale, Address zero, Address order, int64_t outputs, int64_t inputs,
         int bits, int group, int block, bool half) {
        return pack(store, {at<uint8_t>(codes), at<void>(scale), at<void>(zero), at<int32_t>(order), outputs, inputs, bits, group,
                            block, half});
      },
      nb::keep_alive<0, 1>(), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "pack_dense",
      [](WeightStore& store, Address data, int64_t outputs, int64_t inputs, int form) {
        return pack_dense(store, at<void>(data), outputs, inputs, Form(form));
      },
      nb::keep_alive<0, 1>(), nb::call_guard<nb::gil_scoped_release>());
}

void bind_rows(nb::class_<Recording>& tape) {
  tape.def("embed", [](Recording& r, Address tokens, const Weight& table, float scale, Address out, int64_t stride) {
    r.tape.add(make_embed(*r.kernels, at<int64_t>(tokens), table, scale, rows(out, stride)));
  });
  tape.def("linear", [](Recording& r, Address x, int64_t x_stride, const Weight& weight, Address bias, Address y,
                        int64_t y_stride, bool samples) {
    const Extent extent = samples ? Extent::samples : Extent::tokens;
    add_linear(r.tape, *r.kernels, r.scratch, r.most(extent), extent, rows(x, x_stride), weight, at<float>(bias),
               rows(y, y_stride));
  });
  tape.def("rmsnorm", [](Recording& r, Address x, int64_t x_stride, Address weight, float eps, int64_t width, Address y,
                         int64_t y_stride, bool samples) {
    const Extent extent = samples ? Extent::samples : Extent::tokens;
    r.tape.add(make_rmsnorm(*r.kernels, extent, rows(x, x_stride), at<float>(weight), eps, width, rows(y, y_stride)));
  });
  tape.def("add_rmsnorm", [](Recording& r, Address x, int64_t x_stride, Address residual, int64_t residual_stride,
                             Address weight, float eps, int64_t width, Address y, int64_t y_stride, Address sum,
                             int64_t sum_stride, bool samples) {
    const Extent extent = samples ? Extent::samples : Extent::tokens;
    r.tape.add(make_add_rmsnorm(*r.kernels, extent, rows(x, x_stride), rows(residual, residual_stride), at<float>(weight), eps,
                                width, rows(y, y_stride), rows(sum, sum_stride)));
  });
  tape.def("act_mul", [](Recording& r, Address gate_up, int64_t stride, int kind, int64_t width, Address y, int64_t y_stride,
                         bool samples) {
    const Extent extent = samples ? Extent::samples : Extent::tokens;
    r.tape.add(make_act_mul(*r.kernels, extent, rows(gate_up, stride), Act(kind), width, rows(y, y_stride)));
  });
  tape.def("select", [](Recording& r, Address index, Address x, int64_t x_stride, int64_t width, Address y, int64_t y_stride) {
    r.tape.add(make_select(at<int64_t>(index), rows(x, x_stride), width, rows(y, y_stride)));
  });
}

// Reads memory front to back and does nothing else: the limit that decoding alone is measured against.
class ReadMemory : public Entry {
 public:
  ReadMemory(const uint64_t* data, int64_t words) : data_(data), words_(words) {}
  int64_t plan(const Step&, int) override { return words_ / WORDS; }
  void run(const Step&, int64_t tile) const override {
    uint64_t sums[8] = {};
    const uint64_t* p = data_ + tile * WORDS;
    for (int64_t i = 0; i < WORDS; i += 8)
      for (int lane = 0; lane < 8; lane++) sums[lane] += p[i + lane];
    uint64_t total = 0;
    for (uint64_t sum : sums) total += sum;
    seen_.fetch_add(total, std::memory_order_relaxed);
  }
  const char* name() const override { return "read"; }

 private:
  static constexpr int64_t WORDS = 1 << 15;  // 256 KiB
  const uint64_t* data_;
  int64_t words_;
  mutable std::atomic<uint64_t> seen_{0};  // keeps the compiler from leaving the reads out
};

void read_memory(Pool& pool, Address data, int64_t bytes) {
  Tape tape;
  tape.add(std::make_unique<ReadMemory>(at<uint64_t>(data), bytes / 8));
  pool.run(tape, {});
}

void bind_pool(nb::module_& m) {
  m.def("read_memory", &read_memory, nb::call_guard<nb::gil_scoped_release>(),
        "Read memory once with all threads, in pieces of 256 KiB.");
  nb::class_<Pool>(m, "Pool")
      .def(nb::init<int>())
      .def_prop_ro("threads", &Pool::threads)
      .def(
          "run",
          [](Pool& pool, Recording& r, int64_t tokens, int64_t requests, int64_t samples) {
            pool.run(r.tape, {tokens, requests, samples}, r.profiling ? &r.seconds : nullptr);
          },
          nb::call_guard<nb::gil_scoped_release>(), "Replay a tape for T tokens in R rows with S samples.");
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // processes end without tearing the interpreter down
  m.doc() = "Kernels for CPUs: a tape of operations over fixed addresses, and the threads that replay it.";
  m.def("kernel_names", &kernel_names, "Kernel sets that this build has and this processor can run, fastest first.");
  bind_weights(m);
  auto tape = nb::class_<Recording>(m, "Tape");
  tape.def(
      "__init__",
      [](Recording* self, const std::string& kernels, int64_t most_tokens, int64_t most_samples) {
        new (self) Recording(kernels_named(kernels), most_tokens, most_samples);
      },
      nb::arg("kernels"), nb::arg("most_tokens"), nb::arg("most_samples"));
  tape.def("__len__", [](const Recording& r) { return r.tape.size(); });
  tape.def("names", [](const Recording& r) { return r.tape.names(); });
  tape.def("start_profile", [](Recording& r) {
    r.profiling = true;
    r.seconds.assign(r.tape.size(), 0.0);
  });
  tape.def("stop_profile", [](Recording& r) {
    r.profiling = false;
    return r.seconds;
  });
  tape.def_prop_ro("scratch_bytes", [](const Recording& r) { return r.scratch.bytes(); });
  bind_rows(tape);
  bind_attention(m, tape);
  bind_sampling(m);
  bind_pool(m);
}

}  // namespace istack
