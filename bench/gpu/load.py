"""Requests as people send them: lengths drawn from log-normal distributions, arrivals at random times.

Lengths are made up. Their medians and spreads are near those of shared chats, prompts of a hundred tokens and answers of two
hundred with long tails; no data set is used.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.gpu.house import Answer, House, request, words


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`requests` in all, `rate` of them a second (infinite: all at once). Lengths have this median and spread, in tokens."""

    requests: int
    rate: float
    prompt: tuple[float, float] = (110.0, 1.1)
    answer: tuple[float, float] = (170.0, 0.8)
    most: int = 1024
    seed: int = 7

    def shrunk(self) -> Load:
        """For the smallest models."""
        return replace(self, prompt=(10.0, 0.5), answer=(5.0, 0.5), most=24)

    def lengths(self) -> list[tuple[int, int]]:
        """Of each request's prompt and answer; the same ones every time."""
        draw = random.Random(self.seed)
        return [(self._length(draw, self.prompt), self._length(draw, self.answer)) for _ in range(self.requests)]

    def arrivals(self) -> list[float]:
        """Seconds after the start, ascending."""
        draw, now, found = random.Random(self.seed + 1), 0.0, []
        for _ in range(self.requests):
            found.append(now)
            now += draw.expovariate(self.rate) if math.isfinite(self.rate) else 0.0
        return found

    def _length(self, draw: random.Random, shape: tuple[float, float]) -> int:
        median, spread = shape
        return min(max(4, round(draw.lognormvariate(math.log(median), spread))), self.most)


def online(house: House, load: Load, vocabulary: int) -> dict[str, Any]:
    """Run a load to its end. Raises RuntimeError when a request fails."""
    lengths, arrivals = load.lengths(), load.arrivals()
    prompts = [words(prompt, vocabulary, 10_000 + number) for number, (prompt, _) in enumerate(lengths)]
    answers: list[Answer] = []
    began = time.monotonic()
    while len(answers) < load.requests or house.core.has_work:
        now = time.monotonic() - began
        while len(answers) < load.requests and arrivals[len(answers)] <= now:
            number = len(answers)
            params = {"max_tokens": lengths[number][1], "temperature": 1.0}
            answers.append(house.add(request(house, prompts[number], f"o{number}", seed=number, **params)))
        if house.core.has_work:
            house.step()
        elif len(answers) < load.requests:
            time.sleep(max(0.0, min(arrivals[len(answers)] - now, 0.01)))
    seconds = time.monotonic() - began
    if failed := [answer.error for answer in answers if answer.error is not None]:
        raise RuntimeError(f"{len(failed)} requests failed; first: {failed[0]}")
    return _numbers(load, answers, [began + at for at in arrivals], seconds)


def _numbers(load: Load, answers: Sequence[Answer], arrived: Sequence[float], seconds: float) -> dict[str, Any]:
    firsts = [answer.times[0] - at for answer, at in zip(answers, arrived, strict=True)]
    gaps = [b - a for answer in answers for a, b in zip(answer.times, answer.times[1:], strict=False)]
    tokens = sum(len(answer.tokens) for answer in answers)
    return {
        "lengths": "made up: log-normal", "requests": load.requests, "rate": load.rate, "seconds": seconds,
        "tokens": tokens, "prompt_tokens": sum(prompt for prompt, _ in load.lengths()), "tokens_per_s": tokens / seconds,
        "requests_per_s": load.requests / seconds,
        "ttft_ms_p50": 1000 * quantile(firsts, 0.5), "ttft_ms_p99": 1000 * quantile(firsts, 0.99),
        "itl_ms_p50": 1000 * quantile(gaps, 0.5), "itl_ms_p99": 1000 * quantile(gaps, 0.99),
    }  # fmt: skip


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies, nearest rank; 0 of none."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0
