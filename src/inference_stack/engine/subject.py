"""A model loaded for measuring: tokens in, the logits of every position out, by the ops and the paged KV that serve.

One row, a small arena of its own, op by op; kernels, weights and KV type as the settings say. Nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor

from inference_stack.artifacts.files import ModelFiles, Progress, silent
from inference_stack.config.derive import settled_engine
from inference_stack.config.tree import EngineConfig
from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.engine.arena import Arena
from inference_stack.engine.device import CpuDevice
from inference_stack.engine.devices import ops_for
from inference_stack.kv.slabs import ArenaGeometry, GroupGeometry
from inference_stack.models.loader import load_model
from inference_stack.ops.api import GroupTable, Linear, Ops, StepInputs
from inference_stack.ops.workspace import Workspace

CHUNK_TOKENS: Final = 128
"""Tokens of a step, and so of logits that are in memory at once."""
SLAB_BLOCKS: Final = 16
FLOAT32: Final = EngineConfig(kernels="torch", weights="float32", kv_dtype="float32")
"""Dequantised fp32 weights, torch's kernels, fp32 KV: what every other execution approximates."""

Watch = Callable[[Linear, Tensor], None]
"""Called with a projection and its inputs x_TK, which are valid until it returns."""


class Subject:
    """A model, executed as `engine` says, for windows of up to `window` tokens. Raises as `load_model`."""

    def __init__(
        self, files: ModelFiles, engine: EngineConfig, threads: int, window: int, progress: Progress = silent
    ) -> None:
        self.engine = engine = settled_engine(replace(engine, device="cpu"))
        self._device = CpuDevice(threads)
        workspace = Workspace(max_tokens=CHUNK_TOKENS, max_samples=CHUNK_TOKENS)
        self._ops = ops_for(engine, self._device, workspace)
        self.loaded = load_model(
            files,
            max_positions=window,
            dequantise=engine.weights == "float32",
            prepare=self._ops.prepare,
            progress=progress,
        )
        self.window = min(window, self.loaded.model.max_positions)
        self._groups = self.loaded.model.kv_groups(engine.kv_dtype)
        geometry, first_blocks = _geometry(self._groups, self.window)
        self._lease = Arena(self._device, geometry).lease(self._groups)
        self._kv = self._lease.layers()
        self._entries = _entries(self._lease.groups, first_blocks, self.window)
        self._called: Ops = self._ops

    def kernels(self) -> str:
        """The implementations that compute, by name."""
        return ", ".join(sorted({choice.partition(":")[0] for choice in self._ops.explain().values()}))

    def watch(self, watch: Watch) -> None:
        """From now on show the inputs of every projection."""
        self._called = cast(Ops, _Watched(self._ops, watch))

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Iterator[Tensor]:
        """logits_TV fp32 of a window from its beginning, a chunk at a time; each is valid until the next."""
        known_T = torch.tensor(tokens, dtype=torch.int64)
        for start in range(0, len(tokens), CHUNK_TOKENS):
            step = self._inputs(known_T[start : start + CHUNK_TOKENS], start)
            hidden_TD = self.loaded.model.forward(self._called, step)
            yield self.loaded.model.logits(self._called, self._called.select(hidden_TD, step.sampled_S))

    def _inputs(self, tokens_T: Tensor, start: int) -> StepInputs:
        """One row that goes on at position `start`, with logits of all its tokens."""
        count = len(tokens_T)
        positions_T = torch.arange(start, start + count)
        block_T, offset_T = positions_T // BLOCK_TOKENS, positions_T % BLOCK_TOKENS
        blocks = -(-(start + count) // BLOCK_TOKENS)
        return StepInputs(
            tokens_T=tokens_T,
            positions_T=positions_T,
            row_T=torch.zeros_like(positions_T),
            context_R=torch.tensor([start + count]),
            cu_q_X=torch.tensor([0, count]),
            cu_q=(0, count),
            context=(start + count,),
            kv=self._kv,
            tables=tuple(
                GroupTable(entry_RB=entry_B[None, :blocks].contiguous(), entry_T=entry_B[block_T], offset_T=offset_T)
                for entry_B in self._entries
            ),
            sampled_S=torch.arange(count),
        )


class _Watched:
    """Ops that show a watcher the inputs of projections."""

    def __init__(self, ops: Ops, watch: Watch) -> None:
        self._ops, self._watch = ops, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def linear(self, x_TK: Tensor, weight: Linear) -> Tensor:
        """As `Ops.linear`."""
        self._watch(weight, x_TK)
        return self._ops.linear(x_TK, weight)


def _geometry(groups: Sequence[KvGroupSpec], tokens: int) -> tuple[ArenaGeometry, list[int]]:
    """An arena for one sequence, and the first block of each group: groups have slabs of their own."""
    blocks = -(-tokens // BLOCK_TOKENS)
    slab_bytes = 1 << (SLAB_BLOCKS * max(spec.block_bytes for spec in groups) - 1).bit_length()
    first_blocks, slabs = [], 0
    for spec in groups:
        per_slab = slab_bytes // spec.block_bytes
        first_blocks.append(slabs * per_slab)
        slabs += -(-blocks // per_slab)
    return ArenaGeometry(slab_bytes=slab_bytes, slab_count=slabs), first_blocks


def _entries(groups: Sequence[GroupGeometry], first_blocks: Sequence[int], tokens: int) -> list[Tensor]:
    """Each group's arena entries of one sequence's blocks."""
    index = np.arange(-(-tokens // BLOCK_TOKENS))
    return [torch.from_numpy(group.entry_of(first + index)) for group, first in zip(groups, first_blocks, strict=True)]
