"""What a card has, as far as launches are chosen by it. It launches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch

ROOMY: Final = 200 << 10
"""Shared memory of a block, in bytes, from which tiles are Hopper's; other cards get smaller ones, in more warps."""
H200_PROCESSORS: Final = 132


@dataclass(frozen=True, slots=True)
class Room:
    """What a device has: multiprocessors, and whether tiles may take much shared memory."""

    processors: int
    roomy: bool


@lru_cache(maxsize=64)
def room(device: torch.device) -> Room:
    """The device's room; that of an H200 where kernels are interpreted."""
    if device.type != "cuda":
        return Room(H200_PROCESSORS, True)
    properties = torch.cuda.get_device_properties(device)
    return Room(properties.multi_processor_count, getattr(properties, "shared_memory_per_block_optin", 0) >= ROOMY)
