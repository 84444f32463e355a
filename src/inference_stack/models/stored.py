"""What every container of weights is to the loader: tensors under Hugging Face's names, of which the layout is known at once
and the values are read later, from several threads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from inference_stack.artifacts.canonical import Form, Grouped, Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How one tensor is stored. `label` is what its format calls it ("Q4_1", "awq", "bf16").

    Dense tensors have a `dtype`; quantised ones the `form` that they become, and `order_K` where their columns are read in
    another order than the input's.
    """

    label: str
    shape: tuple[int, ...]
    nbytes: int
    dtype: torch.dtype | None = None
    form: Form | None = None
    order_K: Order | None = None


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a file has a dense tensor's numbers, one after the other in order, `offset` in bytes from the file's start."""

    path: Path
    offset: int
    dtype: torch.dtype


class Source(Protocol):
    """A container of tensors. `norms_hold_one`: Gemma's norm weights w are stored as 1 + w."""

    norms_hold_one: bool

    def names(self) -> Iterable[str]:
        """Every tensor. What a quantised matrix consists of counts as one, `module.weight`."""
        ...

    def layout(self, name: str) -> Layout | None:
        """How it is stored; None where there is no such tensor. Raises `unsupported_model` for what cannot be read."""
        ...

    def extent(self, name: str) -> Extent | None:
        """Where a dense tensor can be read as it is; None where `read` has to change its order or form."""
        ...

    def read(self, name: str, out: Tensor) -> None:
        """Fill `out` with a dense tensor, converting to its type."""
        ...

    def read_grouped(self, name: str, out: Grouped) -> None:
        """Fill `out`, of its layout's form, with a quantised one."""
        ...


TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
