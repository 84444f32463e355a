"""`Ops.experts` on GPUs: routed on the device, then by pairs for few tokens and by tiles for many. The host reads nothing back.

    pairs   while most experts have no token: each pair reads its own rows
    tiles   pairs sorted by expert, so that an expert's weights are read once for all its tokens; always in deterministic mode

Dense weights are kept in the activations' type, MXFP4 as it is. Group-quantised experts become dense: no kernel reads them.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from inference_stack.ops.api import Experts, ExpertWeights, Linear, Mxfp4, Quantised
from inference_stack.ops.reference.quantised import dequantise
from inference_stack.ops.triton import experts_pairs, experts_tiles
from inference_stack.ops.triton.experts_routing import by_expert, route
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

SLAB: Final = 8192
"""Tokens that are sorted and multiplied at once: what lies between takes K times the activations' memory."""


class TritonExperts:
    """`Ops.experts`, and `Ops.prepare` for experts."""

    def __init__(self, workspace: Workspace, settings: TritonSettings) -> None:
        self._workspace = workspace
        self._settings = settings

    def __call__(self, x_TD: Tensor, router_logits_TX: Tensor, experts: Experts) -> Tensor:
        """y_TD in the type of x."""
        self.prepare(experts)
        x_TD = x_TD if x_TD.stride(1) == 1 else x_TD.contiguous()
        y_TD = self._workspace.take_like(x_TD, x_TD.shape, x_TD.dtype)
        for start in range(0, x_TD.shape[0], SLAB):
            part = slice(start, start + SLAB)
            self._slab(x_TD[part], router_logits_TX[part], experts, y_TD[part])
        return y_TD

    def _slab(self, x_TD: Tensor, router_logits_TX: Tensor, experts: Experts, y_TD: Tensor) -> None:
        experts_TK, weights_TK = route(self._workspace, router_logits_TX, experts.top_k, experts.normalised)
        pairs, count = experts_TK.numel(), router_logits_TX.shape[1]
        if not self._settings.deterministic and few(pairs, count, experts.top_k):
            return experts_pairs.run(self._workspace, x_TD, experts, experts_TK, weights_TK, y_TD)
        shape = experts_tiles.FIXED if self._settings.deterministic else experts_tiles.shape_for(pairs, count)
        tiles = by_expert(experts_TK, count, shape.rows)
        return experts_tiles.run(self._workspace, x_TD, experts, weights_TK, tiles, shape, y_TD)

    def prepare(self, experts: Experts) -> None:
        """Stack what is separate, and keep dense weights in the activations' type."""
        if isinstance(experts.gate_up, tuple):
            experts.gate_up_bias_XN = _biases(experts.gate_up)
        if isinstance(experts.down, tuple):
            experts.down_bias_XD = _biases(experts.down)
        experts.gate_up = _stacked(experts.gate_up, self._settings.dtype)
        experts.down = _stacked(experts.down, self._settings.dtype)


def few(pairs: int, count: int, top_k: int) -> bool:
    """Whether pairs seldom share an expert, so that sorting them would save no reading."""
    return pairs <= max(count // 2, 2 * top_k)


def _stacked(weights: ExpertWeights, dtype: torch.dtype) -> Tensor | Mxfp4:
    if isinstance(weights, tuple):
        return torch.stack([_dense(linear).to(dtype) for linear in weights])
    if isinstance(weights, Mxfp4):
        return weights
    return weights.to(dtype).contiguous()


def _dense(linear: Linear) -> Tensor:
    if isinstance(linear.weight, Quantised):
        return dequantise(linear.weight)
    if isinstance(linear.weight, Tensor):
        return linear.weight
    raise TypeError("the experts were prepared for another implementation")


def _biases(linears: tuple[Linear, ...]) -> Tensor | None:
    found = [linear.bias_N for linear in linears]
    if all(bias_N is None for bias_N in found):
        return None
    some = next(bias_N for bias_N in found if bias_N is not None)
    return torch.stack([torch.zeros_like(some) if bias_N is None else bias_N for bias_N in found])
