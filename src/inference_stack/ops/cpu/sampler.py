"""Choosing tokens and scoring them in native code: the tokens of `ops/reference/sampler.py`, without a sort of the vocabulary.

One native call per step, with the addresses of the columns that the step's rows need; the others are not looked at. Never
recorded: columns come and go from step to step, and results outlive the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inference_stack.ops.api import Sampled, SampleInputs, Scored
from inference_stack.ops.cpu.native import Native

if TYPE_CHECKING:
    from inference_stack.ops.cpu import _native


class CpuSampler:
    """`Ops.sample` and `Ops.score`."""

    def __init__(self, native: Native) -> None:
        self._module = native.module
        self._sampler = native.sampler

    def sample(self, logits_SV: Tensor, inputs: SampleInputs) -> Sampled:
        """One token per row. Raises IndexError for a history, bias or ban outside the logits."""
        logits_SV = _rows(logits_SV)
        rows, vocab = logits_SV.shape
        tokens_S, finite_S = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.bool)
        columns = _Columns()
        job: _native.SampleJob = self._module.SampleJob(
            rows, vocab, logits_SV.data_ptr(), logits_SV.stride(0), tokens_S.data_ptr(), finite_S.data_ptr()
        )
        if inputs.any_random:
            _add_random(job, columns, inputs)
        _add_changes(job, columns, inputs)
        if inputs.max_top < 0:
            self._sampler.sample(job)
            return Sampled(tokens_S=tokens_S, finite_S=finite_S)
        scored = _empty_scores(rows, min(inputs.max_top, vocab))
        job.report(columns.int64(inputs.top_S), *_addresses(scored))
        self._sampler.sample(job)
        return Sampled(
            tokens_S=tokens_S,
            finite_S=finite_S,
            logprob_S=scored.logprob_S,
            rank_S=scored.rank_S,
            top_ids_SK=scored.top_ids_SK,
            top_logprobs_SK=scored.top_logprobs_SK,
        )

    def score(self, logits_SV: Tensor, tokens_S: Tensor, top: int) -> Scored:
        """Raw log-probabilities of given tokens. Raises IndexError for a token outside the logits."""
        logits_SV = _rows(logits_SV)
        rows, vocab = logits_SV.shape
        columns = _Columns()
        job: _native.ScoreJob = self._module.ScoreJob(
            rows, vocab, logits_SV.data_ptr(), logits_SV.stride(0), columns.int64(tokens_S)
        )
        scored = _empty_scores(rows, min(top, vocab))
        job.report(0, *_addresses(scored))
        self._sampler.score(job)
        return scored


class _Columns:
    """Addresses of columns, converted where their type or layout is another; keeps the converted ones until the call is over."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def int64(self, column: Tensor) -> int:
        return self._of(column, torch.int64)

    def int32(self, column: Tensor) -> int:
        return self._of(column, torch.int32)

    def fp32(self, column: Tensor) -> int:
        return self._of(column, torch.float32)

    def bool8(self, column: Tensor) -> int:
        return self._of(column, torch.bool)

    def _of(self, column: Tensor, dtype: torch.dtype) -> int:
        if column.dtype != dtype or not column.is_contiguous():
            column = column.to(dtype).contiguous()
            self._kept.append(column)
        return column.data_ptr()


def _rows(logits_SV: Tensor) -> Tensor:
    if logits_SV.dtype == torch.float32 and logits_SV.stride(1) == 1:
        return logits_SV
    return logits_SV.to(torch.float32).contiguous()


def _empty_scores(rows: int, width: int) -> Scored:
    return Scored(
        logprob_S=torch.empty(rows),
        rank_S=torch.empty(rows, dtype=torch.int64),
        top_ids_SK=torch.empty(rows, width, dtype=torch.int64),
        top_logprobs_SK=torch.empty(rows, width),
    )


def _addresses(scored: Scored) -> tuple[int, int, int, int, int]:
    """Of the columns, and the number of alternatives."""
    ids, logprobs = scored.top_ids_SK, scored.top_logprobs_SK
    return (scored.logprob_S.data_ptr(), scored.rank_S.data_ptr(), ids.data_ptr(), logprobs.data_ptr(), ids.shape[1])


def _add_random(job: _native.SampleJob, columns: _Columns, inputs: SampleInputs) -> None:
    job.random(
        columns.fp32(inputs.temperature_S),
        columns.int64(inputs.top_k_S),
        columns.fp32(inputs.top_p_S),
        columns.fp32(inputs.min_p_S),
        columns.int64(inputs.seed_S),
        columns.int64(inputs.choice_S),
        columns.int64(inputs.position_S),
    )


def _add_changes(job: _native.SampleJob, columns: _Columns, inputs: SampleInputs) -> None:
    """What changes logits, where there is any of it."""
    history, bias, banned = len(inputs.history_row), len(inputs.bias_row), len(inputs.banned_row)
    if history:
        job.history(
            columns.int64(inputs.history_row),
            columns.int64(inputs.history_token),
            history,
            columns.bool8(inputs.history_is_output),
            columns.fp32(inputs.repetition_S),
            columns.fp32(inputs.presence_S),
            columns.fp32(inputs.frequency_S),
        )
    if bias:
        row, token, value = inputs.bias_row, inputs.bias_token, inputs.bias_value
        job.bias(columns.int64(row), columns.int64(token), bias, columns.fp32(value))
    if banned:
        job.banned(columns.int64(inputs.banned_row), columns.int64(inputs.banned_token), banned)
    if inputs.allowed_SW is not None:
        job.allowed(columns.int32(inputs.allowed_SW), inputs.allowed_SW.shape[1])
