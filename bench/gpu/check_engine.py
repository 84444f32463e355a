"""Checks of the engine end to end on the device: the same answers, bit for bit, whatever happens around a request.

Chunks, prefix hits, preemption, neighbours, aborts, recorded steps and pipelining must not change a stream in deterministic mode,
which is what lets another node go on with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.bound import Bench
from bench.gpu.findings import Findings
from bench.gpu.house import Answer, House, open_house, request, words, write_model
from bench.gpu.shapes import kind

from inference_stack.core.request import FinishReason, Request

VOCABULARY = 331
SETTINGS: dict[str, Any] = {"max_running": 16, "max_batch_tokens": 96, "kv_memory": "8MiB", "max_model_len": 256}
SAMPLED = {"temperature": 0.9, "logprobs": 8}
ASKED: tuple[dict[str, Any], ...] = (
    {"logprobs": 8},
    SAMPLED,
    SAMPLED | {"top_p": 0.8, "top_k": 40},
    SAMPLED | {"min_p": 0.05, "repetition_penalty": 1.2, "presence_penalty": 0.3},
    SAMPLED | {"frequency_penalty": 0.5, "logit_bias": {9: 2.0}},
    SAMPLED | {"prompt_logprobs": 3},
    SAMPLED,
    {"logprobs": 8, "max_tokens": 40},
)
"""What the requests of a scenario ask for, one each."""


def requests(name: str, length: int = 50) -> list[Request]:
    """One of every kind, with prompts of several lengths."""
    return [
        request(
            name, words(1 + length * (number + 1) // 4, VOCABULARY, number), f"r{number}", seed=100 + number, **asked
        )
        for number, asked in enumerate(ASKED)
    ]


def check_engine(bench: Bench, found: Findings) -> None:
    """All scenarios, for models with one KV group, with two, and with experts."""
    kinds = ("llama",) if bench.place.tiny else ("llama", "gemma3", "qwen3_moe", "gpt_oss")
    with tempfile.TemporaryDirectory() as folder:
        for name in kinds:
            with found.guard(f"engine, {name}"):
                path = write_model(kind(name), Path(folder) / name.replace(" ", "-"), 1)
                _engine(bench, found, f"engine, {name}", path)


def _engine(bench: Bench, found: Findings, title: str, path: Path) -> None:
    house = _open(bench, path)
    alone = [house.run([one])[0] for one in requests(house.name)]
    complete = all(answer.finish is FinishReason.LENGTH and answer.error is None for answer in alone)
    found.say(f"{title}: every request ends as it should", complete, str([answer.finish for answer in alone]))
    _same(found, f"{title}: together as alone, from the prefix cache", house.run(requests(house.name)), alone)
    hits = [answer.cached for answer in house.run(requests(house.name))]
    found.say(f"{title}: prefixes are found", sum(hits) > 0, f"{hits} tokens")
    _aborts(found, title, house, alone)
    _seeds(found, title, house)
    for what, settings in _changes(bench.place.tiny).items():
        with found.guard(f"{title}: {what}"):
            other = _open(bench, path, **settings)
            _same(found, f"{title}: {what}", other.run(requests(other.name)), alone)
            if what == "preempted":
                happened = sum(stats.preemptions for stats in other.core.stats())
                found.say(f"{title}: requests were preempted", happened > 0, f"{happened} times")
    with found.guard(f"{title}: default mode"):
        _fast(bench, found, title, path)


def _open(bench: Bench, path: Path, **settings: Any) -> House:
    return open_house(bench.place, path, bench.kernels, **(SETTINGS | {"deterministic": True} | settings))


def _changes(few: bool) -> dict[str, dict[str, Any]]:
    """What must not change an answer."""
    every: dict[str, dict[str, Any]] = {
        "in small chunks": {"max_batch_tokens": 24},
        "without recorded steps": {"recorded_steps": False},
        "without a prefix cache": {"prefix_cache": False},
        "not pipelined": {"pipeline_depth": 0},
        "two steps ahead": {"pipeline_depth": 2},
        "few at once": {"max_running": 3},
        "preempted": {"kv_memory": "256KiB", "prefix_cache": False},
    }
    return {what: every[what] for what in ("in small chunks", "preempted")} if few else every


def _same(found: Findings, title: str, answers: Sequence[Answer], wanted: Sequence[Answer]) -> None:
    differ = [number for number, pair in enumerate(zip(answers, wanted, strict=True)) if not pair[0].same_as(pair[1])]
    note = "" if not differ else f"requests {differ} differ; first: {_first(answers[differ[0]], wanted[differ[0]])}"
    found.say(title, not differ, note)


def _first(one: Answer, other: Answer) -> str:
    for at, (mine, theirs) in enumerate(zip(one.tokens, other.tokens, strict=False)):
        if mine != theirs:
            return f"token {at} is {mine} instead of {theirs}"
    if len(one.tokens) != len(other.tokens):
        return f"{len(one.tokens)} tokens instead of {len(other.tokens)} ({one.finish}, {one.error})"
    off = [abs(a.logprob - b.logprob) for a, b in zip(one.logprobs, other.logprobs, strict=False)]
    return f"the same tokens, log-probabilities off by {max(off, default=0.0):.1e} at most"


def _aborts(found: Findings, title: str, house: House, alone: Sequence[Answer]) -> None:
    """Two requests are aborted mid-stream, one before anything happened; the others notice nothing."""
    gone = {"r1": 4, "r4": 9, "r6": 0}

    def stop(step: int) -> None:
        for name, at in gone.items():
            if at == step:
                house.core.abort(name)

    answers = house.run(requests(house.name), before_step=stop)
    kept = [number for number in range(len(alone)) if f"r{number}" not in gone]
    _same(found, f"{title}: aborts beside", [answers[number] for number in kept], [alone[number] for number in kept])


def _seeds(found: Findings, title: str, house: House) -> None:
    prompt = words(20, VOCABULARY, 99)
    make: Callable[[int, str], Request] = lambda seed, name: request(  # noqa: E731
        house, prompt, name, seed=seed, temperature=1.0, max_tokens=24
    )
    one, again, other = house.run([make(1, "a"), make(1, "b"), make(2, "c")])
    found.say(f"{title}: a seed decides", one.tokens == again.tokens != other.tokens)


def _fast(bench: Bench, found: Findings, title: str, path: Path) -> None:
    """Without the deterministic mode only seeds and lengths are promised: everything must come to its end."""
    house = open_house(bench.place, path, bench.kernels, **(SETTINGS | {"deterministic": False}))
    answers = house.run(requests(house.name))
    whole = all(answer.finish is FinishReason.LENGTH and answer.error is None for answer in answers)
    found.say(
        f"{title}: default mode ends as it should", whole, str([answer.error for answer in answers if answer.error])
    )
