"""The shapes in which attention is launched: tiles by mode and head dimension, and what a launch is about.

Few of them, and none is tried out at run time: a tile is chosen from what is known before the step. It launches nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import triton
from torch import Tensor

from inference_stack.ops.triton.kv_memory import KvView

LANES: Final = 32
PIECE: Final = 256
"""Deterministic mode: a query's keys are in at most LANES sums, dealt out in pieces of so many tokens. A piece is two microseconds'
work of one multiprocessor, so that one row of a thousand tokens keeps 4 · G of them busy."""
FEW: Final = 64
"""(query, head) pairs of one row and KV head up to which a row's keys are shared out, instead of its queries."""
LONE: Final = 16
"""Pairs that fit the smallest matrix instruction."""


STAGES: Final = 5
"""Keys and values wait for the block table's entry, so that the compiler gives them only half of the stages: of five, the next
two tiles are on their way while one is computed; of three or four none would be."""


@dataclass(frozen=True, slots=True)
class Tile:
    """M `rows`, `keys` at once, how a program runs; `lanes` 0 is one chain."""

    rows: int
    keys: int
    warps: int
    lanes: int = 0
    piece: int = PIECE

    @property
    def wgmma(self) -> bool:
        """Whether Hopper's matrix instructions are for such tiles."""
        return self.rows >= 64


def tile_for(pairs: int, group: int, head_dim: int, deterministic: bool, roomy: bool) -> Tile:
    """The tile for rows of up to `pairs` pairs. Deterministic mode has one tile for all of them, of few keys: beside the state of a
    lane it holds what the lanes before it came to, and registers are what it runs out of."""
    wide = head_dim > 128
    least = triton.next_power_of_2(group)
    lone = not deterministic and max(pairs, least) <= LONE
    lanes = LANES if deterministic else 0
    if not roomy:
        return Tile(LONE, 32, 4) if lone else Tile(max(FEW, least), 16 if wide else 32, 8, lanes)
    if deterministic:
        return Tile(max(FEW, least), 64 if head_dim <= 64 else 16 if wide else 32, 8 if wide else 4, lanes)
    keys = 32 if wide else 64
    if lone:
        return Tile(LONE, keys, 4)
    if pairs <= max(FEW, least):
        return Tile(max(FEW, least), keys, 8 if wide else 4)
    return Tile(max(128, least), keys, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What kernels are compiled for, beside a tile."""

    group: int
    kv_heads: int
    head_dim: int
    windowed: bool
    capped: bool
    sinks: bool
    memory: KvView

    def constants(self, tile: Tile) -> dict[str, Any]:
        """The constants that both kernels share."""
        return {
            "GROUP": self.group,
            "E": self.head_dim,
            "BLOCK_E": max(16, triton.next_power_of_2(self.head_dim)),
            "M": tile.rows,
            "TILE": tile.keys,
            "LANES": tile.lanes,
            "PIECE": tile.piece,
            "WINDOWED": self.windowed,
            "CAPPED": self.capped,
            "SINKS": self.sinks,
            "KV": self.memory.type,
            "HEAD_BYTES": self.memory.head_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One call's tensors and numbers. `sinks` is any pointer where there are none."""

    form: Form
    q: Tensor
    arena: Tensor
    entries: Tensor
    cu_q: Tensor
    context: Tensor
    sinks: Tensor
    window: int
    scale: float
    softcap: float
    processors: int

    @property
    def factor(self) -> float:
        """Makes a product a score in base 2, or the argument of tanh where scores are capped."""
        return self.scale / self.softcap if self.form.capped else self.scale / math.log(2)

    @property
    def ceiling(self) -> float:
        """The cap in base 2."""
        return self.softcap / math.log(2)
