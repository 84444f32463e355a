"""The ops of a place, as the product binds them, over a workspace whose memory is spoilt before an op gets it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from bench.gpu.place import Place
from torch import Tensor

from inference_stack.ops.facade import BoundOps
from inference_stack.ops.implementation import TOKEN_ROWS, TRANSPOSED_KEYS
from inference_stack.ops.registry import OPS, build_ops, gpu_registry
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Rows, Workspace

Kernels = Literal["auto", "reference", "triton"]
Weights = Literal["native", "float8"]
MOST_TOKENS: Final = 1 << 16
MOST_SAMPLES: Final = 1 << 10
BOUNDS: Final = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-3}
"""Relative errors: of bf16's eight bits, of fp16's eleven, and of fp32 where a product may run as tf32."""


class SpoiltWorkspace(Workspace):
    """Outputs begin as NaN, or as the largest integer: what an op does not write is seen."""

    def take(self, shape: Sequence[int], dtype: torch.dtype, rows: Rows = "tokens") -> Tensor:
        """See `Workspace.take`."""
        taken = super().take(shape, dtype, rows)
        if dtype is torch.bool:
            return taken.fill_(True)
        return taken.fill_(torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max)


@dataclass
class Bench:
    """One place's ops by what they were asked for. `kernels` "auto" takes what the product would."""

    place: Place
    kernels: Kernels = "auto"
    dtype: torch.dtype | None = None
    _made: dict[tuple[bool, Weights], BoundOps] = field(default_factory=dict)

    @property
    def type(self) -> torch.dtype:
        """The activations' type."""
        return self.dtype or self.place.dtype

    @property
    def bound(self) -> float:
        """The relative error that is allowed to one op."""
        return BOUNDS[self.type]

    def named(self, op: str, name: str) -> BoundOps:
        """As `ops`, over memory that is not spoilt, with an op that is taken only by name. Raises NoImplementation."""
        workspace = Workspace(max_tokens=MOST_TOKENS, max_samples=MOST_SAMPLES, device=self.place.device)
        return bind(workspace, TritonSettings(dtype=self.type), self.kernels, {op: name})

    def ops(self, deterministic: bool = False, spoilt: bool = True, weights: Weights = "native") -> BoundOps:
        """Bound once for each kind. Only ops over spoilt memory are kept."""
        key = deterministic, weights
        if spoilt and key in self._made:
            return self._made[key]
        kind = SpoiltWorkspace if spoilt else Workspace
        workspace = kind(max_tokens=MOST_TOKENS, max_samples=MOST_SAMPLES, device=self.place.device)
        made = bind(
            workspace, TritonSettings(dtype=self.type, deterministic=deterministic, weights=weights), self.kernels
        )
        if spoilt:
            self._made[key] = made
        return made

    def graphs(self, op: str) -> bool:
        """Whether an op is ours for GPUs, which reads lengths on the device, so that steps can be recorded."""
        return self.ops().explain()[op].startswith("triton:")

    @property
    def layout(self) -> str:
        """How the ops that read and write KV memory lay it out."""
        return TOKEN_ROWS if self.graphs("attend") else TRANSPOSED_KEYS

    def modes(self, op: str) -> tuple[bool, ...]:
        """Values of `deterministic` that make a difference to an op."""
        return (False, True) if self.graphs(op) else (True,)

    def random(self, *shape: int, seed: int) -> Tensor:
        """Normal numbers of the activations' type."""
        return self.place.random(*shape, seed=seed, dtype=self.type)


def bind(
    workspace: Workspace, settings: TritonSettings, kernels: Kernels, named: Mapping[str, str] | None = None
) -> BoundOps:
    """Ops over a workspace, some of them by name."""
    registry = gpu_registry(settings)
    if kernels == "reference":
        return build_ops(workspace, registry=registry, prefer=dict.fromkeys(OPS, "reference"))
    asked = dict.fromkeys(registry.having("triton"), "triton") if kernels == "triton" else {}
    return build_ops(workspace, registry=registry, prefer=asked | dict(named or {}))
