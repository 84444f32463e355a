"""Slot tables: one row per running request, living on the device for as long as the request runs.

A step names slots and counts; tokens, block tables and sampling parameters are already here, so a running request costs a
few integers per step, and step N+1 can be launched before step N's tokens are known to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from inference_stack.core.request import BLOCK_TOKENS, SamplingParams
from inference_stack.core.seams import Device
from inference_stack.core.step import BlockDelta, IntArray, NewSlot, StepPlan


class Addressing(Protocol):
    """Maps a KV group's logical blocks to arena entries."""

    def entry_of(self, blocks: IntArray) -> np.ndarray:
        """int64 arena entries of logical blocks."""
        ...


FLOAT_PARAMS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)

Write = Callable[[Tensor], None]
"""Writes tokens int64 [N] to places that were named before."""


class SlotTables:
    """`tokens` int64 [slots, max_len + 1] and `entries[group]` int64 [slots, max blocks] on the device; parameters on the host.

    The last token of a sequence is stored though nothing reads it, hence the one place more.
    `max_len` is in tokens. Host columns are indexed by slot: `floats[name]` float32, `top_k`, `choice`, `prompt_len` int64,
    `seed` uint64, and `params`. `entered` counts requests that came in: what follows from parameters holds until it changes.
    """

    def __init__(self, device: Device, slots: int, max_len: int, groups: Sequence[Addressing]) -> None:
        self._device = device
        self._groups = groups
        blocks = -(-max_len // BLOCK_TOKENS)
        self.tokens = torch.zeros((slots, max_len + 1), dtype=torch.int64, device=device.torch_device)
        self._host = self.tokens.numpy() if device.shares_memory else None
        self.entries = [torch.zeros((slots, blocks), dtype=torch.int64, device=device.torch_device) for _ in groups]
        self.floats = {name: np.zeros(slots, dtype=np.float32) for name in FLOAT_PARAMS}
        self.top_k = np.zeros(slots, dtype=np.int64)
        self.choice = np.zeros(slots, dtype=np.int64)
        self.prompt_len = np.zeros(slots, dtype=np.int64)
        self.seed = np.zeros(slots, dtype=np.uint64)
        self.params: list[SamplingParams] = [SamplingParams()] * slots
        self.entered = 0
        self._staged: list[Callable[[], object]] = []

    @property
    def nbytes(self) -> int:
        """Device bytes of the tables."""
        return sum(table.numel() * table.element_size() for table in (self.tokens, *self.entries))

    def stage(self, plan: StepPlan) -> None:
        """Take a plan's new requests and blocks: their parameters at once, tokens and entries as uploads."""
        for new in plan.new:
            self._enter(new)
        for group, delta in enumerate(plan.blocks):
            if len(delta.slots):
                self._extend(group, delta)

    def apply(self) -> None:
        """Write what was staged, once it has been sent."""
        for write in self._staged:
            write()
        self._staged.clear()

    def writer(self, slots: np.ndarray, positions: np.ndarray) -> Write:
        """Writes tokens[slots[i], positions[i]] = token i, after the next `send`."""
        if self._host is not None:
            return partial(self._write_host, slots, positions)
        return partial(self._write_device, self._device.upload(slots), self._device.upload(positions))

    def _enter(self, new: NewSlot) -> None:
        self.entered += 1
        known = self._device.upload(np.asarray(new.tokens, dtype=np.int64))
        self._staged.append(partial(self.tokens[new.slot, : len(new.tokens)].copy_, known))
        for name, column in self.floats.items():
            column[new.slot] = getattr(new.params, name)
        self.top_k[new.slot] = new.params.top_k
        self.choice[new.slot] = new.choice
        self.prompt_len[new.slot] = new.prompt_len
        self.seed[new.slot] = new.seed
        self.params[new.slot] = new.params

    def _extend(self, group: int, delta: BlockDelta) -> None:
        entries = np.ascontiguousarray(self._groups[group].entry_of(delta.blocks), dtype=np.int64)
        columns = (delta.slots.astype(np.int64), delta.index.astype(np.int64), entries)
        self._staged.append(partial(self._write_entries, group, *map(self._device.upload, columns)))

    def _write_entries(self, group: int, slots: Tensor, index: Tensor, entries: Tensor) -> None:
        self.entries[group][slots, index] = entries

    def _write_host(self, slots: np.ndarray, positions: np.ndarray, tokens: Tensor) -> None:
        assert self._host is not None
        self._host[slots, positions] = tokens.numpy()

    def _write_device(self, slots: Tensor, positions: Tensor, tokens: Tensor) -> None:
        self.tokens[slots, positions] = tokens
