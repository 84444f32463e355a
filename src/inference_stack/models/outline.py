"""What parameters an architecture asks for, learned by letting it ask: which matrices are projections, and which of them are fused.

Nothing is read. A list of this kind is never written down by hand, so that it cannot disagree with the architectures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from inference_stack.core.errors import unsupported_model
from inference_stack.models.config import ModelConfig
from inference_stack.models.fusing import Part
from inference_stack.models.registry import ARCHITECTURES
from inference_stack.models.weights import Weights
from inference_stack.ops.api import Linear

HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Projection:
    """Modules of `inputs` columns that are executed as one: they see the same activations."""

    modules: tuple[str, ...]
    inputs: int


@dataclass(slots=True)
class Outline:
    """The parameters of a model. `linears` has everything that becomes a `Linear`, in the loader's order: None for tables."""

    names: list[str] = field(default_factory=list)
    linears: list[Projection | None] = field(default_factory=list)
    norm_offset: float = 0.0
    device: torch.device = torch.device("cpu")

    @property
    def quantisable(self) -> dict[str, int]:
        """Modules whose weights are worth quantising, with their inputs: projections except the output matrix."""
        found = [(module, one.inputs) for one in self.linears if one for module in one.modules]
        return {module: inputs for module, inputs in found if module != HEAD}

    def tensor(self, name: str, *shape: int) -> Tensor:
        """As `Weights.tensor`."""
        self.names.append(name)
        return torch.empty(0)

    def norm(self, name: str, size: int) -> Tensor:
        """As `Weights.norm`."""
        return self.tensor(name, size)

    def linear(self, names: Sequence[str], sizes: Sequence[int], inputs: int, bias: bool = False) -> Linear:
        """As `Weights.linear`."""
        for name in names:
            self.names += [f"{name}.weight", f"{name}.bias"] if bias else [f"{name}.weight"]
        self.linears.append(Projection(tuple(names), inputs))
        return Linear(weight=torch.empty(0))

    def table(self, name: str, rows: int, width: int) -> Linear:
        """As `Weights.table`."""
        self.names.append(name)
        self.linears.append(None)
        return Linear(weight=torch.empty(0), looked_up=True)

    def has(self, name: str) -> bool:
        """As `Weights.has`: no file is at hand."""
        return False

    def part(self, name: str, *shape: int) -> Part:
        """Instead of `Weights.part`. Raises `unsupported_model`: experts are read and served, but not made or judged here."""
        raise unsupported_model("Mixtures of experts cannot be quantised here; only models without experts can.")

    def dtype_of(self, name: str) -> torch.dtype:
        """As `Weights.dtype_of`."""
        return torch.float32


def outline_of(config: ModelConfig) -> Outline:
    """The parameters of a model of this configuration."""
    outline = Outline()
    ARCHITECTURES[config.architecture](config, cast(Weights, outline), 1)
    return outline
