"""Philox4x32-10 and the noise made of it (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

Numbers are 32-bit words held in int64 tensors. Noise is a function of (seed, position, choice, token) and of nothing else:
key = the seed's two words, counter = (token // 4, position, choice, 0), and token % 4 picks the word of the output.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

MASK: Final = 0xFFFFFFFF
MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
WEYL: Final = (0x9E3779B9, 0xBB67AE85)
ROUNDS: Final = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Ten rounds over four counter words under two key words; all int64 in 0 … 2³²-1, broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The product of two words fits 64 bits; as int64 it may wrap to negative, and the mask restores the upper word.
        left, right = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (right >> 32).bitwise_and_(MASK) ^ (c1 ^ k0)
        c2 = (left >> 32).bitwise_and_(MASK) ^ (c3 ^ k1)
        c1, c3 = right.bitwise_and_(MASK), left.bitwise_and_(MASK)
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def uniforms(words: Tensor) -> Tensor:
    """u = (word + 1/2) / 2³² in float64: inside (0, 1), exact, symmetric."""
    return words.to(torch.float64).add_(0.5).mul_(2.0**-32)


def gumbel(words: Tensor) -> Tensor:
    """-log(-log u) in float64, where u near 1 is still told apart from 1: the upper tail reaches 22.9."""
    return uniforms(words).log_().neg_().log_().neg_()


def _key(seed_S: Tensor) -> tuple[Tensor, Tensor]:
    """The low and high word [S, 1] of seeds whose 64 bits are held in int64."""
    return (seed_S & MASK)[:, None], ((seed_S >> 32) & MASK)[:, None]


def noise_all(seed_S: Tensor, position_S: Tensor, choice_S: Tensor, vocab: int) -> Tensor:
    """Gumbel noise float64 [S, V] of every token."""
    block = torch.arange(-(-vocab // 4), device=seed_S.device)[None]
    zero = torch.zeros_like(seed_S)[:, None]
    words = philox4x32((block, position_S[:, None], choice_S[:, None], zero), _key(seed_S))
    return gumbel(torch.stack(words, dim=-1).flatten(1)[:, :vocab])


def noise_of(seed_S: Tensor, position_S: Tensor, choice_S: Tensor, tokens_SK: Tensor) -> Tensor:
    """Gumbel noise float64 [S, K] of the given tokens: the same numbers that `noise_all` has for them."""
    zero = torch.zeros_like(seed_S)[:, None]
    counter = (tokens_SK >> 2, position_S[:, None], choice_S[:, None], zero)
    words = torch.stack(philox4x32(counter, _key(seed_S)), dim=-1)
    return gumbel(words.gather(-1, (tokens_SK & 3)[..., None])[..., 0])
