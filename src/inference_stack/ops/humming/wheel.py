"""The package humming-kernels: found when it is first asked for, and the three of its names that are used.

It compiles a kernel for each size and form of weight when it first meets it. Knows nothing of our weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

import torch

PACKAGE: Final = "humming-kernels"
ROOT: Final = "humming"
OLDEST: Final = {torch.float16: (7, 5), torch.bfloat16: (8, 0)}
"""Compute capability from which it has products of activations of a type."""


@dataclass(frozen=True, slots=True)
class Humming:
    """`schema` describes a weight's form, `prepare` lays it out on its device, `multiply` is the product."""

    schema: Callable[..., Any]
    prepare: Callable[..., Any]
    multiply: Callable[..., Any]


def refuses_card(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why its kernels cannot run on a device, or None."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "it runs on NVIDIA GPUs"
    capability, oldest = torch.cuda.get_device_capability(device), OLDEST[dtype]
    if capability < oldest:
        return f"compute capability {capability[0]}.{capability[1]} is older than {oldest[0]}.{oldest[1]}"
    return None


def humming() -> Humming | str:
    """The package, or why there is none."""
    if find_spec(ROOT) is None:
        return f"{PACKAGE} is not installed"
    try:
        return Humming(
            schema=importlib.import_module(f"{ROOT}.schema").HummingWeightSchema,
            prepare=importlib.import_module(f"{ROOT}.transform").prepare_and_transform_humming_tensors,
            multiply=importlib.import_module(f"{ROOT}.forward").humming_forward,
        )
    except Exception as error:  # a package that looks for compilers while it is imported raises anything
        return f"{PACKAGE} cannot be loaded: {type(error).__name__}: {error}"
