"""The arena cut into slabs, each owned by one (model, group) at a time; several models trade whole slabs here.

    arena   |  slab 0   |  slab 1   |  slab 2   | …          slab_bytes each
    slab    [layer][blocks][unit]                            a layer's region is contiguous, so its view is affine
    block   slab * blocks_per_slab + index                   logical number, the same for every layer of the group

Refuses to know what is stored: owners say how loaded a slab is and give it up when asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from inference_stack.core.kv_spec import KvGroupSpec

MAX_SLAB_BYTES: Final = 256 << 20
MIN_SLAB_BLOCKS: Final = 16
MAX_WASTE: Final = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabChoice:
    """A slab size and why. `waste` is the worst group's unused fraction; `note` says which rules could not be kept."""

    slab_bytes: int
    slab_count: int
    waste: float
    note: str = ""


def _waste(slab_bytes: int, specs: Sequence[KvGroupSpec]) -> float:
    return max(1.0 - (slab_bytes // spec.block_bytes) * spec.block_bytes / slab_bytes for spec in specs)


def slab_size(specs: Sequence[KvGroupSpec], arena_bytes: int) -> SlabChoice:
    """The smallest power of two ≤ 256 MiB that holds ≥ 16 blocks of every group and wastes ≤ 3 %.

    When no size keeps every rule, or the arena would be fewer than two slabs per group, the rules give way in this order:
    waste, then 16 blocks. Raises `ValueError` when the arena does not hold one block of each group in a slab of its own.
    """
    if not specs:
        raise ValueError("slab_size needs at least one KV group")
    largest = max(spec.block_bytes for spec in specs)
    cap = min(MAX_SLAB_BYTES, arena_bytes // len(specs))
    sizes = [1 << bits for bits in range((largest - 1).bit_length(), MAX_SLAB_BYTES.bit_length()) if 1 << bits <= cap]
    if not sizes:
        raise ValueError(f"{arena_bytes} bytes of KV memory do not hold one block of each of {len(specs)} KV groups")
    plenty = [size for size in sizes if arena_bytes // size >= 2 * len(specs)] or sizes[:1]
    roomy = [size for size in plenty if size >= MIN_SLAB_BLOCKS * largest]
    thrifty = [size for size in roomy if _waste(size, specs) <= MAX_WASTE]
    if thrifty:
        return _choice(thrifty[0], specs, arena_bytes, "")
    best = min(roomy or plenty, key=lambda size: (_waste(size, specs), size))
    note = "no slab size wastes 3 % or less" if roomy else "memory is too small for slabs of 16 blocks"
    return _choice(best, specs, arena_bytes, note)


def _choice(size: int, specs: Sequence[KvGroupSpec], arena_bytes: int, note: str) -> SlabChoice:
    return SlabChoice(slab_bytes=size, slab_count=arena_bytes // size, waste=_waste(size, specs), note=note)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupGeometry:
    """Where one group's blocks lie in an arena. An entry is a byte address divided by `granule_bytes`."""

    slab_bytes: int
    unit_bytes: int
    blocks_per_slab: int
    granule_bytes: int

    def entry_of(self, blocks: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Arena entries (int64, any shape) of logical blocks: the first layer's unit, in granules."""
        slab, index = np.divmod(np.asarray(blocks, dtype=np.int64), self.blocks_per_slab)
        entries: npt.NDArray[np.int64] = (slab * self.slab_bytes + index * self.unit_bytes) // self.granule_bytes
        return entries

    def layer_offset(self, layer_in_group: int) -> int:
        """Bytes from a block's entry to the unit of the group's n-th layer; a multiple of `granule_bytes`."""
        return layer_in_group * self.blocks_per_slab * self.unit_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaGeometry:
    """The arena's shape: all that a worker needs, beside the group's spec, to find a block."""

    slab_bytes: int
    slab_count: int

    @property
    def arena_bytes(self) -> int:
        """Bytes of the whole arena."""
        return self.slab_bytes * self.slab_count

    def group(self, spec: KvGroupSpec) -> GroupGeometry:
        """Addresses of one group's blocks. Raises `ValueError` when a slab holds no block of it."""
        if spec.block_bytes > self.slab_bytes:
            raise ValueError(f"a block of {spec.name!r} ({spec.block_bytes} B) exceeds a slab ({self.slab_bytes} B)")
        return GroupGeometry(
            slab_bytes=self.slab_bytes,
            unit_bytes=spec.unit_bytes,
            blocks_per_slab=self.slab_bytes // spec.block_bytes,
            granule_bytes=math.gcd(self.slab_bytes, spec.unit_bytes),
        )


class SlabOwner(Protocol):
    """One (model, group) that holds slabs. `principal` is the same object for all groups of one model instance."""

    principal: object

    def slab_load(self, slab: int) -> tuple[int, int]:
        """Blocks of the slab that are used or fenced, and blocks that are only cached."""
        ...

    def surrender(self, slab: int) -> None:
        """Forget the slab, evicting what is cached in it. Only called when nothing there is used or fenced."""
        ...


class SlabPool:
    """Who owns which slab. A slab moves only when none of its blocks is used or fenced."""

    def __init__(self, geometry: ArenaGeometry) -> None:
        self.geometry = geometry
        self._owners: list[SlabOwner | None] = [None] * geometry.slab_count
        self._free = list(range(geometry.slab_count - 1, -1, -1))
        self._claims: list[object] = []

    @property
    def free(self) -> int:
        """Slabs that nobody owns."""
        return len(self._free)

    def owner(self, slab: int) -> SlabOwner | None:
        """The slab's present owner."""
        return self._owners[slab]

    def obtainable(self, owner: SlabOwner) -> int:
        """How many slabs `take` could hand to this owner now."""
        if self.claimed_by_other(owner.principal):
            return 0
        return len(self._free) + sum(1 for _ in self._reclaimable(owner))

    def take(self, owner: SlabOwner) -> int | None:
        """A slab for `owner`: a free one, else another owner's least loaded slab, emptied. None when there is none."""
        if self.claimed_by_other(owner.principal):
            return None
        if not self._free:
            emptiest = min(self._reclaimable(owner), default=None)
            if emptiest is None:
                return None
            slab = emptiest[1]
            victim = self._owners[slab]
            assert victim is not None
            victim.surrender(slab)
            self.give_back(slab, victim)
        slab = self._free.pop()
        self._owners[slab] = owner
        return slab

    def give_back(self, slab: int, owner: SlabOwner) -> None:
        """The slab is empty and nobody's from now on. Raises `RuntimeError` when `owner` does not own it."""
        if self._owners[slab] is not owner:
            raise RuntimeError(f"slab {slab} was given back by a pool that does not own it")
        self._owners[slab] = None
        self._free.append(slab)

    def claim(self, principal: object) -> None:
        """Ask that, until `unclaim`, memory flows to this principal alone. First come, first served; idempotent.

        An instance whose only request cannot grow claims: without it two instances could each hold half of what either needs.
        """
        if principal not in self._claims:
            self._claims.append(principal)

    def unclaim(self, principal: object) -> None:
        """Withdraw a claim, if there is one."""
        if principal in self._claims:
            self._claims.remove(principal)

    def claims(self, principal: object) -> bool:
        """Whether this principal has a claim."""
        return principal in self._claims

    def claimed_by_other(self, principal: object) -> bool:
        """Whether somebody else's claim comes first: then take nothing and start nothing new."""
        return bool(self._claims) and self._claims[0] is not principal

    def check(self) -> None:
        """Every slab is free or owned, once. Raises `RuntimeError` with what is wrong."""
        if len(set(self._free)) != len(self._free):
            raise RuntimeError("a slab is in the free list twice")
        for slab in self._free:
            if self._owners[slab] is not None:
                raise RuntimeError(f"slab {slab} is free and owned")
        owned = sum(owner is not None for owner in self._owners)
        if owned + len(self._free) != len(self._owners):
            raise RuntimeError(f"slabs lost: {owned} owned + {len(self._free)} free != {len(self._owners)}")

    def _reclaimable(self, owner: SlabOwner) -> list[tuple[int, int]]:
        """(cached blocks, slab) of every slab that another pool could surrender now."""
        loads = []
        for slab, holder in enumerate(self._owners):
            if holder is not None and holder is not owner:
                live, cached = holder.slab_load(slab)
                if live == 0:
                    loads.append((cached, slab))
        return loads
