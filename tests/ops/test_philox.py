"""Philox4x32-10 against the known answers of the Random123 distribution, and the noise made of it."""

from __future__ import annotations

import math

import pytest
import torch

from inference_stack.ops.reference.philox import gumbel, noise_all, noise_of, philox4x32

FULL = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL, FULL, FULL, FULL), (FULL, FULL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    words = philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))  # type: ignore[arg-type]
    assert tuple(int(word) for word in words) == expected


def test_noise_of_some_tokens_is_the_noise_of_all() -> None:
    seed, position, choice = torch.tensor([-1, 2**62 + 5]), torch.tensor([0, 9]), torch.tensor([0, 3])
    tokens = torch.tensor([[0, 5, 998], [998, 3, 4]])
    every = noise_all(seed, position, choice, 999)
    assert torch.equal(noise_of(seed, position, choice, tokens), every.gather(1, tokens))


def test_every_part_of_the_key_changes_the_noise() -> None:
    base = [torch.tensor([value]) for value in (3, 4, 5)]
    noise = noise_all(*base, 64)
    for index, change in ((0, 1), (0, 1 << 40), (1, 1), (2, 1)):
        other = [value + change if index == place else value for place, value in enumerate(base)]
        assert not torch.equal(noise_all(*other, 64), noise)


def test_the_tails_are_kept() -> None:
    low, high = gumbel(torch.tensor([0, FULL]))
    assert math.isclose(low, -math.log(33 * math.log(2)), rel_tol=1e-12)
    assert math.isclose(high, 33 * math.log(2), rel_tol=1e-9)
    assert gumbel(torch.tensor([FULL - 1])) < high
