"""The device's Philox against the known answers of the Random123 distribution, and its noise against the reference's."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from torch import Tensor

from inference_stack.ops.reference.philox import gumbel, noise_all
from inference_stack.ops.triton.kernel import kernel
from inference_stack.ops.triton.philox import gumbel_of, philox4x32, words_of
from tests.ops.test_philox import KNOWN

BLOCK = 64


@kernel
def rounds_kernel(counter: tl.tensor, key: tl.tensor, out: tl.tensor) -> None:
    """out[4] = the words of one counter and one key, all uint32 in int64."""
    lane = tl.zeros((1,), tl.int32)
    words = philox4x32(
        tl.load(counter + lane).to(tl.uint32), tl.load(counter + 1 + lane).to(tl.uint32),
        tl.load(counter + 2 + lane).to(tl.uint32), tl.load(counter + 3 + lane).to(tl.uint32),
        tl.load(key + lane).to(tl.uint32), tl.load(key + 1 + lane).to(tl.uint32),
    )  # fmt: skip
    for place in tl.static_range(4):
        tl.store(out + place + lane, words[place].to(tl.int64))


@kernel
def noise_kernel(
    words: tl.tensor, noise: tl.tensor, first: tl.tensor, seed: tl.tensor, position: tl.tensor, choice: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Words and noise of tokens first … first + BLOCK - 1."""
    lane = tl.arange(0, BLOCK)
    found = words_of(tl.load(first), tl.load(seed), tl.load(position), tl.load(choice), BLOCK)
    tl.store(words + lane, found.to(tl.int64))
    tl.store(noise + lane, gumbel_of(found))


def noise_at(first: int, seed: int, position: int, choice: int) -> tuple[Tensor, Tensor]:
    words, noise = torch.empty(BLOCK, dtype=torch.int64), torch.empty(BLOCK, dtype=torch.float64)
    noise_kernel[(1,)](words, noise, *(torch.tensor([one]) for one in (first, seed, position, choice)), BLOCK=BLOCK)
    return words, noise


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    out = torch.empty(4, dtype=torch.int64)
    rounds_kernel[(1,)](torch.tensor(counter), torch.tensor(key), out)
    assert tuple(out.tolist()) == expected


@pytest.mark.parametrize("first", [0, 128_000])
@pytest.mark.parametrize(
    ("seed", "position", "choice"), [(0, 0, 0), (-1, 70_000, 3), (2**62 + 5, 1, 0), (-(2**63), 2**31 - 1, 127)]
)
def test_noise_is_the_references(first: int, seed: int, position: int, choice: int) -> None:
    words, noise = noise_at(first, seed, position, choice)
    key = (torch.tensor([one]) for one in (seed, position, choice))
    expected = noise_all(*key, first + BLOCK)[0, first:]
    assert torch.equal(gumbel(words), expected)
    torch.testing.assert_close(noise, expected, rtol=1e-14, atol=1e-14)  # logarithms may round differently
