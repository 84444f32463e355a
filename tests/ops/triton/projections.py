"""What tests of projections share: ops over a workspace on the CPU, quantised weights of every form, an oracle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inference_stack.ops.api import Linear, Quantised
from inference_stack.ops.triton.linear import TritonLinear
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace


def make_linear(
    dtype: torch.dtype = torch.float16, deterministic: bool = False, weights: Any = "native"
) -> TritonLinear:
    """`Ops.linear` over a workspace that still measures."""
    settings = TritonSettings(dtype=dtype, deterministic=deterministic, weights=weights)
    return TritonLinear(Workspace(max_tokens=256, max_samples=16), settings)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float16) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quantised(
    bits: int, group: int, inputs: int, outputs: int, *, half: bool = True, zeros: bool = True, shuffled: bool = False
) -> Quantised:
    """Random codes over their whole range, scales of different sizes."""
    draw = torch.Generator().manual_seed(bits * 1000 + group + inputs + outputs)
    codes = torch.randint(0, 256, (outputs, inputs * bits // 8), generator=draw)
    scale = torch.rand(outputs, inputs // group, generator=draw) * 0.1 + 0.001
    scale = scale.to(torch.float16) if half else scale
    return Quantised(
        bits=bits,
        codes=codes.to(torch.uint8) if bits == 4 else (codes - 128).to(torch.int8),
        scale_NG=scale,
        zero_NG=(-7 * scale.float()).to(scale.dtype) if zeros else None,
        group=group,
        order_K=torch.randperm(inputs, generator=draw).to(torch.int32) if shuffled else None,
    )


def error(found: Tensor, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> float:
    """Largest error relative to the largest result, against float64; infinite where something is not finite."""
    wanted = x_TK.double() @ weight_NK.double().t() + (0 if bias_N is None else bias_N.double())
    off = ((found.double() - wanted).abs().max() / wanted.abs().max()).item()
    return off if found.isfinite().all() else float("inf")


def assert_rows_alone(linear: TritonLinear, weight: Linear, x_TK: Tensor, batches: tuple[int, ...]) -> None:
    """Each row has the bits that it has in the whole of x, in batches of these sizes, and at other places."""
    whole = linear(x_TK, weight).clone()
    for size in batches:
        first = (size * 7) % (len(x_TK) - size + 1)
        part = slice(first, first + size)
        assert torch.equal(linear(x_TK[part].clone(), weight), whole[part])
    turned = linear(x_TK.flip(0).contiguous(), weight)
    assert torch.equal(turned.flip(0), whole)
