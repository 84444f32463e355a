"""Devices as a data sheet sees them, each number with where it comes from.

These are presets to size a fleet with, not measurements of ours: fit a cost model to step samples of the real machine where there
is one. Knows devices only, no model and no step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple


class Figure(NamedTuple):
    """A number and its source. A source that begins with "assumed" is our judgement; all others can be looked up."""

    value: float
    source: str

    @property
    def assumed(self) -> bool:
        """Whether nobody published it."""
        return self.source.startswith("assumed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One device. Rates are per second, bytes are 10^9 to the GB, directions of a link count once.

    `peak_flops` is dense FLOP/s by type of operand, without structured sparsity; "bf16" stands for every type that is not listed.
    The shares say how much of a peak well-made kernels reach: `gemm_share` (by type of operand) in the projections of a prefill,
    `attention_share` in prefill attention (of the bf16 peak), `bandwidth_share` when weights and KV are streamed in a decode.
    `layer_seconds` and `step_overhead` are what a step costs beside arithmetic and bytes: starting kernels, norms, sampling.
    `link` is between devices of one instance (None: it cannot be split), `host` between device and host memory, `storage` is where
    a cold start reads weights from. `start_seconds` is a cold start without its weights.
    """

    name: str
    title: str
    peak_flops: Mapping[str, Figure]
    memory_bytes: Figure
    memory_bandwidth: Figure
    gemm_share: Mapping[str, Figure]
    attention_share: Figure
    bandwidth_share: Figure
    layer_seconds: Figure
    step_overhead: Figure
    link_bandwidth: Figure | None
    link_latency: Figure | None
    host_bandwidth: Figure
    storage_bandwidth: Figure
    start_seconds: Figure
    dollars_per_hour: Figure

    def multiplies(self, operand: str) -> str:
        """The type of operand that a format wanting `operand` is computed in here."""
        return operand if operand in self.peak_flops else "bf16"

    def flops(self, operand: str) -> float:
        """FLOP/s that projections reach with operands of a type that is listed."""
        return self.peak_flops[operand].value * self.gemm_share[operand].value

    @property
    def attention_flops(self) -> float:
        """FLOP/s that prefill attention reaches."""
        return self.peak_flops["bf16"].value * self.attention_share.value

    @property
    def bandwidth(self) -> float:
        """Bytes per second that streaming weights or KV reaches."""
        return self.memory_bandwidth.value * self.bandwidth_share.value


_A100: Final = "NVIDIA A100 Tensor Core GPU datasheet, 2021"
_H100: Final = "NVIDIA H100 Tensor Core GPU datasheet, 2023"
_H200: Final = "NVIDIA H200 Tensor Core GPU datasheet, 2024"
_L4: Final = "NVIDIA L4 Tensor Core GPU datasheet, 2023"
_SPARSE: Final = ", half of what it states with sparsity"
_BOTH_WAYS: Final = ", half of what it states for both directions"
_MAMF: Final = "maximum achievable matmul, ml-engineering (Bekman), 2025"
_GPT_FAST: Final = "gpt-fast (PyTorch), batch-1 decode on A100 80GB, 2023"
_OWN_SHAPES: Final = "; times 0.85, assumed, as a model's shapes are not the best shape"

_NVME: Final = Figure(5e9, "assumed: one NVMe drive")
_START: Final = Figure(20.0, "assumed: of the 30 to 100 s that vLLM's sleep mode article, 2025, gives for a reload")
_GPU_LAYER: Final = Figure(45e-6, f"{_GPT_FAST}: what a step takes beyond its bytes at 1700 GB/s, over its layers")
_GPU_STEP: Final = Figure(0.2e-3, "assumed: embedding, sampling, hand-over between steps")
_ALL_REDUCE: Final = Figure(10e-6, f"{_GPT_FAST}: what 2, 4 and 8 devices add to a step, over two all-reduces a layer")
_STREAMING: Final = Figure(0.83, f"{_GPT_FAST}: 1700 of 2039 GB/s")
_SAME_STREAMING: Final = Figure(0.83, "assumed: as published for the A100")


def _cpu() -> Hardware:
    return Hardware(
        name="cpu",
        title="small CPU: 4 cores, AVX2, two memory channels",
        peak_flops=MappingProxyType(
            {
                "bf16": Figure(384e9, "arithmetic: 4 cores, 3 GHz, two 8-wide fp32 multiply-adds a cycle"),
                "int8": Figure(768e9, "assumed: twice the fp32 rate, by byte multiply-adds of AVX2"),
            }
        ),
        memory_bytes=Figure(16e9, "assumed: two modules of 8 GB"),
        memory_bandwidth=Figure(51.2e9, "JEDEC DDR4-3200: 25.6 GB/s a channel, two channels"),
        gemm_share=MappingProxyType(
            {"bf16": Figure(0.6, "assumed: sustained clock and cache misses"), "int8": Figure(0.6, "assumed: as fp32")}
        ),
        attention_share=Figure(0.3, "assumed: softmax and small tiles"),
        bandwidth_share=Figure(0.8, "assumed: reads only, all cores"),
        layer_seconds=Figure(15e-6, "assumed: a dozen native calls"),
        step_overhead=Figure(0.3e-3, "assumed: plan, inputs and sampling on the same cores"),
        link_bandwidth=None,
        link_latency=None,
        host_bandwidth=Figure(10e9, "assumed: copying within the same memory"),
        storage_bandwidth=Figure(1e9, "assumed: one small SSD"),
        start_seconds=Figure(2.0, "assumed: a process without accelerator"),
        dollars_per_hour=Figure(0.1, "assumed: a small virtual machine"),
    )


def _l4() -> Hardware:
    return Hardware(
        name="l4",
        title="NVIDIA L4, 24 GB",
        peak_flops=MappingProxyType(
            {"bf16": Figure(121e12, _L4 + _SPARSE), "fp8": Figure(242.5e12, _L4 + _SPARSE)},
        ),
        memory_bytes=Figure(24e9, _L4),
        memory_bandwidth=Figure(300e9, _L4),
        gemm_share=MappingProxyType(
            {
                "bf16": Figure(0.5, "assumed: 72 W do not sustain the boost clock"),
                "fp8": Figure(0.5, "assumed: 72 W do not sustain the boost clock"),
            }
        ),
        attention_share=Figure(0.45, "assumed: below the A100 for the same reason"),
        bandwidth_share=_SAME_STREAMING,
        layer_seconds=_GPU_LAYER,
        step_overhead=_GPU_STEP,
        link_bandwidth=Figure(32e9, f"{_L4}: PCIe Gen4 x16{_BOTH_WAYS}"),
        link_latency=Figure(30e-6, "assumed: through PCIe and the host bridge"),
        host_bandwidth=Figure(32e9, f"{_L4}: PCIe Gen4 x16{_BOTH_WAYS}"),
        storage_bandwidth=_NVME,
        start_seconds=_START,
        dollars_per_hour=Figure(0.8, "assumed: about RunPod's list, 2026"),
    )


def _a100(name: str, gigabytes: float, gigabytes_per_second: float, dollars: Figure) -> Hardware:
    return Hardware(
        name=name,
        title=f"NVIDIA A100 SXM, {gigabytes:g} GB",
        peak_flops=MappingProxyType({"bf16": Figure(312e12, _A100)}),
        memory_bytes=Figure(gigabytes * 1e9, _A100),
        memory_bandwidth=Figure(gigabytes_per_second * 1e9, _A100),
        gemm_share=MappingProxyType({"bf16": Figure(0.74, f"{_MAMF}: 86.9 %{_OWN_SHAPES}")}),
        attention_share=Figure(0.6, "FlashAttention-2 (Dao), 2023: 50 to 73 % of the A100's peak"),
        bandwidth_share=_STREAMING,
        layer_seconds=_GPU_LAYER,
        step_overhead=_GPU_STEP,
        link_bandwidth=Figure(300e9, f"{_A100}: NVLink{_BOTH_WAYS}"),
        link_latency=_ALL_REDUCE,
        host_bandwidth=Figure(32e9, f"{_A100}: PCIe Gen4{_BOTH_WAYS}"),
        storage_bandwidth=_NVME,
        start_seconds=_START,
        dollars_per_hour=dollars,
    )


def _hopper(name: str, title: str, sheet: str, memory: tuple[float, float], dollars: Figure) -> Hardware:
    return Hardware(
        name=name,
        title=title,
        peak_flops=MappingProxyType(
            {"bf16": Figure(989.5e12, sheet + _SPARSE), "fp8": Figure(1979e12, sheet + _SPARSE)}
        ),
        memory_bytes=Figure(memory[0], sheet),
        memory_bandwidth=Figure(memory[1], sheet),
        gemm_share=MappingProxyType(
            {
                "bf16": Figure(0.68, f"{_MAMF}: 80.3 % on an H100{_OWN_SHAPES}"),
                "fp8": Figure(0.60, f"{_MAMF}: 70.9 % on an H100{_OWN_SHAPES}"),
            }
        ),
        attention_share=Figure(0.6, "FlashAttention-3 (Shah et al.), 2024: 1.5 to 2 times a predecessor at 35 %"),
        bandwidth_share=_SAME_STREAMING,
        layer_seconds=Figure(35e-6, "assumed: the A100's, by the clocks"),
        step_overhead=_GPU_STEP,
        link_bandwidth=Figure(450e9, f"{sheet}: NVLink{_BOTH_WAYS}"),
        link_latency=Figure(10e-6, "assumed: as published for the A100"),
        host_bandwidth=Figure(64e9, f"{sheet}: PCIe Gen5{_BOTH_WAYS}"),
        storage_bandwidth=_NVME,
        start_seconds=_START,
        dollars_per_hour=dollars,
    )


HARDWARE: Final[Mapping[str, Hardware]] = MappingProxyType(
    {
        device.name: device
        for device in (
            _cpu(),
            _l4(),
            _a100("a100-40", 40, 1555, Figure(1.3, "assumed: about Lambda's list, 2025")),
            _a100("a100-80", 80, 2039, Figure(1.6, "assumed: about Hyperstack's list, 2026")),
            _hopper(
                "h100",
                "NVIDIA H100 SXM, 80 GB",
                _H100,
                (80e9, 3.35e12),
                Figure(3.2, "assumed: about Hyperstack's list, 2026"),
            ),
            _hopper(
                "h200",
                "NVIDIA H200 SXM, 141 GB",
                _H200,
                (141e9, 4.8e12),
                Figure(4.0, "assumed: about Hyperstack's list, 2026"),
            ),
        )
    }
)
"""Presets by name."""
