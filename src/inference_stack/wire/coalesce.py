"""Several step reports in one: what a slow or busy link sends when it could not send them one by one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from inference_stack.core.step import TokenDelta
from inference_stack.wire.messages import StepReport


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
    groups: list[list[TokenDelta]] = []
    growing: dict[tuple[str, int], list[TokenDelta]] = {}
    for delta in deltas:
        name = delta.request_id, delta.attempt
        same = growing.get(name)
        if same is None:
            same = growing[name] = []
            groups.append(same)
        same.append(delta)
        if delta.finish is not None:
            del growing[name]
    return tuple([same[0] if len(same) == 1 else _join(same) for same in groups])


def _join(deltas: Sequence[TokenDelta]) -> TokenDelta:
    """One delta for several of one attempt. On the path of every token of a busy link."""
    last = deltas[-1]
    joined = TokenDelta(last.request_id, last.attempt, finish=last.finish, error=last.error)
    for delta in deltas:
        joined.tokens += delta.tokens
        if delta.logprobs:
            joined.logprobs += delta.logprobs
        if joined.prompt_logprobs is None:
            joined.prompt_logprobs = delta.prompt_logprobs
        if joined.cached_tokens is None:
            joined.cached_tokens = delta.cached_tokens
        if joined.queue_seconds is None:
            joined.queue_seconds = delta.queue_seconds
    return joined
