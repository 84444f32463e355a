"""Philox4x32-10 and its Gumbel noise on the device, word for word those of `ops/reference/philox.py`.

    counter (token // 4, position, choice, 0), key = the seed's two words      four words ─▶ four neighbouring tokens

Noise is float64, as the reference's: near 1 a uniform number is still told apart from 1. It knows nothing of logits.
"""

from __future__ import annotations

import triton.language as tl

from inference_stack.ops.triton.kernel import kernel


@kernel
def philox4x32(c0: tl.tensor, c1: tl.tensor, c2: tl.tensor, c3: tl.tensor, k0: tl.tensor, k1: tl.tensor) -> tl.tensor:
    """Ten rounds over uint32 words, all of one shape."""
    left_factor, right_factor = tl.full((), 0xD2511F53, tl.uint32), tl.full((), 0xCD9E8D57, tl.uint32)
    left_weyl, right_weyl = tl.full((), 0x9E3779B9, tl.uint32), tl.full((), 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(10):
        left_high, right_high = tl.umulhi(c0, left_factor), tl.umulhi(c2, right_factor)
        left_low, right_low = c0 * left_factor, c2 * right_factor
        c0, c1 = right_high ^ c1 ^ k0, right_low
        c2, c3 = left_high ^ c3 ^ k1, left_low
        k0, k1 = k0 + left_weyl, k1 + right_weyl
    return c0, c1, c2, c3


@kernel
def words_of(
    first: tl.tensor, seed: tl.tensor, position: tl.tensor, choice: tl.tensor, BLOCK: tl.constexpr
) -> tl.tensor:
    """uint32 [BLOCK]: the words of tokens first … first + BLOCK - 1, `first` being a multiple of 4; the rest are int64."""
    zero = tl.zeros((BLOCK // 4,), tl.uint32)
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    quad = (first // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    w0, w1, w2, w3 = philox4x32(
        quad, zero + position.to(tl.uint32), zero + choice.to(tl.uint32), zero, zero + low, zero + high
    )
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (BLOCK,))


@kernel
def gumbel_of(words: tl.tensor) -> tl.tensor:
    """-log(-log u) in float64, u = (word + 1/2) / 2³²."""
    uniform = (words.to(tl.float64) + 0.5) * 2.3283064365386963e-10
    return -tl.log(-tl.log(uniform))
