"""How kernels are written down: `kernel` compiles a function, `Shipped` records one way in which it is launched.

Every launch configuration that the product can choose is listed by its module as `SHIPPED`, so that all of them are compiled
for cards that are not here, and none is met for the first time in production. Knows nothing of what a kernel computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import triton

kernel: Callable[[Callable[..., Any]], Any] = triton.jit
"""Compiles a function for the GPU on its first launch; under `TRITON_INTERPRET=1` runs it on the CPU with numpy, for tests."""


def kernel_for_any(*names: str) -> Callable[[Callable[..., Any]], Any]:
    """As `kernel`, compiled once whatever the value or the alignment of these arguments: they change from step to step."""
    made: Callable[[Callable[..., Any]], Any] = triton.jit(
        do_not_specialize=names, do_not_specialize_on_alignment=names
    )
    return made


def interpreting() -> bool:
    """Whether kernels run on the CPU, in Triton's interpreter."""
    return bool(triton.knobs.runtime.interpret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """One launch configuration. `signature` gives the Triton type of each argument that is not constant, such as "*bf16" or
    "i32"; `constants` the others. `aligned` names arguments (pointers, sizes) known to be multiples of 16. `wgmma` says that
    Hopper's matrix instructions must be in the code, `overlap` that a tile must be under way while another is computed: without
    them the configuration is too slow to ship. `archs` are the compute capabilities, times ten, on which it is chosen.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    wgmma: bool = False
    overlap: bool = False
    archs: tuple[int, ...] = (80, 89, 90)
