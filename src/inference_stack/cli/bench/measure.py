"""One measurement from start to end: find the model, make the jobs, warm up, send, summarise."""

from __future__ import annotations

import asyncio
import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from inference_stack.cli.bench import arrivals, prompts
from inference_stack.cli.bench.client import complete
from inference_stack.cli.bench.http import ProtocolError, call
from inference_stack.cli.bench.runner import Done, closed_loop, open_loop
from inference_stack.cli.bench.spec import Job, Load, Outcome
from inference_stack.cli.bench.summary import parse_slos, summarise
from inference_stack.core.errors import ErrorInfo, InferenceError, invalid
from inference_stack.core.seams import Clock

_WARM_SEED = 1_000_003


async def find_model(load: Load) -> Load:
    """The load with the name of a model that the server has: its own if it names one, else the first that is listed."""
    try:
        status, answer = await call("GET", load.target, "/v1/models", api_key=load.api_key)
    except (OSError, ProtocolError) as error:
        message = f"no server at {load.target}: {error}"
        raise InferenceError(ErrorInfo(message=message, code="unreachable", status=503)) from None
    if load.model:
        return load
    if status != 200 or not isinstance(answer, dict) or not answer.get("data"):
        raise invalid(f"{load.target}/v1/models answered {status} and lists no model; name one with --model")
    return replace(load, model=answer["data"][0]["id"])


async def make_jobs(load: Load, count: int, seed: int) -> list[Job]:
    """The jobs; only a trace tells arrival times."""
    if load.dataset:
        return prompts.dataset_jobs(Path(load.dataset), count, load.output_len)
    as_ids = not (load.text_prompts or load.chat)
    words = await prompts.vocabulary(load)
    if load.trace:
        return prompts.trace_jobs(words, Path(load.trace), count, load.trace_speed, as_ids, seed)
    return prompts.random_jobs(words, count, (load.input_len, load.output_len), as_ids, seed, load.prefix_len)


def check(load: Load) -> None:
    """Refuse what cannot be meant. Raises `InferenceError`."""
    if load.prefix_len >= load.input_len:
        raise invalid("--prefix-len must be less than --input-len", param="prefix_len")
    if load.dataset and load.trace:
        raise invalid("--dataset and --trace exclude each other", param="trace")
    if load.trace and load.rate:
        raise invalid("--trace tells the arrivals; --rate does not go with it", param="rate")
    if not (load.concurrency or load.rate or load.trace):
        raise invalid("--concurrency 0 needs --rate or --trace", param="concurrency")
    for path in filter(None, (load.dataset, load.trace)):
        if not Path(path).is_file():
            raise invalid(f"there is no file {path}")
    parse_slos(load.slo)


async def run_load(load: Load, clock: Clock, done: Done) -> tuple[dict[str, Any], list[Outcome]]:
    """Measure. `done` is called as each counted request ends. Raises `InferenceError` if there is no server, or nothing to send."""
    check(load)
    load = await find_model(load)

    async def send(job: Job, begin: float | None) -> Outcome:
        return await complete(load, job, clock, begin)

    if load.warmup:
        warm = await make_jobs(replace(load, trace=""), load.warmup, load.seed + _WARM_SEED)
        await closed_loop(warm, send, max(1, load.concurrency), lambda outcome: None)
    jobs = await make_jobs(load, load.num_requests, load.seed)
    if load.rate:
        times = arrivals.offsets(len(jobs), load.rate, load.burstiness, load.seed)
        jobs = [replace(job, arrival=time) for job, time in zip(jobs, times, strict=True)]
    wall = clock.wall()
    if load.rate or load.trace:
        outcomes = await open_loop(jobs, send, clock, load.concurrency, done)
    else:
        outcomes = await closed_loop(jobs, send, load.concurrency, done)
    return {**describe(load, wall), **summarise(outcomes, parse_slos(load.slo))}, outcomes


def describe(load: Load, wall: float) -> dict[str, Any]:
    """What was measured, on what and when; without the key."""
    settings = {name: value for name, value in asdict(load).items() if name not in ("api_key", "output", "details")}
    return {"started": wall, "machine": platform.platform(), "load": settings}


def run(load: Load, clock: Clock, done: Done) -> tuple[dict[str, Any], list[Outcome]]:
    """`run_load` in an event loop of its own."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_load(load, clock, done))
