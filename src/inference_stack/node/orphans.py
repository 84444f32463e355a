"""Requests whose gateway is gone: kept running, and all they emit kept, for a while, in case another gateway resumes them.

Bounded in time and in memory; the oldest go first. Knows records, not what ending one means.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from inference_stack.core.step import TokenLogprob
from inference_stack.node.runs import Run

MOST_BYTES: Final = 64 << 20
"""What all records of orphans may take."""
TOKEN_BYTES: Final = 36
LOGPROB_BYTES: Final = 144
ALTERNATIVE_BYTES: Final = 112
RUN_BYTES: Final = 1024

AnyRun = Run[Any, Any]


def record_bytes(run: AnyRun) -> int:
    """About how much memory a run's record takes."""
    tokens = run.known_tokens + len(run.tokens)
    return RUN_BYTES + TOKEN_BYTES * tokens + _scored(run.logprobs) + _scored(run.prompt_logprobs or ())


def _scored(logprobs: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> int:
    """Every entry has as many alternatives as the first."""
    return len(logprobs) * (LOGPROB_BYTES + ALTERNATIVE_BYTES * len(logprobs[0].top)) if logprobs else 0


class Orphans:
    """Orphans in the order in which they became such."""

    def __init__(self, seconds: float, most_bytes: int = MOST_BYTES) -> None:
        self._seconds = seconds
        self._most = most_bytes
        self._since: dict[str, tuple[AnyRun, float]] = {}

    def __len__(self) -> int:
        return len(self._since)

    def add(self, run: AnyRun, now: float) -> None:
        """Its gateway is gone."""
        self._since[run.id] = (run, now)

    def remove(self, request_id: str) -> None:
        """It was adopted, or has left. Others are ignored."""
        self._since.pop(request_id, None)

    def overdue(self, now: float) -> list[AnyRun]:
        """Those whose time is over, and the oldest of those that take too much memory together. They stay until removed."""
        expired = [run for run, since in self._since.values() if now - since >= self._seconds]
        return [*expired, *self._excess(run for run, since in self._since.values() if now - since < self._seconds)]

    def _excess(self, runs: Iterable[AnyRun]) -> list[AnyRun]:
        sizes = [(run, record_bytes(run)) for run in runs]
        over = sum(size for _, size in sizes) - self._most
        excess: list[AnyRun] = []
        for run, size in sizes:
            if over <= 0:
                break
            excess.append(run)
            over -= size
        return excess
