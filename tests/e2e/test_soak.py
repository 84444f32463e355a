"""Two hundred clients, half of which leave without a word: nothing leaks, and the others never notice."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.server import Server

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(400)]

CLIENTS = 200
SECONDS = 60
SETTLED = 20


@dataclass
class Outcome:
    """What the clients saw."""

    finished: int = 0
    left: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)


def tree(server: Server) -> list[psutil.Process]:
    root = psutil.Process(server.process.pid)
    return [root, *root.children(recursive=True)]


def pss(server: Server) -> int:
    """Bytes of the whole process tree, shared pages counted once."""
    return sum(process.memory_full_info().pss for process in tree(server))


def handles(server: Server) -> int:
    return sum(process.num_fds() for process in tree(server))


async def one_request(http: httpx.AsyncClient, leaves: bool, dice: random.Random, outcome: Outcome) -> None:
    body = {
        "model": "smollm2",
        "prompt": [dice.randrange(100, 40_000) for _ in range(dice.randrange(5, 60))],
        "max_tokens": dice.randrange(2, 24),
        "ignore_eos": True,
        "stream": True,
        "n": dice.choice([1, 1, 1, 2]),
    }
    patience = dice.uniform(0, 4) if leaves else 300
    try:
        async with asyncio.timeout(patience), http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code == 429:
                outcome.refused += 1
                return await asyncio.sleep(1)
            text = (await response.aread()).decode()
        if not text.rstrip().endswith("data: [DONE]") or 'data: {"error"' in text:
            outcome.errors.append(text[-200:])
        outcome.finished += 1
    except TimeoutError:
        outcome.left += 1
        if not leaves:
            outcome.errors.append("a patient client timed out")


async def client(http: httpx.AsyncClient, number: int, end: float, outcome: Outcome) -> None:
    dice = random.Random(number)
    while asyncio.get_running_loop().time() < end:
        await one_request(http, number % 2 == 0, dice, outcome)


async def storm(server: Server, outcome: Outcome) -> list[int]:
    """Run the clients; memory at every second from `SETTLED` on."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    samples: list[int] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, timeout=None, limits=limits) as http:
        clients = [asyncio.create_task(client(http, n, start + SECONDS, outcome)) for n in range(CLIENTS)]
        for second in range(SETTLED, SECONDS + 1):
            await asyncio.sleep(max(0, start + second - loop.time()))
            samples.append(await asyncio.to_thread(pss, server))
        await asyncio.gather(*clients)
    return samples


def test_clients_that_leave_cost_nothing(demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = Server("smollm2").wait_ready()
    server.http.post("/v1/completions", json={"model": "smollm2", "prompt": "x", "max_tokens": 2})
    handles_before, tasks_before = handles(server), server.metric("inference_stack_gateway_tasks")
    outcome = Outcome()
    samples = asyncio.run(storm(server, outcome))
    growth = max(samples) / samples[0] - 1
    with capsys.disabled():
        print(f"\n{outcome.finished} finished, {outcome.left} left, {outcome.refused} refused")
        print(f"memory at second {SETTLED}: {samples[0] >> 20} MiB, then at most {growth:+.2%}")
    assert outcome.errors == []
    assert outcome.finished > CLIENTS and outcome.left > CLIENTS / 4
    assert growth <= 0.03
    for _ in range(100):
        if server.metric("inference_stack_requests_running") == 0:
            break
        asyncio.run(asyncio.sleep(0.1))
    assert server.metric("inference_stack_requests_running") == 0
    assert server.metric("inference_stack_requests_waiting") == 0
    assert handles(server) <= handles_before + 2
    assert server.metric("inference_stack_gateway_tasks") <= tasks_before + 1
    assert (
        server.http.get("/health").json()["workers"][0]["restarts"] == 0
    )  # an integrity fault would have cost the worker
    assert server.stop() == 0
