"""Slot tables: one row per running request, living on the device for as long as the request runs.

A step names slots and counts; tokens, block tables and sampling parameters are already here, so a running request costs a
few integers per step, and step N+1 can be launched before step N's tokens are known to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from inference_stack.core.request import BLOCK_TOKENS, SamplingParams
from inference_stack.core.seams import Device
from inference_stack.core.step import BlockDelta, IntArray, NewSlot


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
        self._host = self.tokens.numpy() if self.tokens.device.type == "cpu" else None
        self.entries = [torch.zeros((slots, blocks), dtype=torch.int64, device=device.torch_device) for _ in groups]
        self.floats = {name: np.zeros(slots, dtype=np.float32) for name in FLOAT_PARAMS}
        self.top_k = np.zeros(slots, dtype=np.int64)
        self.choice = np.zeros(slots, dtype=np.int64)
        self.prompt_len = np.zeros(slots, dtype=np.int64)
        self.seed = np.zeros(slots, dtype=np.uint64)
        self.params: list[SamplingParams] = [SamplingParams()] * slots
        self.entered = 0

    @property
    def nbytes(self) -> int:
        """Device bytes of the tables."""
        return sum(table.numel() * table.element_size() for table in (self.tokens, *self.entries))

    def enter(self, new: NewSlot) -> None:
        """Fill a slot with a request's known tokens and parameters."""
        self.entered += 1
        known = self._device.upload(np.asarray(new.tokens, dtype=np.int64))
        self.tokens[new.slot, : len(new.tokens)] = known
        for name, column in self.floats.items():
            column[new.slot] = getattr(new.params, name)
        self.top_k[new.slot] = new.params.top_k
        self.choice[new.slot] = new.choice
        self.prompt_len[new.slot] = new.prompt_len
        self.seed[new.slot] = new.seed
        self.params[new.slot] = new.params

    def extend(self, group: int, delta: BlockDelta) -> None:
        """Write new block-table entries of one KV group."""
        if len(delta.slots) == 0:
            return
        entries = self._device.upload(np.ascontiguousarray(self._groups[group].entry_of(delta.blocks), dtype=np.int64))
        slots, index = (self._device.upload(column.astype(np.int64)) for column in (delta.slots, delta.index))
        self.entries[group][slots, index] = entries

    def write(self, slots: np.ndarray, positions: np.ndarray, tokens: Tensor) -> None:
        """tokens[slots[i], positions[i]] = tokens[i]."""
        if self._host is not None:
            self._host[slots, positions] = tokens.numpy()
        else:
            self.tokens[self._device.upload(slots), self._device.upload(positions)] = tokens
