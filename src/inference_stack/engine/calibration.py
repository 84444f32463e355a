"""What the projections of a model are fed: second moments of their inputs over some text, by which rounding errors are judged.

One pass of the model as it is served. Moments are kept for blocks of neighbouring columns, so that they stay far smaller than
the model. Knows tokens and projections; what moments are for is `models/quantise.py`'s business.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from inference_stack.artifacts.files import Progress, silent
from inference_stack.engine.quality import Windows
from inference_stack.engine.subject import Subject
from inference_stack.models.outline import HEAD, Outline, Projection
from inference_stack.models.quantise import Curvature, Target, block_for
from inference_stack.ops.api import Linear

BLOCK_COLUMNS: Final = 512


def calibrate(
    model: Subject, outline: Outline, target: Target, windows: Windows, progress: Progress = silent
) -> dict[str, Curvature]:
    """The inputs' moments of every quantisable module, by its name."""
    moments = _Moments(model, outline, target)
    model.watch(moments.add)
    for done, window in enumerate(windows):
        for _ in model.logits(window):
            pass
        progress("calibrating", done + 1, len(windows))
    return moments.by_module()


class _Moments:
    """Sums of x xᵀ per projection."""

    def __init__(self, model: Subject, outline: Outline, target: Target) -> None:
        pairs = zip(outline.linears, model.loaded.linears, strict=True)
        self._known = {id(linear): one for one, linear in pairs if one and HEAD not in one.modules}
        self._blocks = {one: _blocks(one, target) for one in self._known.values()}

    def add(self, linear: Linear, x_TK: Tensor) -> None:
        """Take in the inputs of one step."""
        if (one := self._known.get(id(linear))) is None:
            return
        start = 0
        for moment in self._blocks[one]:
            x_TB = x_TK[:, start : start + moment.shape[0]].to(torch.float32)
            moment.addmm_(x_TB.T, x_TB)
            start += moment.shape[0]

    def by_module(self) -> dict[str, Curvature]:
        """The sums, once for each module."""
        return {
            module: curvature
            for one, blocks in self._blocks.items()
            for curvature in [Curvature(blocks)]
            for module in one.modules
        }


def _blocks(one: Projection, target: Target) -> list[Tensor]:
    group = target.group_of(one.modules[0], one.inputs)
    block = block_for(group, one.inputs, BLOCK_COLUMNS)
    sizes = [min(block, one.inputs - start) for start in range(0, one.inputs, block)]
    return [torch.zeros(size, size) for size in sizes]
