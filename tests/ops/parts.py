"""Small real inputs for ops: a paged KV arena with scattered blocks, steps over it, and sampling parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.ops.api import GroupTable, HeadSpec, KvLayer, Rope, SampleInputs, StepInputs
from inference_stack.ops.cpu.native import extension
from inference_stack.ops.facade import BoundOps
from inference_stack.ops.registry import OPS, build_ops, default_registry
from inference_stack.ops.workspace import Workspace

BLOCK = 16


def make_ops(max_tokens: int = 2048, max_samples: int = 256, kernels: str = "torch", threads: int = 2) -> BoundOps:
    """Ops over a workspace that still measures: the torch reference, or a native kernel set."""
    workspace = Workspace(max_tokens=max_tokens, max_samples=max_samples)
    if kernels == "torch":
        return build_ops(workspace, prefer=dict.fromkeys(OPS, "reference"))
    return build_ops(workspace, registry=default_registry(threads, kernels))


def native_sets() -> list[str]:
    """The native kernel sets of this machine; none where the extension is not built."""
    module = extension()
    return [] if isinstance(module, str) else list(module.kernel_names())


def rope_table(positions: int, head_dim: int, base: float = 10000.0) -> Rope:
    """Plain rotary tables."""
    inverse = base ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * inverse
    angle = torch.cat([angle, angle], dim=1)
    return Rope(cos_PE=angle.cos().float(), sin_PE=angle.sin().float())


@dataclass
class PagedRequest:
    """A request: its projections by position, and the arena entries of its blocks."""

    qkv_TX: Tensor
    entries: list[int]


@dataclass
class Paged:
    """One layer's KV in an arena of NaN (all bits set, in any dtype), with block entries handed out in a scattered order."""

    heads: HeadSpec
    window: int | None = None
    dtype: torch.dtype = torch.float32
    granules: int = 3
    layers: int = 2
    blocks: int = 256
    kv: KvLayer = field(init=False)
    _free: list[int] = field(init=False)

    def __post_init__(self) -> None:
        spec = KvGroupSpec(
            name="kv", layers=(0,), kv_heads=self.heads.kv_heads, head_dim=self.heads.head_dim,
            dtype=str(self.dtype).removeprefix("torch.").removesuffix("_e4m3fn"),
        )  # fmt: skip
        unit = spec.unit_bytes
        assert unit % self.granules == 0
        granule = unit // self.granules
        arena = torch.full((unit * self.layers * self.blocks,), 0xFF, dtype=torch.uint8)
        self.kv = KvLayer(
            arena=arena, group=0, offset_bytes=unit * self.blocks * (self.layers - 1), granule_bytes=granule,
            unit_bytes=unit, kv_heads=self.heads.kv_heads, head_dim=self.heads.head_dim, dtype=self.dtype, window=self.window,
        )  # fmt: skip
        order = torch.randperm(self.blocks, generator=torch.Generator().manual_seed(1))
        self._free = (order * self.granules).tolist()

    def sequence(self, qkv_TX: Tensor) -> PagedRequest:
        """A request with blocks for all its positions."""
        count = -(-qkv_TX.shape[0] // BLOCK)
        taken, self._free = self._free[:count], self._free[count:]
        return PagedRequest(qkv_TX, taken)

    def step(self, parts: Sequence[tuple[PagedRequest, int, int]]) -> tuple[StepInputs, Tensor]:
        """The step that computes positions start … stop-1 of each request, and its fused projection."""
        positions = torch.cat([torch.arange(start, stop) for _, start, stop in parts])
        sizes = torch.tensor([stop - start for _, start, stop in parts])
        row_T = torch.repeat_interleave(torch.arange(len(parts)), sizes)
        bounds = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        width = max(len(sequence.entries) for sequence, _, _ in parts)
        entry_RB = torch.zeros(len(parts), width, dtype=torch.int64)
        for row, (sequence, _, _) in enumerate(parts):
            entry_RB[row, : len(sequence.entries)] = torch.tensor(sequence.entries)
        table = GroupTable(entry_RB=entry_RB, entry_T=entry_RB[row_T, positions // BLOCK], offset_T=positions % BLOCK)
        step = StepInputs(
            tokens_T=torch.zeros_like(positions), positions_T=positions, row_T=row_T,
            context_R=torch.tensor([stop for _, _, stop in parts]), cu_q_X=bounds, cu_q=tuple(bounds.tolist()),
            context=tuple(stop for _, _, stop in parts), kv=(self.kv,), tables=(table,),
            sampled_S=torch.zeros(0, dtype=torch.int64),
        )  # fmt: skip
        return step, torch.cat([sequence.qkv_TX[start:stop] for sequence, start, stop in parts])

    def run(
        self,
        ops: BoundOps,
        parts: Sequence[tuple[PagedRequest, int, int]],
        softcap: float = 0.0,
        sinks_H: Tensor | None = None,
    ) -> list[Tensor]:
        """Stores and attends one step; outputs per part."""
        step, qkv_TX = self.step(parts)
        q_THE = ops.rope_store(qkv_TX, self.heads, self.kv, step)
        out = ops.attend(q_THE, self.kv, step, self.heads.head_dim**-0.5, softcap, sinks_H)
        return [part.clone() for part in out.split([stop - start for _, start, stop in parts])]


def sampling(rows: int, **changes: object) -> SampleInputs:
    """Parameters for `rows` rows, all off and greedy unless changed; host flags follow from the columns."""
    empty = torch.zeros(0, dtype=torch.int64)
    inputs = SampleInputs(
        temperature_S=torch.zeros(rows), top_k_S=torch.zeros(rows, dtype=torch.int64), top_p_S=torch.ones(rows),
        min_p_S=torch.zeros(rows), repetition_S=torch.ones(rows), presence_S=torch.zeros(rows),
        frequency_S=torch.zeros(rows), seed_S=torch.arange(rows), choice_S=torch.zeros(rows, dtype=torch.int64),
        position_S=torch.full((rows,), 7), top_S=torch.full((rows,), -1), history_row=empty, history_token=empty,
        history_is_output=empty.bool(), bias_row=empty, bias_token=empty, bias_value=torch.zeros(0), banned_row=empty,
        banned_token=empty,
    )  # fmt: skip
    inputs = replace(inputs, **changes)  # type: ignore[arg-type]
    return replace(
        inputs,
        any_random=bool((inputs.temperature_S > 0).any()),
        any_filtered=bool(((inputs.top_k_S > 0) | (inputs.top_p_S < 1) | (inputs.min_p_S > 0)).any()),
        max_top=int(inputs.top_S.max()),
    )
