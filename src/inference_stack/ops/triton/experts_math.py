"""What the kernels of experts share: gated activations, and the numbers of MXFP4.

fp4 codes are widened through fp16, whose two lowest exponents hold them exactly: an e2m1 code at bit 9 is its value · 2 ** -14.
"""

from __future__ import annotations

from typing import Final

import triton.language as tl

from inference_stack.ops.triton.kernel import kernel

SILU: Final = 0
GELU: Final = 1
CLAMPED: Final = 2
KINDS: Final = {"silu": SILU, "gelu_tanh": GELU, "clamped_swiglu": CLAMPED}


@kernel
def gated(gate: tl.tensor, up: tl.tensor, alpha: tl.tensor, limit: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """The activation of fp32 gate and up; see `Experts`."""
    if KIND == 0:
        return gate / (1.0 + tl.exp(-gate)) * up
    elif KIND == 1:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        return gate / (1.0 + tl.exp(-2.0 * inner)) * up
    else:
        # Comparisons that NaN fails, so that it stays.
        high = tl.where(gate > limit, limit, gate)
        side = tl.where(up > limit, limit, up)
        side = tl.where(side < -limit, -limit, side)
        return high / (1.0 + tl.exp(-alpha * high)) * (side + 1.0)


@kernel
def fp4_value(code: tl.tensor) -> tl.tensor:
    """A code 0 … 15, as an integer, times 2 ** -14, fp32."""
    bits = ((code & 8) << 12) | ((code & 7) << 9)
    return bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@kernel
def fp4_scale(scale: tl.tensor) -> tl.tensor:
    """2 ** (scale - 127), times the 2 ** 14 that `fp4_value` lacks, fp32. 255 gives NaN; 0, which means 2 ** -127, gives 0."""
    power = (scale.to(tl.uint32) << 23).to(tl.float32, bitcast=True) * 16384.0
    return tl.where(scale == 255, float("nan"), power)
