"""Step reports as columns: the hot path of a link. A delta of one token is a handle and a token; the rest is rare and apart.

Decoding gives the same deltas in the same order, except those of requests that this end has aborted meanwhile: they are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from inference_stack.core.errors import ErrorInfo
from inference_stack.core.request import FinishReason
from inference_stack.core.stats import InstanceStats
from inference_stack.core.step import TokenDelta, TokenLogprob
from inference_stack.wire.codec import ProtocolError
from inference_stack.wire.grpc import fleet_pb2
from inference_stack.wire.grpc.handles import NAMELESS, Handles
from inference_stack.wire.grpc.mirror import Mirror
from inference_stack.wire.messages import StepReport

pb: Any = fleet_pb2
errors = Mirror(ErrorInfo, pb.ErrorInfo)
_stats = Mirror(InstanceStats, pb.InstanceStats)
_FINISHES = {reason: pb.Finish.Value(reason.name) for reason in FinishReason}
_REASONS = {number: reason for reason, number in _FINISHES.items()}


def encode_report(report: StepReport, handles: Handles) -> Any:
    """The message. Handles of finished requests are forgotten."""
    column: list[int] = []
    counts: list[int] = []
    tokens: list[int] = []
    names: list[Any] = []
    extras: list[Any] = []
    live = handles.live
    for delta in report.deltas:
        attempt, handle = live.get(delta.request_id, (0, NAMELESS))
        if handle == NAMELESS or attempt != delta.attempt:
            handle = NAMELESS
            names.append(pb.RequestName(request_id=delta.request_id, attempt=delta.attempt))
        column.append(handle)
        counts.append(len(delta.tokens))
        tokens.extend(delta.tokens)
        if _has_extras(delta):
            extras.append(_encode_extra(len(column) - 1, delta))
            if delta.finish is not None:
                handles.end(delta.request_id, delta.attempt)
    plain = len(tokens) == len(counts) and all(count == 1 for count in counts)
    return pb.StepReport(
        handles=column,
        counts=() if plain else counts,
        tokens=tokens,
        names=names,
        extras=extras,
        stats=[_stats.to_proto(entry) for entry in report.stats],
        at=report.at,
    )


def decode_report(message: Any, handles: Handles) -> StepReport:
    """The report. Handles of finished requests are forgotten. Raises `ProtocolError` for columns that do not fit together."""
    names = handles.names
    keys = [names.get(handle) for handle in message.handles]
    if message.names:
        _fill_names(message, keys)
    tokens = list(message.tokens)
    if message.counts:
        runs = _runs(tokens, message.counts, len(keys))
    elif len(tokens) == len(keys):
        runs = [(token,) for token in tokens]
    else:
        raise ProtocolError("a report whose columns have different lengths")
    deltas = [None if key is None else TokenDelta(*key, run) for key, run in zip(keys, runs, strict=True)]
    for extra in message.extras:
        _apply_extra(extra, deltas, handles)
    kept = tuple(deltas) if None not in keys else tuple(delta for delta in deltas if delta is not None)
    return StepReport(deltas=kept, stats=tuple([_stats.from_proto(entry) for entry in message.stats]), at=message.at)  # type: ignore[arg-type]


def _fill_names(message: Any, keys: list[tuple[str, int] | None]) -> None:
    nameless = [index for index, handle in enumerate(message.handles) if handle == NAMELESS]
    if len(nameless) != len(message.names):
        raise ProtocolError("a report with more or fewer names than deltas that need them")
    for index, name in zip(nameless, message.names, strict=True):
        keys[index] = name.request_id, name.attempt


def _runs(tokens: list[int], counts: Sequence[int], deltas: int) -> list[tuple[int, ...]]:
    """The tokens of each delta."""
    ends = list(accumulate(counts, initial=0))
    if len(counts) != deltas or ends[-1] != len(tokens):
        raise ProtocolError("a report whose columns have different lengths")
    return [tuple(tokens[start:end]) for start, end in pairwise(ends)]


def _has_extras(delta: TokenDelta) -> bool:
    return (
        bool(delta.logprobs)
        or delta.finish is not None
        or delta.cached_tokens is not None
        or delta.prompt_logprobs is not None
        or delta.queue_seconds is not None
        or delta.error is not None
    )


def _encode_extra(index: int, delta: TokenDelta) -> Any:
    return pb.DeltaExtra(
        index=index,
        logprobs=_encode_logprobs(delta.logprobs) if delta.logprobs else None,
        prompt_logprobs=None if delta.prompt_logprobs is None else _encode_logprobs(delta.prompt_logprobs),
        cached_tokens=delta.cached_tokens,
        finish=pb.NONE if delta.finish is None else _FINISHES[delta.finish],
        error=None if delta.error is None else errors.to_proto(delta.error),
        queue_seconds=delta.queue_seconds,
    )


def _apply_extra(extra: Any, deltas: list[TokenDelta | None], handles: Handles) -> None:
    if extra.index >= len(deltas):
        raise ProtocolError("a report with an extra for no delta")
    delta = deltas[extra.index]
    if delta is None:
        return
    if extra.HasField("logprobs"):
        delta.logprobs = _decode_logprobs(extra.logprobs)
    if extra.HasField("prompt_logprobs"):
        delta.prompt_logprobs = _decode_logprobs(extra.prompt_logprobs)
    if extra.HasField("cached_tokens"):
        delta.cached_tokens = extra.cached_tokens
    if extra.HasField("error"):
        delta.error = errors.from_proto(extra.error)
    if extra.HasField("queue_seconds"):
        delta.queue_seconds = extra.queue_seconds
    if extra.finish != pb.NONE:
        delta.finish = _REASONS[extra.finish]
        handles.end(delta.request_id, delta.attempt)


def _encode_logprobs(entries: Sequence[TokenLogprob]) -> Any:
    top = [pair for entry in entries for pair in entry.top]
    return pb.Logprobs(
        tokens=[entry.token for entry in entries],
        logprobs=[entry.logprob for entry in entries],
        ranks=[entry.rank for entry in entries],
        top_counts=[len(entry.top) for entry in entries] if top else (),
        top_tokens=[token for token, _ in top],
        top_logprobs=[logprob for _, logprob in top],
    )


def _decode_logprobs(message: Any) -> tuple[TokenLogprob, ...]:
    columns = zip(message.tokens, message.logprobs, message.ranks, strict=True)
    if not message.top_counts:
        return tuple([TokenLogprob(token=token, logprob=logprob, rank=rank) for token, logprob, rank in columns])
    pairs = list(zip(message.top_tokens, message.top_logprobs, strict=True))
    ends = accumulate(message.top_counts, initial=0)
    tops = [tuple(pairs[start:end]) for start, end in pairwise(ends)]
    return tuple(
        [
            TokenLogprob(token=token, logprob=logprob, rank=rank, top=top)
            for (token, logprob, rank), top in zip(columns, tops, strict=True)
        ]
    )
