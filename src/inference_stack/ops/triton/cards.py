"""What a card has, as far as launches are chosen by it. It launches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch

ROOMY: Final = 200 << 10
"""Shared memory of a block, in bytes, from which tiles are Hopper's; other cards get smaller ones, in more warps."""
H200_PROCESSORS: Final = 132
FP8_FROM: Final = (8, 9)
"""Compute capability from which fp8 is converted in hardware."""


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


@lru_cache(maxsize=64)
def check_device(dtype: torch.dtype, device: torch.device) -> None:
    """Raises ValueError where the device cannot convert what KV is stored in."""
    if dtype != torch.float8_e4m3fn or device.type != "cuda" or torch.version.hip is not None:
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_FROM:
        raise ValueError(
            f"KV in float8 needs compute capability 8.9 or more, this GPU has {capability[0]}.{capability[1]}"
        )
