"""Gateways and nodes as processes: whatever is killed, and whenever, clients read the same bytes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from inference_stack.cli.bench.chaos_account import excused
from inference_stack.cli.bench.chaos_faults import Striker, Victim
from inference_stack.cli.bench.chaos_fleet import Fleet
from inference_stack.cli.bench.chaos_members import NodeMember
from inference_stack.cli.bench.chaos_proxy import Proxy
from inference_stack.cli.bench.chaos_requests import CHAT, Case, Transcript, catalogue
from inference_stack.cli.bench.chaos_spec import Fault, Plan
from inference_stack.cli.bench.chaos_traffic import ResumingClient, StockClient, Traffic, undisturbed
from inference_stack.core.seams import SystemClock
from tests.e2e.server import STORY

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]

ANSWER_TOKENS = 40
PLAN = Plan(preset="l4", preset_model="llama-3.2-3b")
"""About 20 ms a token: a kill at a position strikes before the next token is there."""
PATIENCE = 60.0
BODY = STORY | {"max_tokens": ANSWER_TOKENS, "return_token_ids": True, "seed": 1234}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 1},
    "n=2": {"temperature": 1, "n": 2},
    "logprobs": {"temperature": 1, "logprobs": True, "top_logprobs": 2},
}


def case_of(mode: str, **fields: Any) -> Case:
    return Case(kind=mode, path=CHAT, body=BODY | MODES[mode] | fields)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Two gateways and three nodes."""
    assert demo_model.exists()
    with Proxy() as proxy:
        running = Fleet(PLAN, tmp_path_factory.mktemp("fleet"), proxy)
        async with running.running():
            yield running


async def until(condition: Callable[[], bool]) -> None:
    """Look until it holds; a fleet that never gets there fails the test."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)


async def fit(fleet: Fleet) -> None:
    """Everything is up."""
    await until(lambda: len(fleet.sound_nodes()) == len(fleet.nodes) and len(fleet.sound_gateways()) == 2)


async def moves(fleet: Fleet) -> int:
    for gateway in fleet.gateways:
        await fleet.read_counts(gateway)
    return fleet.count("moves")


async def holders(fleet: Fleet, name: str) -> list[NodeMember]:
    """The nodes that compute parts of this answer."""
    places = [(node, await fleet.where(node, fleet.sound_gateways())) for node in fleet.nodes]
    return [node for node, ids in places if name in ids]


def kill_worker(node: NodeMember) -> None:
    for pid in node.workers():
        os.kill(pid, signal.SIGKILL)


def kill_node(node: NodeMember) -> None:
    """kill -9, and what a supervisor does then."""
    os.kill(node.pid, signal.SIGKILL)
    os.waitid(os.P_PID, node.pid, os.WEXITED | os.WNOWAIT)
    node.start()


KILLS = {"worker": kill_worker, "node": kill_node}


async def read(
    fleet: Fleet, case: Case, position: int, strike: Callable[[str], Awaitable[None]] | None = None
) -> Transcript:
    """A stock client's answer; `strike` is called once, with the answer's id, when so many tokens of the first choice are there."""
    answer, stock = Transcript(), StockClient()
    try:
        async for part in stock.parts(fleet.gateways[0].url, case):
            answer.take(part)
            if strike is not None and 0 in answer.choices and len(answer.choices[0]["tokens"]) >= position:
                await strike(answer.id)
                strike = None
    finally:
        await stock.close()
    assert strike is None, "the answer ended before the position was reached"
    return answer


async def check_kills(fleet: Fleet, mode: str, victim: str, positions: range) -> int:
    """Kill at every position; in how many answers something had to move."""
    case, moved = case_of(mode), 0
    twin = await read(fleet, case, 0)
    assert len(twin.choices[0]["tokens"]) == ANSWER_TOKENS

    async def strike(name: str) -> None:
        for node in (await holders(fleet, name))[:1]:
            KILLS[victim](node)

    for position in positions:
        await until(lambda: len(fleet.sound_nodes()) >= 2)
        before = await moves(fleet)
        answer = await read(fleet, case, position, strike)
        assert answer.difference(twin) == "", f"killed at {position}"
        moved += await moves(fleet) > before
    return moved


SLOW = pytest.mark.slow


@pytest.mark.parametrize(("mode", "victim"), [("n=2", "worker"), pytest.param("logprobs", "node", marks=SLOW)])
async def test_a_kill_changes_nothing(fleet: Fleet, mode: str, victim: str) -> None:
    await fit(fleet)
    assert await check_kills(fleet, mode, victim, range(5, 40, 15)) == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", KILLS)
@pytest.mark.parametrize("mode", MODES)
async def test_kills_at_every_token_change_nothing(fleet: Fleet, mode: str, victim: str) -> None:
    await fit(fleet)
    moved = await check_kills(fleet, mode, victim, range(ANSWER_TOKENS))
    assert moved >= ANSWER_TOKENS - 5  # at the last positions an answer may be complete before the kill


@pytest.mark.parametrize("victim", [pytest.param("worker", marks=SLOW), "node"])
async def test_a_second_kill_during_recovery_changes_nothing(fleet: Fleet, victim: str) -> None:
    await check_second_kill(fleet, victim, 10)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", KILLS)
async def test_second_kills_at_many_tokens_change_nothing(fleet: Fleet, victim: str) -> None:
    for position in range(1, ANSWER_TOKENS - 5, 3):
        await check_second_kill(fleet, victim, position)


async def check_second_kill(fleet: Fleet, victim: str, position: int) -> None:
    """Whoever takes the answer over dies as soon as it has it."""
    await fit(fleet)
    case = case_of("seeded", max_tokens=2 * ANSWER_TOKENS)
    twin = await read(fleet, case, 0)
    killed: list[str] = []
    second: list[asyncio.Task[None]] = []

    async def kill_next(name: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while not (next_ones := [node for node in await holders(fleet, name) if node.name not in killed]):
                await asyncio.sleep(0)
        killed.append(next_ones[0].name)
        KILLS[victim](next_ones[0])

    async def strike(name: str) -> None:
        (node,) = await holders(fleet, name)
        killed.append(node.name)
        KILLS[victim](node)
        second.append(asyncio.create_task(kill_next(name)))

    before = await moves(fleet)
    answer = await read(fleet, case, position, strike)
    await second[0]
    assert answer.difference(twin) == ""
    assert len(set(killed)) == 2 and await moves(fleet) >= before + 2


# -- gateways


@pytest.mark.parametrize("mode", [pytest.param(mode, marks=SLOW) if mode != "n=2" else mode for mode in MODES])
async def test_a_killed_gateway_changes_nothing_for_a_client_that_resumes(fleet: Fleet, mode: str) -> None:
    await fit(fleet)
    case, resumed = case_of(mode), list[str]()
    twin = await read(fleet, case, 0)
    first, _ = fleet.gateways
    urls = [gateway.url for gateway in fleet.gateways]
    client = ResumingClient(urls, lambda _, url, resumes: resumed.append(url) if resumes else None)
    answer = Transcript()
    try:
        async for part in client.parts(0, case, "one"):
            answer.take(part)
            far = 0 in answer.choices and len(answer.choices[0]["tokens"]) >= 15  # the other choice may speak first
            if far and first.status is None:
                os.kill(first.pid, signal.SIGKILL)
                os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    finally:
        await client.close()
        first.start()
    assert answer.difference(twin) == ""
    assert resumed == [f"{urls[1]}/v1{CHAT}"]


async def ids_of(url: str, case: Case, authorization: str, count: int) -> list[str]:
    """The first ids of a stream that is then left."""
    found: list[str] = []
    headers = {"authorization": authorization}
    async with (
        httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as http,
        http.stream("POST", f"{url}/v1{case.path}", json=case.body, headers=headers) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith("id: "):
                found.append(line.removeprefix("id: "))
            if len(found) == count:
                break
    return found


async def resume(url: str, case: Case, authorization: str, event: str) -> httpx.Response:
    headers = {"authorization": authorization, "last-event-id": event}
    async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as http:
        return await http.post(f"{url}/v1{case.path}", json=case.body, headers=headers)


async def test_only_whom_a_stream_was_for_can_resume_it_at_any_gateway(fleet: Fleet) -> None:
    await fit(fleet)
    first, second = (gateway.url for gateway in fleet.gateways)
    case, other = case_of("seeded"), case_of("seeded", seed=1)
    event = (await ids_of(first, case, "Bearer mine", 5))[-1]
    forged = event[:-2] + ("A" if event[-2] != "A" else "B") + event[-1]
    for url in (first, second):
        for answer in (
            await resume(url, case, "Bearer another", event),
            await resume(url, other, "Bearer mine", event),
            await resume(url, case, "Bearer mine", forged),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_resume_token")
    assert (await resume(second, case, "Bearer mine", event)).text.rstrip().endswith("data: [DONE]")


# -- restarts


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_rolling_restart_of_everything_loses_nothing(fleet: Fleet) -> None:
    await fit(fleet)
    clock, dice, striker = SystemClock(), random.Random(7), Striker(fleet, 1.0)
    answers = await undisturbed(fleet.gateways[0].url, catalogue("smollm2", 22, 20, 80, dice))
    urls = {gateway.name: gateway.url for gateway in fleet.gateways}
    traffic = Traffic(answers, urls, lambda name: fleet.views[name].ready, clock, dice)
    clients = asyncio.create_task(traffic.run(streams=16, resuming=8))
    faults: list[Fault] = []
    for victim in [
        *(Victim(node.name, node=node) for node in fleet.nodes),
        *(Victim(gateway.name, gateway=gateway) for gateway in fleet.gateways),
    ]:
        await asyncio.sleep(2)
        role = "node" if victim.node is not None else "gateway"
        fault = Fault(number=len(faults), kind=f"{role}/restart", victim=victim.name, begin=clock.now())
        faults.append(fault)
        await striker.restart(victim)
        await fit(fleet)
        faults[-1] = replace(fault, again=clock.now())
    await asyncio.sleep(2)
    traffic.stop()
    await clients
    assert [record.wrong for record in traffic.records if record.wrong] == []
    failed = [record for record in traffic.records if record.error]
    assert [record.error for record in failed if record.resuming or not excused(record, faults, ())] == []
    assert len(traffic.records) > 100
