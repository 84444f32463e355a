"""Mixtures of experts on top of any `linear`: tokens are grouped by expert, and each group goes through its expert at once.

    logits ─ route ─▶ experts and weights of each token ─ by expert ─▶ gate and up ─▶ activation ─▶ down ─▶ y += weight · out

A token's outputs are added in ascending order of its experts, each computed by products whose rows depend on themselves alone,
so that neighbours change no bit. Which experts have tokens is read on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from inference_stack.ops.api import Experts, Linear, Mxfp4
from inference_stack.ops.reference import mxfp4
from inference_stack.ops.workspace import Workspace

GATED: Final = ("silu", "gelu_tanh")


class Projection(Protocol):
    """`Ops.linear` with the preparation of its weights."""

    def __call__(self, x_TK: Tensor, weight: Linear) -> Tensor:
        """y_TN = x @ W.T + b."""
        ...

    def prepare(self, weight: Linear) -> None:
        """Lay a weight out."""
        ...


class GroupedExperts:
    """`Ops.experts`, and `Ops.prepare` for experts, over an implementation of `linear` and one of `act_mul`."""

    def __init__(self, workspace: Workspace, linear: Projection, act_mul: Callable[..., Any]) -> None:
        self._workspace = workspace
        self._linear = linear
        self._act_mul = act_mul

    def __call__(self, x_TD: Tensor, router_logits_TX: Tensor, experts: Experts) -> Tensor:
        """y_TD fp32."""
        self.prepare(experts)
        index_TK, weight_TK = route(router_logits_TX, experts.top_k, experts.normalised)
        y_TD = self._workspace.take_like(x_TD, x_TD.shape, torch.float32).zero_()
        for expert, tokens_N, ranks_N in _groups(index_TK):
            out_ND = self._expert(x_TD, tokens_N, experts, expert)
            y_TD.index_add_(0, tokens_N, out_ND.mul_(weight_TK[tokens_N, ranks_N, None]))
            del out_ND  # so that every expert finds the workspace as the first one did
        return y_TD

    def _expert(self, x_TD: Tensor, tokens_N: Tensor, experts: Experts, expert: int) -> Tensor:
        """What one expert makes of some tokens."""
        gate_up, down = experts.gate_up, experts.down
        assert isinstance(gate_up, tuple) and isinstance(down, tuple)
        x_ND = self._workspace.take_like(x_TD, (len(tokens_N), x_TD.shape[1]), x_TD.dtype)
        torch.index_select(x_TD, 0, tokens_N, out=x_ND)
        return self._linear(self._activated(self._linear(x_ND, gate_up[expert]), experts), down[expert])

    def prepare(self, experts: Experts) -> None:
        """Make one prepared projection of every expert's part, in place of stacked weights."""
        if not isinstance(experts.gate_up, tuple):
            experts.gate_up = self._separate(experts.gate_up, experts.gate_up_bias_XN)
            experts.gate_up_bias_XN = None
        if not isinstance(experts.down, tuple):
            experts.down = self._separate(experts.down, experts.down_bias_XD)
            experts.down_bias_XD = None
        for linear in (*experts.gate_up, *experts.down):
            self._linear.prepare(linear)

    def _separate(self, weights: Tensor | Mxfp4, bias_XN: Tensor | None) -> tuple[Linear, ...]:
        made = []
        for expert in range(weights.shape[0]):
            bias_N = None if bias_XN is None else bias_XN[expert].clone()
            linear = Linear(weight=_one(weights, expert), bias_N=bias_N)
            self._linear.prepare(linear)
            made.append(linear)
        return tuple(made)

    def _activated(self, gate_up_NX: Tensor, experts: Experts) -> Tensor:
        if experts.activation in GATED:
            inner: Tensor = self._act_mul(gate_up_NX, experts.activation)
            return inner
        rows, width = gate_up_NX.shape
        out_NI = self._workspace.take_like(gate_up_NX, (rows, width // 2), torch.float32)
        return clamped_swiglu(gate_up_NX, experts.alpha, experts.limit, out_NI)


def _one(weights: Tensor | Mxfp4, expert: int) -> Any:
    """One expert's matrix: of a dense stack a view, which keeps the stack alive only where `prepare` keeps the matrix as it is."""
    if isinstance(weights, Mxfp4):
        return mxfp4.as_codes(weights.blocks[expert], weights.scales[expert])
    return weights[expert]


def clamped_swiglu(gate_up_NX: Tensor, alpha: float, limit: float, out_NI: Tensor) -> Tensor:
    """gate · sigmoid(alpha · gate) · (up + 1), gate at most `limit`, up within ± `limit`; of gate rows, then up rows."""
    width = gate_up_NX.shape[1] // 2
    gate_NI = gate_up_NX[:, :width].clamp(max=limit)
    up_NI = gate_up_NX[:, width:].clamp(-limit, limit)
    torch.mul(gate_NI, -alpha, out=out_NI)
    torch.div(gate_NI, out_NI.exp_().add_(1.0), out=out_NI)
    return out_NI.mul_(up_NI.add_(1.0))


def route(logits_TX: Tensor, top_k: int, normalised: bool) -> tuple[Tensor, Tensor]:
    """Expert ids int64 [T, K], best first, ties in ascending order; and their weights fp32 [T, K].

    Weights are shares of a softmax over all experts, or with `normalised` over the chosen ones. Rows whose logits are not all
    finite get weights of NaN.
    """
    logits_TX = logits_TX.to(torch.float32)
    order = torch.sort(logits_TX, dim=-1, descending=True, stable=True)
    best_TK, index_TK = order.values[:, :top_k], order.indices[:, :top_k].contiguous()
    counted_TX = best_TK if normalised else logits_TX
    top_T1 = best_TK[:, :1]
    total_T1 = (counted_TX - top_T1).exp_().sum(-1, keepdim=True)
    poison_T1 = (logits_TX - logits_TX).sum(-1, keepdim=True)
    return index_TK, (best_TK - top_T1).exp_().div_(total_T1).add_(poison_T1)


def _groups(index_TK: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Every expert that has tokens, in ascending order, with its tokens, ascending, and the ranks it has with them."""
    if not index_TK.numel():
        return
    order = torch.argsort(index_TK.flatten(), stable=True)
    counts: Sequence[int] = torch.bincount(index_TK.flatten()).tolist()
    parts = order.split([count for count in counts if count])
    for expert, part in zip((expert for expert, count in enumerate(counts) if count), parts, strict=True):
        yield expert, part // index_TK.shape[1], part % index_TK.shape[1]
