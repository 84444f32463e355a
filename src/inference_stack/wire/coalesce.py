"""Several step reports in one: what a slow or busy link sends when it could not send them one by one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from inference_stack.core.step import TokenDelta
from inference_stack.wire.messages import StepReport

T = TypeVar("T")


def coalesce(reports: Sequence[StepReport]) -> StepReport:
    """The same news as `reports` one after another: deltas of an attempt are joined in order, of statistics the latest of each
    model count, and of `at` the oldest. Nothing is joined to a delta that was a request's last."""
    if len(reports) == 1:
        return reports[0]
    return StepReport(
        deltas=_joined(delta for report in reports for delta in report.deltas),
        stats=tuple({stats.model: stats for report in reports for stats in report.stats}.values()),
        at=min((report.at for report in reports if report.at), default=0.0),
    )


def _joined(deltas: Iterable[TokenDelta]) -> tuple[TokenDelta, ...]:
    parts: dict[tuple[str, int, int], list[TokenDelta]] = {}
    ended: dict[tuple[str, int], int] = {}
    for delta in deltas:
        name = delta.request_id, delta.attempt
        ends = ended.get(name, 0)
        parts.setdefault((*name, ends), []).append(delta)
        if delta.finish is not None:
            ended[name] = ends + 1
    return tuple([same[0] if len(same) == 1 else _join(same) for same in parts.values()])


def _join(deltas: Sequence[TokenDelta]) -> TokenDelta:
    """One delta for several of one attempt."""
    last = deltas[-1]
    return replace(
        last,
        tokens=tuple(chain.from_iterable(delta.tokens for delta in deltas)),
        logprobs=tuple(chain.from_iterable(delta.logprobs for delta in deltas)),
        prompt_logprobs=_first(delta.prompt_logprobs for delta in deltas),
        cached_tokens=_first(delta.cached_tokens for delta in deltas),
        queue_seconds=_first(delta.queue_seconds for delta in deltas),
    )


def _first(values: Iterable[T | None]) -> T | None:
    """What came once."""
    return next((value for value in values if value is not None), None)
