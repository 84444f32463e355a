"""A gateway's links: what goes over them, what their ends mean, and how they are kept up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from inference_stack.core.errors import unavailable
from inference_stack.core.fleet import WorkerState
from inference_stack.core.seams import Link, LinkClosed, SystemClock
from inference_stack.core.step import TokenDelta
from inference_stack.dispatch.dispatcher import Limits
from inference_stack.gateway.connect import Connector
from inference_stack.gateway.fleet import Fleet
from inference_stack.telemetry.metrics import Metrics
from inference_stack.wire.memory import MemoryLink, memory_pair
from inference_stack.wire.messages import Abort, Attach, Beat, FromNode, StepReport, Submit, ToNode
from tests.dispatch.world import request, state


def fleet(silence: float = 5.0) -> Fleet:
    return Fleet("g", Limits(), silence, SystemClock(), Metrics())


async def heard(node: MemoryLink) -> object:
    """The next message that is no beat."""
    while True:
        message = await asyncio.wait_for(node.receive(), 10)
        if not isinstance(message, Beat):
            return message


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.001)


@asynccontextmanager
async def linked(gateway: Fleet, name: str = "n", watched: bool = True) -> AsyncIterator[MemoryLink]:
    """The node's end of a link that is being served."""
    here, there = memory_pair()
    task = asyncio.create_task(gateway.serve_link(name, here, watched))
    assert isinstance(await heard(there), Attach)
    await there.send(state(name))
    await until(lambda: gateway.models())
    yield there
    await there.close()
    await task


async def test_requests_go_out_and_news_come_in() -> None:
    gateway, news = fleet(), list[TokenDelta]()
    async with linked(gateway) as node:
        flight = gateway.submit(request(), news.append)
        message = await heard(node)
        assert isinstance(message, Submit) and message.requests[0].id == "r"
        await node.send(StepReport(deltas=(TokenDelta(request_id="r", tokens=(5,)),), at=123.0))
        await until(lambda: news)
        assert news[0].tokens == (5,)
        flight.abort()
        assert await heard(node) == Abort(request_ids=("r",))


async def test_when_news_were_emitted_is_known_while_they_are_told() -> None:
    gateway, seen = fleet(), list[float]()
    async with linked(gateway) as node:
        gateway.submit(request(), lambda delta: seen.append(gateway.news_at))
        await heard(node)
        await node.send(StepReport(deltas=(TokenDelta(request_id="r", tokens=(5,)),), at=123.0))
        await until(lambda: seen)
    assert seen == [123.0] and gateway.news_at == 0.0


async def test_streams_of_a_link_that_closes_go_on_over_another() -> None:
    gateway = fleet()
    async with linked(gateway, "a") as first:
        gateway.submit(request(), lambda delta: None)
        assert isinstance(await heard(first), Submit)
        async with linked(gateway, "b") as second:
            await first.close()
            message = await heard(second)
            assert isinstance(message, Submit) and message.requests[0].attempt == 1


async def test_a_silent_node_is_given_up() -> None:
    gateway = fleet(silence=0.3)
    here, there = memory_pair()
    reason = await asyncio.wait_for(gateway.serve_link("n", here), 10)
    assert "silent" in reason and not gateway.nodes()
    await there.close()


async def test_every_stream_can_be_ended_at_once() -> None:
    gateway, news = fleet(), list[TokenDelta]()
    async with linked(gateway) as node:
        gateway.submit(request(), news.append)
        await heard(node)
        gateway.fail_remaining(unavailable("bye").info)
        assert news[-1].error is not None and gateway.idle
        assert await heard(node) == Abort(request_ids=("r",))


class Dialler:
    """Makes links, and remembers the nodes' ends; refuses the first few times."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.ends: list[MemoryLink] = []

    async def __call__(self, address: str) -> Link[ToNode, FromNode]:
        if self.refusals:
            self.refusals -= 1
            raise LinkClosed("not yet")
        here, there = memory_pair()
        self.ends.append(there)
        return here


async def test_a_node_is_dialled_until_it_answers_and_again_when_its_link_ends() -> None:
    dial = Dialler(refusals=2)
    connector = Connector(fleet(), dial, SystemClock())
    connector.nodes(frozenset({"n"}))
    await until(lambda: len(dial.ends) == 1)
    await dial.ends[0].close()
    await until(lambda: len(dial.ends) == 2)
    await connector.close()


async def test_a_node_that_is_no_longer_named_is_left() -> None:
    dial = Dialler()
    connector = Connector(fleet(), dial, SystemClock())
    connector.nodes(frozenset({"n"}))
    await until(lambda: dial.ends)
    connector.nodes(frozenset())
    try:
        while True:
            await asyncio.wait_for(dial.ends[0].receive(), 10)
    except LinkClosed:
        await connector.close()


async def test_nodes_that_are_no_longer_named_are_forgotten_once_their_links_have_ended() -> None:
    dial, metrics = Dialler(), Metrics()
    gateway = Fleet("g", Limits(), 5.0, SystemClock(), metrics)
    connector = Connector(gateway, dial, SystemClock())
    for number in range(20):
        connector.nodes(frozenset({f"n{number}"}))
        await until(lambda number=number: len(dial.ends) == number + 1)
        workers = (WorkerState(pid=number, device="cpu", state="ready", restarts=1),)
        await dial.ends[-1].send(replace(state(f"n{number}"), workers=workers))
        await until(lambda number=number: list(gateway.keys()) == [f"n{number}"])
    assert gateway.known <= 3  # one that ends may overlap with the next
    connector.nodes(frozenset())
    await until(lambda: not gateway.keys())
    await until(lambda: b'node="n' not in metrics.render() and b'instance="n' not in metrics.render())
    await connector.close()


async def test_a_node_that_is_named_again_at_once_is_kept() -> None:
    dial, gateway = Dialler(), fleet()
    connector = Connector(gateway, dial, SystemClock())
    connector.nodes(frozenset({"n"}))
    await until(lambda: len(dial.ends) == 1)
    connector.nodes(frozenset())
    connector.nodes(frozenset({"n"}))
    await until(lambda: len(dial.ends) == 2)
    await dial.ends[1].send(state("n"))
    await until(lambda: list(gateway.keys()) == ["n"])
    await connector.close()


async def test_a_message_that_nothing_can_be_made_of_costs_its_link_alone() -> None:
    dial, gateway = Dialler(), fleet()
    connector = Connector(gateway, dial, SystemClock())
    connector.nodes(frozenset({"n"}))
    await until(lambda: dial.ends)
    await dial.ends[0].send(replace(state("n"), models=(None,)))  # type: ignore[arg-type]
    await until(lambda: len(dial.ends) == 2)
    await dial.ends[1].send(state("n"))
    await until(lambda: gateway.nodes())
    await connector.close()
