"""Which token stands where: endless streams of made-up tokens, computed from (stream, index) alone.

Nothing is stored, so prompts and answers of any length cost memory only while looked at. Knows no request and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from inference_stack.core.errors import invalid
from inference_stack.simulator.api import Segment

FIRST_TOKEN: Final = 16
"""Ids below this are left to special tokens such as the end of sequence: a stream never contains them."""

_MASK: Final = 2**64 - 1
# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a Weyl sequence of this step, each state scrambled by the two factors.
_STEP: Final = 0x9E3779B97F4A7C15
_FACTORS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)

TokenArray = npt.NDArray[np.int32]


def mix64(value: int) -> int:
    """Scrambles 64 bits, one to one: different values (modulo 2^64) give different results."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _FACTORS[0]) & _MASK
    value = ((value ^ (value >> 27)) * _FACTORS[1]) & _MASK
    return value ^ (value >> 31)


def derive(*names: int) -> int:
    """An unsigned 64-bit number that stands for these numbers in this order."""
    state = 0
    for name in names:
        state = mix64((state + _STEP) ^ name)
    return state


def stream(source: int, start: int, count: int, vocab_size: int) -> TokenArray:
    """Tokens `start`, … of stream `source` [count] int32, each in [FIRST_TOKEN, vocab_size).

    Raises `InferenceError` for a vocabulary with no room above `FIRST_TOKEN`.
    """
    return _tokens((Segment(source, start, count),), vocab_size)


def token(source: int, index: int, vocab_size: int) -> int:
    """The one token that `stream` has at `index`."""
    return token_at(_key(source), index, vocab_size)


def token_at(key: int, index: int, vocab_size: int) -> int:
    """The one token at `index` of the stream with this `answer_key`."""
    state = mix64(key + (index + 1) * _STEP)
    return FIRST_TOKEN + ((state >> 32) * _span(vocab_size) >> 32)


def prompt_tokens(segments: Sequence[Segment], vocab_size: int) -> tuple[int, ...]:
    """The tokens of a prompt, piece after piece."""
    return tuple(_tokens(segments, vocab_size).tolist())


def _tokens(segments: Sequence[Segment], vocab_size: int) -> TokenArray:
    """All pieces in one pass: token k of the prompt has the state base + k · step, with a base for each piece."""
    span = _span(vocab_size)
    bases, counts, before = [], [], 0
    for source, start, count in segments:
        bases.append((_key(source) + (start + 1 - before) * _STEP) & _MASK)
        counts.append(count)
        before += count
    state = np.arange(before, dtype=np.uint64)
    state *= np.uint64(_STEP)
    state += np.repeat(np.array(bases, dtype=np.uint64), counts)
    return _scrambled(state, span)


def answer_key(seed: int) -> int:
    """What `token_at` and `tokens_at` want to know of stream `seed`."""
    return _key(seed)


def tokens_at(keys: npt.NDArray[np.uint64], indices: npt.NDArray[np.int64], vocab_size: int) -> TokenArray:
    """One token of each of many streams, given by their `answer_key`s: arrays of any shapes that broadcast together."""
    state = indices.astype(np.uint64)
    state = (state + np.uint64(1)) * np.uint64(_STEP) + keys
    return _scrambled(state, _span(vocab_size))


def _scrambled(state: npt.NDArray[np.uint64], span: int) -> TokenArray:
    """The state's scramble as a token; `state` is used up."""
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        state ^= state >> np.uint64(shift)
        state *= np.uint64(factor)
    # The last scramble, state ^ (state >> 31), and its upper half scaled to the span: no modulo, hence no slow division.
    state ^= state >> np.uint64(31)
    state >>= np.uint64(32)
    state *= np.uint64(span)
    state >>= np.uint64(32)
    state += np.uint64(FIRST_TOKEN)
    return state.astype(np.int32)


def _key(source: int) -> int:
    return mix64(source + _STEP)


def _span(vocab_size: int) -> int:
    if vocab_size <= FIRST_TOKEN:
        raise invalid(f"a vocabulary of {vocab_size} has no tokens above the {FIRST_TOKEN} special ones")
    return vocab_size - FIRST_TOKEN
