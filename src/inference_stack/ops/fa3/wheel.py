"""The package tokenspeed-fa3: found when it is first asked for, and described by what its one function takes.

It has kernels for Hopper alone, for heads of a few sizes, in fp16 and bf16, without a softcap. Knows nothing of our KV memory.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from importlib.util import find_spec
from typing import Final

import torch
from torch import Tensor

Attend = Callable[..., Tensor]

PACKAGE: Final = "tokenspeed-fa3"
MODULE: Final = "flash_attn_interface"
FUNCTION: Final = "flash_attn_with_kvcache"
ARGUMENTS: Final = frozenset(
    {"q", "k_cache", "v_cache", "cache_seqlens", "page_table", "cu_seqlens_q", "max_seqlen_q", "softmax_scale"}
    | {"causal", "window_size", "sinks"}
)
"""What we call it with. FlashAttention's own package has the same module without sinks."""
HEAD_DIMS: Final = (64, 128, 192, 256)
DTYPES: Final = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
HOPPER: Final = (9, 0)


def refuses_card(device: torch.device) -> str | None:
    """Why its kernels cannot run on a device, or None."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "it runs on NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability != HOPPER:
        return f"it is compiled for compute capability 9.0, this GPU has {capability[0]}.{capability[1]}"
    return None


def attend() -> Attend | str:
    """Its attention over paged KV, or why there is none."""
    if find_spec(MODULE) is None:
        return f"{PACKAGE} is not installed"
    try:
        found: Attend = getattr(importlib.import_module(MODULE), FUNCTION)
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        return f"{PACKAGE} cannot be loaded: {type(error).__name__}: {error}"
    missing = ARGUMENTS - inspect.signature(found).parameters.keys()
    if missing:
        return f"{MODULE} is not that of {PACKAGE}: {FUNCTION} takes no {', '.join(sorted(missing))}"
    return found
