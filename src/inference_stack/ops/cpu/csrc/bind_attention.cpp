#include "module.hpp"

namespace istack {

namespace {

KvView view(Address arena, int64_t offset, int64_t granule, int64_t kv_heads, int64_t head_dim, int form, int64_t window) {
  if (head_dim <= 0 || head_dim % 2 || head_dim > MOST_HEAD_DIM)
    throw std::invalid_argument("a head dimension must be even and at most " + std::to_string(MOST_HEAD_DIM));
  return {at<uint8_t>(arena), offset, granule, kv_heads, head_dim, KvForm(form), window};
}

void rope_store(Recording& r, const KvView& kv, Address qkv, int64_t qkv_stride, int64_t q_heads, Address q, int64_t q_stride,
                Address positions, Address cosines, Address sines, Address q_norm, Address k_norm, float eps,
                Address entries, Address offsets) {
  RopeStore layer;
  layer.qkv = at<float>(qkv);
  layer.qkv_stride = qkv_stride;
  layer.q = at<float>(q);
  layer.q_stride = q_stride;
  layer.positions = at<int64_t>(positions);
  layer.cosines = at<float>(cosines);
  layer.sines = at<float>(sines);
  layer.q_norm = at<float>(q_norm);
  layer.k_norm = at<float>(k_norm);
  layer.eps = eps;
  layer.q_heads = q_heads;
  layer.kv = kv;
  layer.entries = at<int64_t>(entries);
  layer.offsets = at<int64_t>(offsets);
  r.tape.add(make_rope_store(*r.kernels, layer));
}

void attend(Recording& r, const KvView& kv, Address q, int64_t q_stride, int64_t q_heads, Address out, int64_t out_stride,
            Address entries, int64_t entries_stride, Address cu_q, Address context, float scale, float softcap) {
  const int64_t share = q_heads / kv.kv_heads;
  const AttentionShape shape{at<int64_t>(cu_q), at<int64_t>(context), kv.kv_heads, share, kv.head_dim, kv.window};
  const auto [plan, is_new] = r.plans.find(shape, r.kernels->attention);
  const Attention layer{at<float>(q), q_stride, at<float>(out), out_stride, at<int64_t>(entries), entries_stride,
                        share,        scale,    softcap,        kv};
  r.tape.add(make_attend(*r.kernels, layer, plan, is_new));
}

}  // namespace

void bind_attention(nb::module_& m, nb::class_<Recording>& tape) {
  nb::class_<KvView>(m, "KvView", "One layer's KV memory: see ops/api.py. `form`: 0 fp32, 1 fp16, 2 bf16, 3 int8; window 0: none.")
      .def("__init__",
           [](KvView* self, Address arena, int64_t offset, int64_t granule, int64_t kv_heads, int64_t head_dim, int form,
              int64_t window) { new (self) KvView(view(arena, offset, granule, kv_heads, head_dim, form, window)); });
  tape.def("rope_store", &rope_store);
  tape.def("attend", &attend);
}

}  // namespace istack
