"""Checks of sampling and scoring: the same tokens as the CPU reference chooses from the same logits, whatever was asked."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from bench.gpu.bound import Bench
from bench.gpu.findings import Findings
from torch import Tensor

from inference_stack.ops.api import SampleInputs
from inference_stack.ops.reference.sampler import sample
from inference_stack.ops.reference.score import score

LOGPROB_BOUND = 1e-3
"""Absolute, in nats."""


def inputs(rows: int, **changes: Any) -> SampleInputs:
    """Parameters on the CPU, all off and greedy unless changed; host flags follow from the columns."""
    none, whole = torch.zeros(0, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
    made = SampleInputs(
        temperature_S=torch.zeros(rows), top_k_S=whole, top_p_S=torch.ones(rows), min_p_S=torch.zeros(rows),
        repetition_S=torch.ones(rows), presence_S=torch.zeros(rows), frequency_S=torch.zeros(rows),
        seed_S=torch.arange(rows) * 0x9E3779B97F4A7C1 + 5, choice_S=torch.arange(rows) % 3,
        position_S=torch.arange(rows) * 37 + 1, top_S=whole - 1, history_row=none, history_token=none,
        history_is_output=none.bool(), bias_row=none, bias_token=none, bias_value=torch.zeros(0), banned_row=none,
        banned_token=none,
    )  # fmt: skip
    made = replace(made, **changes)
    return replace(
        made,
        any_random=bool((made.temperature_S > 0).any()),
        any_filtered=bool(((made.top_k_S > 0) | (made.top_p_S < 1) | (made.min_p_S > 0)).any()),
        max_top=int(made.top_S.max()),
    )


def moved(given: SampleInputs, device: torch.device) -> SampleInputs:
    """The same on a device."""
    columns: dict[str, Any] = {}
    for one in fields(given):
        value = getattr(given, one.name)
        columns[one.name] = value.to(device) if isinstance(value, Tensor) else value
    return replace(given, **columns)


def cases(rows: int, vocabulary: int) -> dict[str, SampleInputs]:
    """What requests ask for, alone and together."""
    draw = torch.Generator().manual_seed(71)
    warm = torch.full((rows,), 0.8)
    some = torch.arange(rows) % 2
    row = torch.arange(rows).repeat_interleave(5)
    token = torch.randint(vocabulary, (5 * rows,), generator=draw)
    history = {"history_row": row, "history_token": token, "history_is_output": torch.arange(5 * rows) % 3 > 0}
    penalties = {"repetition_S": warm + 0.5, "presence_S": warm * 0.5, "frequency_S": warm * 0.25}
    bias = {"bias_row": row, "bias_token": token, "bias_value": torch.randn(5 * rows, generator=draw) * 3}
    words = torch.randint(-(2**31), 2**31, (rows, -(-vocabulary // 32)), generator=draw).to(torch.int32)
    grammar: dict[str, Any] = {"allowed_SW": words}
    filters = {"top_k_S": 20 * some, "top_p_S": 1 - 0.1 * some, "min_p_S": 0.02 * some}
    banned = {"banned_row": row, "banned_token": token.flip(0)}
    tops = {"top_S": torch.where(some > 0, 5, -1)}
    return {
        "greedy": inputs(rows),
        "greedy, logprobs": inputs(rows, **tops),
        "random": inputs(rows, temperature_S=warm),
        "random beside greedy": inputs(rows, temperature_S=warm * some),
        "top-k": inputs(rows, temperature_S=warm, top_k_S=torch.arange(rows) % 60 + 1),
        "top-p": inputs(rows, temperature_S=warm, top_p_S=torch.linspace(0.05, 0.99, rows)),
        "min-p": inputs(rows, temperature_S=warm, min_p_S=torch.linspace(0.001, 0.5, rows)),
        "penalties": inputs(rows, **history, **penalties),
        "bias and bans": inputs(rows, temperature_S=warm, **bias, **banned),
        "grammar": inputs(rows, temperature_S=warm, **grammar),
        "everything": inputs(
            rows, temperature_S=warm, **history, **penalties, **bias, **banned, **grammar, **filters, **tops
        ),
    }


def check_sampler(bench: Bench, found: Findings) -> None:
    """Every case, with fp32 logits and those of the activations' type, some of them not finite."""
    rows = 5 if bench.place.tiny else 12
    for vocabulary in (331,) if bench.place.tiny else (331, 49152, 128256, 151936):
        for dtype in dict.fromkeys((torch.float32, bench.type)):
            logits = (torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(72)) * 4).to(dtype)
            for name, given in cases(rows, vocabulary).items():
                _sample(bench, found, f"sample {name}, {vocabulary}, {dtype}", logits, given)
        logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(73))
        logits[1, 7], logits[3, vocabulary - 1] = torch.nan, torch.inf
        _sample(bench, found, f"sample rows that are not finite, {vocabulary}", logits, inputs(rows))
        with found.guard(f"score, {vocabulary}"):
            _score(bench, found, vocabulary, rows)


def _sample(bench: Bench, found: Findings, title: str, logits: Tensor, given: SampleInputs) -> None:
    with found.guard(title):
        wanted = sample(logits.float(), given)
        device = bench.place.device
        out = bench.ops().sample(logits.to(device), moved(given, device))
        found.same(f"{title}: finite", out.finite_S, wanted.finite_S)
        sound = wanted.finite_S
        tokens = out.tokens_S.cpu()
        found.same(f"{title}: tokens", tokens[sound], wanted.tokens_S[sound])
        if wanted.logprob_S is None or out.logprob_S is None or given.max_top < 0:
            return
        asked = given.top_S >= 0
        agree = asked & (tokens == wanted.tokens_S)
        _logprobs(found, title, out.logprob_S.cpu()[agree], wanted.logprob_S[agree])
        found.same(f"{title}: ranks", _of(out.rank_S)[agree], _of(wanted.rank_S)[agree])
        found.same(f"{title}: alternatives", _of(out.top_ids_SK)[asked], _of(wanted.top_ids_SK)[asked])


def _of(column: Tensor | None) -> Tensor:
    assert column is not None
    return column.cpu()


def _logprobs(found: Findings, title: str, out: Tensor, wanted: Tensor) -> None:
    worst = float((out.double() - wanted.double()).abs().max()) if len(out) else 0.0
    found.say(f"{title}: log-probabilities", worst < LOGPROB_BOUND, f"off by {worst:.1e} at most")


def _score(bench: Bench, found: Findings, vocabulary: int, rows: int) -> None:
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(74))
    tokens = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(75))
    wanted, device = score(logits, tokens, 4), bench.place.device
    out = bench.ops().score(logits.to(device), tokens.to(device), 4)
    title = f"score, {vocabulary}"
    _logprobs(found, title, out.logprob_S.cpu(), wanted.logprob_S)
    found.same(f"{title}: ranks", out.rank_S, wanted.rank_S)
    found.same(f"{title}: alternatives", out.top_ids_SK, wanted.top_ids_SK)
