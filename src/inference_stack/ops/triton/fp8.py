"""Products by weights rounded to float8 (e4m3, a scale for each output) with activations rounded too (a scale for each row).

    d[t] = max|x[t]| / 448    q[t] = e4m3(x[t] / d[t])          y[t, n] = d[t] · scale[n] · Σ q · code, summed in fp32

Half the bytes of 16-bit weights are read, N·K of them a row, and twice the products are made in the same time. The sum is the
library's, on GPUs that have such instructions; elsewhere the weight is widened again, at no gain in time, and activations are not
rounded. A row with NaN or infinity gives no finite result, and touches no other. (arXiv:2209.05433)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import triton.language as tl
from torch import Tensor

from inference_stack.ops.triton.kernel import Shipped, kernel, kernel_for_any

CODES: Final = torch.float8_e4m3fn
LARGEST: Final = 448.0
TINY: Final = 1e-30
"""The largest magnitude below which a row counts as zeros."""
WIDTH: Final = 1024
MULTIPLE: Final = 16
"""What both sides of a weight must be a multiple of for the library's product."""
OLDEST: Final = (8, 9)
PART_BYTES: Final = 64 << 20
"""Memory that is taken beside a weight while it is rounded."""


@kernel
def e4m3(value: tl.tensor) -> tl.tensor:
    """fp32 of at most 448 in magnitude, rounded half to even, as the bits of e4m3 (uint8); NaN stays NaN. By integers, since not
    every GPU has an instruction for it."""
    bits = value.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # Seven bits less of exponent bias and 20 of mantissa: adding just under a half, and one more where the last bit is odd.
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2 ** -6 codes are multiples of 2 ** -9, which is the last bit of numbers from 2 ** 14 on.
    small = (tl.abs(value) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0x3C800000, small, normal)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@kernel_for_any("x_stride")
def round_kernel(
    x: tl.tensor, codes: tl.tensor, scale: tl.tensor, depth: tl.tensor, x_stride: tl.tensor, WIDTH: tl.constexpr
) -> None:
    """One row of x, as codes [rows, depth] uint8 and scale [rows] fp32."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH)
    most = tl.zeros([WIDTH], tl.float32)
    for start in range(0, depth, WIDTH):
        part = tl.load(x + row * x_stride + start + k, mask=start + k < depth, other=0.0).to(tl.float32)
        most = tl.maximum(most, tl.abs(part), propagate_nan=tl.PropagateNan.ALL)
    top = tl.max(most, 0)
    # Comparisons that NaN fails: a row that is not finite has a scale that is not, even where the maximum overlooks NaN.
    broken = tl.sum((most != most).to(tl.int32), 0) > 0
    top = tl.where(broken, float("nan"), top)
    top = tl.where(top <= 1e-30, 0.0, top)
    inverse = tl.where(top == 0.0, 0.0, 448.0 / top)
    tl.store(scale + row, top / 448.0)
    for start in range(0, depth, WIDTH):
        inside = start + k < depth
        part = tl.load(x + row * x_stride + start + k, mask=inside, other=0.0).to(tl.float32)
        tl.store(codes + row * depth + start + k, e4m3(part * inverse), mask=inside)


def round_rows(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """(codes e4m3 [T, K], scales fp32 [T, 1]) of activations whose columns are neighbours."""
    rows, depth = x_TK.shape
    codes_TK = torch.empty((rows, depth), dtype=CODES, device=x_TK.device)
    scale_T1 = torch.empty((rows, 1), dtype=torch.float32, device=x_TK.device)
    round_kernel[(rows,)](x_TK, codes_TK.view(torch.uint8), scale_T1, depth, x_TK.stride(0), WIDTH, num_warps=4)
    return codes_TK, scale_T1


def refuses(device: torch.device, shape: tuple[int, int], dtype: torch.dtype) -> str | None:
    """Why the library cannot multiply a weight [N, K] of float8 on this device, or None."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"{device} is not an NVIDIA GPU"
    if (capability := torch.cuda.get_device_capability(device)) < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is older than 8.9"
    if shape[0] % MULTIPLE or shape[1] % MULTIPLE:
        return f"{shape[0]} × {shape[1]} are not both multiples of {MULTIPLE}"
    return None if dtype == torch.bfloat16 else f"results would be {dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Float8Weight:
    """A weight [N, K] as codes e4m3 with `scale_1N` fp32 (`Prepared`), for activations of `dtype`. `refused` says why the library
    does not multiply by it."""

    codes_NK: Tensor
    scale_1N: Tensor
    bias_N: Tensor | None
    dtype: torch.dtype
    refused: str | None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.codes_NK.shape[0], self.codes_NK.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes_NK.nbytes + self.scale_1N.nbytes

    def rows(self, index_T: Tensor) -> Tensor:
        """Some rows of the weight, fp32 [T, K]."""
        codes_TK = self.codes_NK.view(torch.uint8).index_select(0, index_T).view(CODES)
        return codes_TK.to(torch.float32) * self.scale_1N[0, index_T, None]

    def multiply(self, x_TK: Tensor, y_TN: Tensor) -> None:
        """y = x @ W.T + b; x and y of `dtype`."""
        if self.refused is None:
            codes_TK, scale_T1 = round_rows(x_TK if x_TK.stride(1) == 1 else x_TK.contiguous())
            torch._scaled_mm(
                codes_TK,
                self.codes_NK.t(),
                scale_T1,
                self.scale_1N,
                out_dtype=self.dtype,
                use_fast_accum=True,
                out=y_TN,
            )
        else:
            dense_NK = (self.codes_NK.to(torch.float32) * self.scale_1N.t()).to(self.dtype)
            torch.mm(x_TK, dense_NK.t(), out=y_TN)
        if self.bias_N is not None:
            y_TN += self.bias_N


def rounded(weight_NK: Tensor, bias_N: Tensor | None, device: torch.device, dtype: torch.dtype) -> Float8Weight:
    """A dense weight rounded to float8, on a device."""
    outputs, depth = weight_NK.shape
    codes_NK = torch.empty((outputs, depth), dtype=CODES, device=device)
    scale_1N = torch.empty((1, outputs), dtype=torch.float32, device=device)
    step = max(1, PART_BYTES // (4 * depth))
    for first in range(0, outputs, step):
        part = slice(first, min(first + step, outputs))
        dense_NK = weight_NK[part].detach().to(device, torch.float32)
        scale_N1 = dense_NK.abs().amax(1, keepdim=True).clamp_(min=TINY).div_(LARGEST)
        codes_NK[part].copy_((dense_NK / scale_N1).clamp_(-LARGEST, LARGEST))
        scale_1N[0, part] = scale_N1[:, 0]
    bias = None if bias_N is None else bias_N.to(device, dtype)
    refused = refuses(codes_NK.device, (outputs, depth), dtype)
    return Float8Weight(codes_NK=codes_NK, scale_1N=scale_1N, bias_N=bias, dtype=dtype, refused=refused)


SHIPPED: Final = (
    Shipped(
        name="rows to float8",
        kernel=round_kernel,
        signature={"x": "*bf16", "codes": "*u8", "scale": "*fp32", "depth": "i32", "x_stride": "i32"},
        constants={"WIDTH": WIDTH},
        aligned=("x", "codes", "scale", "depth"),
    ),
)
