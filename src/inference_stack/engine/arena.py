"""The device's KV memory: one byte tensor, leased to model instances.

Bookkeeping is `kv`'s. An instance reaches the arena only through its lease, so that another process could hold it instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.seams import Device
from inference_stack.kv.slabs import ArenaGeometry, GroupGeometry
from inference_stack.ops.api import KvLayer

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "float8": torch.float8_e4m3fn,
}


class ArenaLease:
    """One model's access to the arena: its layers' memory, until `release`."""

    def __init__(self, arena: Tensor, geometry: ArenaGeometry, groups: Sequence[KvGroupSpec]) -> None:
        self._arena: Tensor | None = arena
        self._specs = tuple(groups)
        self.groups: tuple[GroupGeometry, ...] = tuple(geometry.group(spec) for spec in groups)
        beyond = [group.blocks_per_slab * geometry.slab_count for group in self.groups]
        self.parking = tuple(int(group.entry_of(block)) for group, block in zip(self.groups, beyond, strict=True))
        """For each group the entry of a block that nobody owns; it is there when the arena was made with `parking`."""

    def layers(self) -> tuple[KvLayer, ...]:
        """Every model layer's memory, by layer index. Raises `RuntimeError` after `release`."""
        if self._arena is None:
            raise RuntimeError("the arena lease was released")
        found: dict[int, KvLayer] = {}
        for number, (spec, geometry) in enumerate(zip(self._specs, self.groups, strict=True)):
            for place, layer in enumerate(spec.layers):
                found[layer] = KvLayer(
                    arena=self._arena,
                    group=number,
                    offset_bytes=geometry.layer_offset(place),
                    granule_bytes=geometry.granule_bytes,
                    unit_bytes=geometry.unit_bytes,
                    kv_heads=spec.kv_heads,
                    head_dim=spec.head_dim,
                    dtype=TORCH_DTYPES[spec.dtype],
                    window=spec.window,
                )
        return tuple(found[layer] for layer in sorted(found))

    def release(self) -> None:
        """Give the access back; the layers must not be used any more."""
        self._arena = None


class Arena:
    """All KV memory of one device, and with `parking` a slab more, for rows that only fill a batch up."""

    def __init__(self, device: Device, geometry: ArenaGeometry, parking: bool = False) -> None:
        self.geometry = geometry
        self._bytes: Tensor = device.allocate(geometry.arena_bytes + parking * geometry.slab_bytes)

    def lease(self, groups: Sequence[KvGroupSpec]) -> ArenaLease:
        """Access for a model with these KV groups."""
        return ArenaLease(self._bytes, self.geometry, groups)
