"""What every op should give, in float64 on the CPU, written from its definition and as plainly as it can be."""

from __future__ import annotations

import torch
from torch import Tensor

from inference_stack.ops.api import Experts, HeadSpec, Mxfp4, Quantised
from inference_stack.ops.reference import mxfp4, quantised


def double(x: Tensor) -> Tensor:
    """The same numbers in float64 on the CPU."""
    return x.detach().cpu().double()


def rmsnorm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight."""
    x_TD = double(x_TD)
    return x_TD * (x_TD.square().mean(-1, keepdim=True) + eps).rsqrt() * double(weight_D)


def gated(gate_up_TX: Tensor, kind: str) -> Tensor:
    """act(gate) * up."""
    gate, up = double(gate_up_TX).chunk(2, dim=-1)
    if kind == "silu":
        return gate * torch.sigmoid(gate) * up
    return 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) * up


def dense(weight: Tensor | Quantised) -> Tensor:
    """A weight's numbers [N, K]."""
    if isinstance(weight, Tensor):
        return double(weight)
    cpu = {name: getattr(weight, name) for name in ("codes", "scale_NG", "zero_NG", "order_K")}
    moved = {name: None if part is None else part.cpu() for name, part in cpu.items()}
    return quantised.dequantise(Quantised(bits=weight.bits, group=weight.group, **moved)).double()  # type: ignore[arg-type]


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """x @ W.T + b, of a weight's numbers."""
    y_TN = double(x_TK) @ weight_NK.T
    return y_TN if bias_N is None else y_TN + double(bias_N)


def rotated(qkv_TX: Tensor, heads: HeadSpec, positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of a fused projection, q and k normalised where asked and rotated: [T, heads, E] each."""
    split = heads.q_heads + heads.kv_heads
    parts = double(qkv_TX).view(qkv_TX.shape[0], split + heads.kv_heads, heads.head_dim)
    q, k, v = parts[:, : heads.q_heads], parts[:, heads.q_heads : split], parts[:, split:]
    if heads.q_norm_E is not None and heads.k_norm_E is not None:
        q, k = rmsnorm(q, heads.q_norm_E, heads.norm_eps), rmsnorm(k, heads.k_norm_E, heads.norm_eps)
    where = positions_T.cpu()
    cos, sin = (double(table)[where][:, None] for table in (heads.rope.cos_PE, heads.rope.sin_PE))
    return _turn(q, cos, sin), _turn(k, cos, sin), v


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def attention(
    q_NHE: Tensor,
    k_LGE: Tensor,
    v_LGE: Tensor,
    scale: float,
    *,
    window: int | None = None,
    softcap: float = 0.0,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """o [N, H·E] of the last N positions of one sequence of L. Keys that a window hides from all of them are not looked at."""
    queries, heads, width = q_NHE.shape
    hides = 0 if window is None else max(0, k_LGE.shape[0] - queries - window + 1)
    k_LGE, v_LGE = k_LGE[hides:], v_LGE[hides:]
    length, groups = k_LGE.shape[:2]
    k, v = (x.double().repeat_interleave(heads // groups, 1).transpose(0, 1) for x in (k_LGE, v_LGE))
    s_HNL = double(q_NHE).transpose(0, 1) @ k.transpose(1, 2) * scale
    if softcap:
        s_HNL = softcap * torch.tanh(s_HNL / softcap)
    position_N1, key_L = torch.arange(length - queries, length)[:, None], torch.arange(length)
    hidden = key_L > position_N1
    if window is not None:
        hidden |= key_L <= position_N1 - window
    s_HNL = s_HNL.masked_fill(hidden, -torch.inf)
    if sinks_H is not None:
        sink = double(sinks_H)[:, None, None].expand(-1, queries, 1)
        p_HNL = torch.softmax(torch.cat([s_HNL, sink], dim=-1), dim=-1)[..., :-1]
    else:
        p_HNL = torch.softmax(s_HNL, dim=-1)
    return (p_HNL @ v).transpose(0, 1).reshape(queries, heads * width)


def stacked(weights: Tensor | Mxfp4) -> Tensor:
    """The numbers of stacked experts [X, N, K]."""
    if isinstance(weights, Tensor):
        return double(weights)
    return mxfp4.dequantise(weights.blocks.cpu(), weights.scales.cpu()).double()


def experts(x_TD: Tensor, logits_TX: Tensor, given: Experts) -> Tensor:
    """Σ weight · expert(x) over each token's best experts. `given` must hold weights as they were loaded."""
    assert not isinstance(given.gate_up, tuple) and not isinstance(given.down, tuple)
    gate_up, down = stacked(given.gate_up), stacked(given.down)
    x_TD, logits_TX = double(x_TD), double(logits_TX)
    best = logits_TX.topk(given.top_k, dim=-1)
    over = best.values if given.normalised else logits_TX
    weight_TK = (best.values - over.logsumexp(-1, keepdim=True)).exp()
    y_TD = torch.zeros_like(x_TD)
    for token, (chosen, weights) in enumerate(zip(best.indices.tolist(), weight_TK, strict=True)):
        for expert, weight in zip(chosen, weights, strict=True):
            y_TD[token] += weight * _expert(x_TD[token], gate_up[expert], down[expert], expert, given)
    return y_TD


def _expert(x_D: Tensor, gate_up_ND: Tensor, down_DI: Tensor, expert: int, given: Experts) -> Tensor:
    inner = gate_up_ND @ x_D
    if given.gate_up_bias_XN is not None:
        inner = inner + double(given.gate_up_bias_XN[expert])
    if given.activation == "clamped_swiglu":
        gate, up = inner.chunk(2)
        gate, up = gate.clamp(max=given.limit), up.clamp(-given.limit, given.limit)
        inner = gate * torch.sigmoid(given.alpha * gate) * (up + 1)
    else:
        inner = gated(inner, given.activation)
    out = down_DI @ inner
    return out if given.down_bias_XD is None else out + double(given.down_bias_XD[expert])
