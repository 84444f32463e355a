"""Makes the stacked weights of a layer's experts out of what checkpoints store of them.

    PerExpert    a tensor for every expert and part       ▸ filled row range by row range; group-quantised ones stay separate
    Whole        one tensor [X, N, K]                     ▸ as it is
    Turned       one tensor [X, K, N], dense              ▸ turned, expert by expert
    Fp4          blocks and scales of MXFP4               ▸ as they are, or dense where that was asked for

"Interleaved" layouts have gate and up rows alternating; here gate rows come first. Knows layouts; names are the architectures'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from inference_stack.models import fusing
from inference_stack.models.fusing import Part, Plan
from inference_stack.models.placing import Placer
from inference_stack.models.stored import Source
from inference_stack.ops.api import Experts, ExpertWeights, Linear, Mxfp4, Quantised
from inference_stack.ops.reference import mxfp4


@dataclass(frozen=True, slots=True)
class Wanted:
    """The form that weights are to have: `dtype` for dense ones (None: as stored), `dense` for no quantised ones at all."""

    dtype: torch.dtype | None
    dense: bool


class Stack(Protocol):
    """One side of a layer's experts, [X, N, K], as it is stored."""

    @property
    def parts(self) -> Sequence[Part]:
        """What it is made of."""
        ...

    def describe(self, wanted: Wanted) -> tuple[bool, str]:
        """Whether it becomes dense, and the executed form and what it was made of: "bf16", "mxfp4"."""
        ...

    def make(self, source: Source, placer: Placer, wanted: Wanted) -> ExpertWeights:
        """Read it. Runs in one of the loader's threads."""
        ...


@dataclass(frozen=True, slots=True)
class PerExpert:
    """Matrices of every expert, one below the other."""

    experts: tuple[tuple[Part, ...], ...]

    @property
    def parts(self) -> Sequence[Part]:
        """See `Stack`."""
        return [part for expert in self.experts for part in expert]

    def describe(self, wanted: Wanted) -> tuple[bool, str]:
        """See `Stack`."""
        plan = fusing.plan(self.experts[0], wanted.dtype, wanted.dense) if self._apart(wanted) else self._joined(wanted)
        return plan.form is None, plan.describe()

    def make(self, source: Source, placer: Placer, wanted: Wanted) -> ExpertWeights:
        """See `Stack`."""
        if self._apart(wanted):
            return tuple(self._separate(expert, source, placer, wanted) for expert in self.experts)
        sizes = [part.layout.shape[0] for part in self.experts[0]]
        shape = (len(self.experts), sum(sizes), self.experts[0][0].layout.shape[1])
        out = placer.empty(shape, self._joined(wanted).dtype)
        for expert, matrix in zip(self.experts, out, strict=True):
            for part, rows in zip(expert, matrix.split(sizes), strict=True):
                fusing.read_dense(source, part, rows, placer)
        return out

    def _separate(self, expert: tuple[Part, ...], source: Source, placer: Placer, wanted: Wanted) -> Linear:
        return Linear(weight=fusing.make(source, fusing.plan(expert, wanted.dtype, wanted.dense), placer))

    def _apart(self, wanted: Wanted) -> bool:
        """Whether every expert has a quantised weight of its own."""
        return not wanted.dense and all(part.layout.form for part in self.parts)

    def _joined(self, wanted: Wanted) -> Plan:
        return fusing.plan(self.parts, wanted.dtype, dense=True)


@dataclass(frozen=True, slots=True)
class Whole:
    """One dense tensor as it is wanted."""

    part: Part

    @property
    def parts(self) -> Sequence[Part]:
        """See `Stack`."""
        return [self.part]

    def describe(self, wanted: Wanted) -> tuple[bool, str]:
        """See `Stack`."""
        return True, fusing.plan(self.parts, wanted.dtype, wanted.dense).describe()

    def make(self, source: Source, placer: Placer, wanted: Wanted) -> ExpertWeights:
        """See `Stack`."""
        out = placer.empty(self.part.layout.shape, fusing.plan(self.parts, wanted.dtype, wanted.dense).dtype)
        fusing.read_dense(source, self.part, out, placer)
        return out


@dataclass(frozen=True, slots=True)
class Turned:
    """One dense tensor [X, K, N], whose N may be interleaved."""

    part: Part
    interleaved: bool

    @property
    def parts(self) -> Sequence[Part]:
        """See `Stack`."""
        return [self.part]

    def describe(self, wanted: Wanted) -> tuple[bool, str]:
        """See `Stack`."""
        return Whole(self.part).describe(wanted)

    def make(self, source: Source, placer: Placer, wanted: Wanted) -> ExpertWeights:
        """See `Stack`. While it is turned it is in memory twice."""
        stored = Whole(self.part).make(source, placer, wanted)
        assert isinstance(stored, Tensor)
        experts, depth, rows = stored.shape
        out = placer.empty((experts, rows, depth), stored.dtype)
        placer.ready(stored, out)
        for expert, matrix in zip(stored, out, strict=True):
            matrix.copy_(_apart(expert.T) if self.interleaved else expert.T)
        return out


@dataclass(frozen=True, slots=True)
class Fp4:
    """MXFP4 blocks uint8 [X, N, K/32, 16] and scales uint8 [X, N, K/32], whose N may be interleaved."""

    blocks: Part
    scales: Part
    interleaved: bool

    @property
    def parts(self) -> Sequence[Part]:
        """See `Stack`."""
        return [self.blocks, self.scales]

    def describe(self, wanted: Wanted) -> tuple[bool, str]:
        """See `Stack`."""
        return wanted.dense, "fp32 from mxfp4" if wanted.dense else "mxfp4"

    def make(self, source: Source, placer: Placer, wanted: Wanted) -> ExpertWeights:
        """See `Stack`."""
        tensors = []
        for part in self.parts:
            stored = placer.empty(part.layout.shape, torch.uint8)
            placer.read(source, part.name, stored)
            placer.ready(stored)
            tensors.append(_rows_apart(stored) if self.interleaved else stored)
        blocks, scales = tensors[0].flatten(2), tensors[1]
        if not wanted.dense:
            return Mxfp4(blocks=blocks, scales=scales)
        return torch.stack([mxfp4.dequantise(*expert) for expert in zip(blocks, scales, strict=True)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacks:
    """All that is stored of a layer's experts: both sides, and biases [X, 2·I] (`interleaved` or not) and [X, D]."""

    gate_up: Stack
    down: Stack
    gate_up_bias: Part | None = None
    down_bias: Part | None = None
    interleaved: bool = False

    @property
    def parts(self) -> Sequence[Part]:
        """Every tensor."""
        biases = [part for part in (self.gate_up_bias, self.down_bias) if part is not None]
        return [*self.gate_up.parts, *self.down.parts, *biases]

    def fill(self, experts: Experts, source: Source, placer: Placer, wanted: Wanted) -> None:
        """Read everything into `experts`. Runs in one of the loader's threads."""
        experts.gate_up = self.gate_up.make(source, placer, wanted)
        experts.down = self.down.make(source, placer, wanted)
        placer.ready(*_tensors(experts.gate_up), *_tensors(experts.down))
        if self.gate_up_bias is not None:
            bias_XN = _bias(self.gate_up_bias, source, placer)
            experts.gate_up_bias_XN = _rows_apart(bias_XN) if self.interleaved else bias_XN
        if self.down_bias is not None:
            experts.down_bias_XD = _bias(self.down_bias, source, placer)


def _bias(part: Part, source: Source, placer: Placer) -> Tensor:
    out = placer.empty(part.layout.shape, torch.float32)
    fusing.read_dense(source, part, out, placer)
    placer.ready(out)
    return out


def _apart(alternating: Tensor) -> Tensor:
    """Rows 0, 2, 4 …, then rows 1, 3, 5 …"""
    return torch.cat((alternating[0::2], alternating[1::2]))


def _rows_apart(alternating_XN: Tensor) -> Tensor:
    """The same of the second dimension."""
    return torch.cat((alternating_XN[:, 0::2], alternating_XN[:, 1::2]), dim=1)


def _tensors(weights: ExpertWeights) -> list[Tensor]:
    if isinstance(weights, Tensor):
        return [weights]
    if isinstance(weights, Mxfp4):
        return [weights.blocks, weights.scales]
    found = []
    for linear in weights:
        assert isinstance(linear.weight, Tensor | Quantised)
        found += fusing.tensors_of(linear.weight)
    return found
