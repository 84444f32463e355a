"""What is asked of every server, and the numbers that its answers make.

    single stream ▸ cold 1,000-token prompt ▸ the same prefix again ▸ 8 at once ▸ 32 at once

Pure: prompts in, replies in, numbers out. Knows no server and no clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request: the same prompt as text and as token ids, and how many tokens to answer."""

    text: str
    ids: tuple[int, ...]
    max_tokens: int


@dataclass(kw_only=True)
class Reply:
    """When tokens arrived, in seconds after the batch of requests was sent, and how many tokens the server counted."""

    events: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class Sizes:
    """Lengths in tokens of everything that is asked."""

    short: int = 128
    long: int = 1000
    tail: int = 12
    decode: int = 128
    many: int = 64
    first: int = 4


FULL = Sizes()
QUICK = Sizes(decode=48, many=16)


class Words:
    """Words that are one token each, behind a space, in a vocabulary."""

    def __init__(self, vocabulary: Iterable[str], encode: Encode) -> None:
        """`vocabulary`: spellings of tokens, their leading space included. Keeps lower-case words that `encode` leaves whole."""
        kept: dict[str, int] = {}
        for token in sorted(vocabulary):
            if token[:1] == " " and token[1:].isascii() and token[1:].isalpha() and token.islower():
                ids = encode(token)
                if len(ids) == 1:
                    kept[token] = ids[0]
        if len(kept) < 100:
            raise ValueError(f"the vocabulary has only {len(kept)} plain words")
        self._ids, self._encode, self._words = kept, encode, tuple(kept)

    def draw(self, length: int, noise: random.Random) -> tuple[str, tuple[int, ...]]:
        """Text of exactly `length` tokens and its ids. Raises `ValueError` where the tokenizer joins words after all."""
        words = noise.choices(self._words, k=length)
        text, ids = "".join(words), tuple(self._ids[word] for word in words)
        if tuple(self._encode(text)) != ids:
            raise ValueError("the tokenizer does not keep these words apart")
        return text, ids


def batches(words: Words, sizes: Sizes, seed: int) -> dict[str, list[Ask]]:
    """The batches of one repetition, by scenario, in order. Equal seeds make equal prompts; no two prompts share a prefix,
    but for `warm`, which is the prompt of `cold` and a new tail.
    """
    noise = random.Random(seed)

    def fresh(count: int, length: int, out: int) -> list[Ask]:
        drawn = (words.draw(length, noise) for _ in range(count))
        return [Ask(text=text, ids=ids, max_tokens=out) for text, ids in drawn]

    [cold] = fresh(1, sizes.long, sizes.first)
    text, ids = words.draw(sizes.tail, noise)
    return {
        "single": fresh(1, sizes.short, sizes.decode),
        "cold": [cold],
        "warm": [Ask(text=cold.text + text, ids=cold.ids + ids, max_tokens=sizes.first)],
        "at_once_8": fresh(8, sizes.short, sizes.many),
        "at_once_32": fresh(32, sizes.short, sizes.many),
    }


def warm_up(words: Words, seed: int) -> list[list[Ask]]:
    """Small batches of the same shapes, sent once after the start and not counted."""
    shapes = [batches(words, Sizes(decode=8, many=8), seed)[name] for name in ("single", "cold", "at_once_8")]
    return [*shapes, batches(words, Sizes(many=2), seed + 1)["at_once_32"]]


def check(asked: Sequence[Ask], replies: Sequence[Reply]) -> None:
    """Raises `ValueError` unless every reply has the tokens that were asked for, of prompts of the right length.

    Fewer events than tokens are normal (bytes of one character, or several tokens in one message), many fewer are not.
    """
    for ask, reply in zip(asked, replies, strict=True):
        if reply.prompt_tokens not in (0, len(ask.ids)):
            raise ValueError(f"a prompt of {len(ask.ids)} tokens was counted as {reply.prompt_tokens}")
        if reply.output_tokens != ask.max_tokens:
            raise ValueError(f"{reply.output_tokens} tokens were answered, not {ask.max_tokens}")
        if not reply.events or 2 * len(reply.events) < reply.output_tokens > 8:
            raise ValueError(f"{reply.output_tokens} tokens arrived in {len(reply.events)} messages: not a stream")


def numbers(scenario: str, replies: Sequence[Reply]) -> dict[str, float]:
    """The metrics of one scenario: tokens per second, or milliseconds."""
    if scenario == "single":
        [reply] = replies
        return {"decode_tokens_per_s": (reply.output_tokens - 1) / (reply.events[-1] - reply.events[0])}
    if scenario in ("cold", "warm"):
        [reply] = replies
        return {"ttft_ms" if scenario == "cold" else "warm_ttft_ms": 1000 * reply.events[0]}
    count = scenario.rpartition("_")[2]
    wall = max(reply.events[-1] for reply in replies)
    return {f"tokens_per_s_{count}": sum(reply.output_tokens for reply in replies) / wall}
