"""`attend`: which rows share out their keys and which their queries, decided on the host once a step.

    few queries (decode, verify, ends of prompts)   attention_decode
    many                                            attention_prefill, over a work list

A recorded step has no host integers: all its rows have one query. Reading memory is what few queries cost, however many programs
share it; many queries cost arithmetic, for which tiles must be full. It knows no kernel's inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import triton
from torch import Tensor

from inference_stack.ops.api import KvLayer, StepInputs
from inference_stack.ops.reference.step_cache import StepCache
from inference_stack.ops.triton.attention_decode import (
    REDUCE_WARPS,
    attend_few,
    reduce_constants,
    reduce_kernel,
    split_constants,
    split_kernel,
)
from inference_stack.ops.triton.attention_prefill import attend_many, prefill_constants, prefill_kernel
from inference_stack.ops.triton.attention_shapes import FEW, LANES, STAGES, Form, Launch, Tile, tile_for
from inference_stack.ops.triton.cards import Room, check_device, room
from inference_stack.ops.triton.kernel import Shipped
from inference_stack.ops.triton.kv_memory import TYPES, KvView, view
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

MOST_STATES: Final = 128 << 20
"""Deterministic mode: bytes of states beyond which rows of several queries are not shared out. The same bits either way."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`height`: most pairs of a row whose keys are shared out, 0 where there is none. `work` int32 [tiles, 2] of the others."""

    height: int
    few: Tile
    work: Tensor | None
    many: Tile


class Attention:
    """`Ops.attend`."""

    def __init__(self, workspace: Workspace, settings: TritonSettings) -> None:
        self._workspace = workspace
        self._deterministic = settings.deterministic
        self._cache = StepCache()

    def __call__(
        self,
        q_THE: Tensor,
        kv: KvLayer,
        step: StepInputs,
        scale: float,
        softcap: float = 0.0,
        sinks_H: Tensor | None = None,
    ) -> Tensor:
        """o [T, H·E] in the dtype of q. Raises ValueError for KV in fp8 on a card without."""
        tokens, heads, width = q_THE.shape
        check_device(kv.dtype, q_THE.device)
        out_TX = self._workspace.take_like(q_THE, (tokens, heads * width), q_THE.dtype)
        if tokens == 0:
            return out_TX
        form = _form(q_THE, kv, softcap, sinks_H)
        has = room(q_THE.device)
        plan = self._cache.get(step, (form.group, width), lambda: self._plan(step, form, has))
        launch = Launch(
            form=form,
            q=q_THE,
            arena=kv.arena,
            entries=step.tables[kv.group].entry_RB,
            cu_q=step.cu_q_X,
            context=step.context_R,
            sinks=q_THE if sinks_H is None else sinks_H,
            window=kv.window or 0,
            scale=scale,
            softcap=softcap,
            processors=has.processors,
        )
        if plan.height:
            attend_few(launch, out_TX, plan.few, plan.height, self._workspace)
        if plan.work is not None:
            attend_many(launch, out_TX, plan.many, plan.work)
        return out_TX

    def _plan(self, step: StepInputs, form: Form, has: Room) -> Plan:
        pairs_R = np.diff(np.asarray(step.cu_q, dtype=np.int64)) * form.group if step.cu_q else np.array([form.group])
        limit = max(FEW, triton.next_power_of_2(form.group))
        most = max(form.group, MOST_STATES // self._state_bytes(form, len(pairs_R))) if self._deterministic else limit
        is_few = pairs_R <= min(limit, most)
        height = int(pairs_R[is_few].max(initial=0))
        few, many = (
            tile_for(pairs, form.group, form.head_dim, self._deterministic, has.roomy) for pairs in (height, limit + 1)
        )
        work = (
            None
            if is_few.all()
            else _upload(work_list(step, form.group, pairs_R, is_few, many.rows), step.tokens_T.device)
        )
        return Plan(height, few, work, many)

    @staticmethod
    def _state_bytes(form: Form, rows: int) -> int:
        """Memory for the states of one pair of every row."""
        return rows * form.kv_heads * LANES * (form.head_dim + 2) * 4


def _form(q_THE: Tensor, kv: KvLayer, softcap: float, sinks_H: Tensor | None) -> Form:
    return Form(
        group=q_THE.shape[1] // kv.kv_heads,
        kv_heads=kv.kv_heads,
        head_dim=kv.head_dim,
        windowed=kv.window is not None,
        capped=softcap != 0,
        sinks=sinks_H is not None,
        memory=view(kv),
    )


def work_list(step: StepInputs, group: int, pairs_R: np.ndarray, is_few: np.ndarray, rows: int) -> np.ndarray:
    """int32 [tiles, 2] of the rows with many queries: (row, tile), those that see the most keys first."""
    row_M = np.flatnonzero(~is_few)
    tiles_M = -(-pairs_R[row_M] // rows)
    row_W = np.repeat(row_M, tiles_M)
    tile_W = np.arange(len(row_W)) - np.repeat(np.cumsum(tiles_M) - tiles_M, tiles_M)
    missing_W = (pairs_R[row_W] - (tile_W + 1) * rows).clip(min=0) // group
    last_W = np.asarray(step.context)[row_W] - missing_W
    return np.stack([row_W, tile_W], 1)[np.argsort(-last_W, kind="stable")].astype(np.int32)


def _upload(array: np.ndarray, device: torch.device) -> Tensor:
    host = torch.from_numpy(np.ascontiguousarray(array))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


TENSORS: Final = {
    "q": "*bf16", "out": "*bf16", "arena": "*u8", "entries": "*i64", "cu_q": "*i64", "context": "*i64", "first": "i32",
    "granule": "i32", "entry_stride": "i32", "q_stride": "i32", "window": "i32", "factor": "fp32", "ceiling": "fp32",
}  # fmt: skip
ALIGNED: Final = ("q", "out", "arena", "granule", "q_stride")
STATES: Final = {"partial": "*fp32", "stats": "*fp32", "slots": "i32", "height": "i32"}


def _model(
    group: int,
    kv_heads: int,
    width: int,
    dtype: torch.dtype = torch.bfloat16,
    window: bool = False,
    sinks: bool = False,
) -> Form:
    head_bytes = 32 * width * dtype.itemsize + (64 if dtype == torch.int8 else 0)
    memory = KvView(TYPES[dtype], 0, 0, head_bytes)
    return Form(
        group=group, kv_heads=kv_heads, head_dim=width, windowed=window, capped=False, sinks=sinks, memory=memory
    )


MODELS: Final = {
    "Llama-3.1-8B": _model(4, 8, 128),
    "Llama-3.1-8B int8": _model(4, 8, 128, torch.int8),
    "Llama-3.1-8B fp8": _model(4, 8, 128, torch.float8_e4m3fn),
    "Qwen2.5-7B": _model(7, 4, 128),
    "Qwen3-30B-A3B": _model(8, 4, 128),
    "SmolLM2-135M": _model(3, 3, 64),
    "gpt-oss": _model(8, 8, 64, window=True, sinks=True),
    "Gemma-3": _model(4, 1, 256, window=True),
}
"""Qwen3-8B is as Llama-3.1-8B. Heads wider than 128 spill a few registers on cards before Hopper."""


def _shipped() -> Iterator[Shipped]:
    for model, form in MODELS.items():
        for deterministic in (True, False):
            for roomy in (True, False) if form.head_dim <= 128 else (True,):
                yield from _of(f"{model}{' deterministic' if deterministic else ''}", form, deterministic, roomy)


def _of(model: str, form: Form, deterministic: bool, roomy: bool) -> Iterator[Shipped]:
    """One model's launches on Hopper, or on other cards."""
    sinks = {"sinks": "*fp32" if form.sinks else "*bf16"}
    archs: tuple[int, ...] = (90,) if roomy else (80, 89)
    if form.memory.type == TYPES[torch.float8_e4m3fn]:
        archs = tuple(arch for arch in archs if arch >= 89)
    heights = (form.group,) if deterministic else (form.group, FEW)
    few = {tile_for(height, form.group, form.head_dim, deterministic, roomy) for height in heights}
    many = tile_for(FEW + 1, form.group, form.head_dim, deterministic, roomy)
    reduces = {}
    for tile in few:
        common = {"num_warps": tile.warps, "num_stages": STAGES, "wgmma": tile.wgmma, "overlap": True, "archs": archs}
        for final in (False, True):
            yield _shipped_one(
                f"split {model} M={tile.rows}{' final' if final else ''}", split_kernel,
                TENSORS | sinks | STATES, split_constants(form, tile, final), (*ALIGNED, "partial", "stats"), common,
            )  # fmt: skip
        reduces = reduce_constants(form, tile)
    states = (
        {name: kind for name, kind in TENSORS.items() if name in ("out", "cu_q", "context", "window")} | STATES | sinks
    )
    common = {"num_warps": REDUCE_WARPS, "archs": archs}
    yield _shipped_one(f"reduce {model}", reduce_kernel, states, reduces, ("out", "partial", "stats"), common)
    common = {"num_warps": many.warps, "num_stages": STAGES, "wgmma": many.wgmma, "overlap": True, "archs": archs}
    signature = TENSORS | sinks | {"work": "*i32"}
    yield _shipped_one(f"prefill {model}", prefill_kernel, signature, prefill_constants(form, many), ALIGNED, common)


def _shipped_one(
    name: str,
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    aligned: tuple[str, ...],
    rest: dict[str, Any],
) -> Shipped:
    return Shipped(name=name, kernel=kernel, signature=signature, constants=constants, aligned=aligned, **rest)


SHIPPED: Final = tuple(_shipped())
