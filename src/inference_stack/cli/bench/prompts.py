"""What to ask: random prompts of an exact length in tokens, a data set, or a trace of somebody's traffic.

Random prompts are built from words that are one token each in the server's own vocabulary, found by asking its `/tokenize`; where
there is no such endpoint they are words, and only about as long as asked.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from inference_stack.cli.bench.http import ProtocolError, call
from inference_stack.cli.bench.spec import Job, Load
from inference_stack.core.errors import invalid

_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work government number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father power hour "
    "game line end member law car city community name president team minute idea body information back parent face others "
    "level office door health person art war history party result change morning reason research girl guy moment air teacher "
    "force education foot boy age policy process music market sense nation plan college interest death experience effect use "
    "class control field development role effort rate heart drug show leader light voice wife police mind price report "
    "decision son view relationship town road arm difference value building action season society tax director position "
    "player record paper space ground form event official matter center couple site project activity star table need court"
)
WORDS = tuple(_TEXT.split())

TIMES = ("timestamp", "arrival", "arrival_time", "arrived_at", "time")
INPUTS = ("input_len", "contexttokens", "input_length", "prompt_tokens", "request tokens", "num_prefill_tokens")
OUTPUTS = (
    "output_len",
    "generatedtokens",
    "output_length",
    "completion_tokens",
    "response tokens",
    "num_decode_tokens",
)


@dataclass(frozen=True)
class Vocabulary:
    """Words to make prompts of; `ids` are their tokens, aligned, or empty when the server does not say."""

    words: tuple[str, ...]
    ids: tuple[int, ...] = ()


async def _tokenize(load: Load, text: str) -> list[int]:
    """Token ids of `text`; empty when the server cannot say."""
    for question in ({"model": load.model, "prompt": text, "add_special_tokens": False}, {"content": text}):
        status, answer = await call("POST", load.target, "/tokenize", question, load.api_key)
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        if status == 200 and tokens and all(isinstance(token, int) for token in tokens):
            return list(tokens)
    return []


async def vocabulary(load: Load) -> Vocabulary:
    """Words that are one token each to this server."""
    known: dict[int, str] = {}
    try:
        for word in WORDS:
            tokens = await _tokenize(load, f" {word}")
            if not tokens:
                break
            if len(tokens) == 1:
                known.setdefault(tokens[0], word)
    except (OSError, ProtocolError):
        known = {}
    return Vocabulary(tuple(known.values()), tuple(known)) if known else Vocabulary(WORDS)


def random_prompt(words: Vocabulary, length: int, as_ids: bool, noise: random.Random) -> list[int] | str:
    """A prompt of `length` tokens, as ids if the vocabulary has them and they are wanted."""
    if as_ids and words.ids:
        return noise.choices(words.ids, k=length)
    return "".join(f" {word}" for word in noise.choices(words.words, k=length))


def random_jobs(
    words: Vocabulary, count: int, lengths: tuple[int, int], as_ids: bool, seed: int, prefix: int = 0
) -> list[Job]:
    """`count` jobs of (prompt, output) `lengths`; the first `prefix` tokens of the prompts are the same in all."""
    noise = random.Random(seed)
    shared = random_prompt(words, prefix, as_ids, noise)
    tails = (random_prompt(words, lengths[0] - prefix, as_ids, noise) for _ in range(count))
    return [Job(prompt=shared + tail, output_len=lengths[1]) for tail in tails]  # type: ignore[operator]


def dataset_jobs(path: Path, count: int, output_len: int) -> list[Job]:
    """Jobs from a JSON-lines file, repeated if it is short: each line has `prompt` or `messages`, and perhaps `output_len`."""
    rows = [_row(path, number, line) for number, line in enumerate(path.read_text().splitlines(), 1) if line.strip()]
    if not rows:
        raise invalid(f"{path} holds no prompts")
    chosen = (rows[index % len(rows)] for index in range(count))
    return [
        Job(prompt=row.get("messages") or row["prompt"], output_len=row.get("output_len", output_len)) for row in chosen
    ]


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise invalid(f"{path}:{number}: not JSON: {error}") from None
    if not isinstance(row, dict) or not (row.get("prompt") or row.get("messages")):
        raise invalid(f"{path}:{number}: neither prompt nor messages")
    return row


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()


def _pick(row: dict[str, str], names: tuple[str, ...], path: Path) -> str:
    for name in names:
        if name in row:
            return row[name]
    raise invalid(f"{path} has none of the columns {', '.join(names)}")


def read_trace(path: Path, speed: float) -> Iterator[tuple[float, int, int]]:
    """(arrival, prompt length, output length) of each row, the first at 0, time running `speed` times as fast."""
    with path.open(newline="") as file:
        rows = [{str(name).strip().lower(): value for name, value in row.items()} for row in csv.DictReader(file)]
    try:
        times = [_seconds(_pick(row, TIMES, path)) for row in rows]
        lengths = [(int(_pick(row, INPUTS, path)), int(_pick(row, OUTPUTS, path))) for row in rows]
    except (ValueError, TypeError) as error:
        raise invalid(f"{path}: {error}") from None
    for time, (prompt, output) in sorted(zip(times, lengths, strict=True)):
        yield (time - min(times)) / speed, max(1, prompt), max(1, output)


def trace_jobs(words: Vocabulary, path: Path, limit: int, speed: float, as_ids: bool, seed: int) -> list[Job]:
    """The first `limit` arrivals of a trace, with random prompts of the lengths it tells."""
    noise = random.Random(seed)
    rows = list(read_trace(path, speed))[:limit]
    if not rows:
        raise invalid(f"{path} holds no arrivals")
    return [
        Job(prompt=random_prompt(words, prompt, as_ids, noise), output_len=output, arrival=arrival)
        for arrival, prompt, output in rows
    ]
