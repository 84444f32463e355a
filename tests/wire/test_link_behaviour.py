"""What every link between a gateway and a node does, in memory or over gRPC."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_stack.core.errors import InferenceError
from inference_stack.core.fleet import NodeState
from inference_stack.core.request import Continuation, FinishReason, Request, SamplingParams
from inference_stack.core.seams import LinkClosed
from inference_stack.core.step import TokenDelta
from inference_stack.wire.grpc.dial import dial
from inference_stack.wire.grpc.protocol import CHANNEL_OPTIONS, LINK_KEY, PROMPTS, SERVICE, TALK, pb
from inference_stack.wire.grpc.server import LinkServer
from inference_stack.wire.messages import Abort, Attach, Beat, DrainNode, Lost, StepReport, Submit
from tests.wire import strategies
from tests.wire.conftest import Pair

Connect = Callable[..., Awaitable[Pair]]


def request(name: str, length: int = 3, attempt: int = 0) -> Request:
    known = Continuation(prompt=tuple(range(length)), params=SamplingParams(), seed=1, emitted=(7,))
    return Request(id=name, model="m", continuation=known, attempt=attempt)


def submit(*requests: Request) -> Submit:
    return Submit(requests=requests)


async def received(link: Any, count: int) -> list[Any]:
    return [await link.receive() for _ in range(count)]


async def test_messages_come_in_order_both_ways(pair: Pair) -> None:
    gateway, node = pair
    down = [Attach(wire_version=1, gateway="g", boot="b"), submit(request("a")), Abort(request_ids=("a",))]
    up = [NodeState(node="n", ready=True), Lost(request_ids=("a",), reason="r", present=False), Beat(number=1, heard=2)]
    for one, other in zip([*down, DrainNode(seconds=1.0)], [*up, NodeState(node="n", ready=False)], strict=True):
        await gateway.send(one)
        await node.send(other)
    assert await received(node, 4) == [*down, DrainNode(seconds=1.0)]
    assert await received(gateway, 4) == [*up, NodeState(node="n", ready=False)]


async def test_tokens_come_in_order_however_they_are_joined(pair: Pair) -> None:
    gateway, node = pair
    await gateway.send(submit(request("a"), request("b")))
    for step in range(500):
        await node.send(StepReport(deltas=(TokenDelta("a", 0, (step,)), TokenDelta("b", 0, (step, step)))))
    await node.send(Lost(request_ids=("b",), reason="", present=True))
    seen: dict[str, list[int]] = {"a": [], "b": []}
    while isinstance(message := await gateway.receive(), StepReport):
        for delta in message.deltas:
            seen[delta.request_id] += delta.tokens
    assert seen == {"a": list(range(500)), "b": [step for step in range(500) for _ in range(2)]}
    assert message == Lost(request_ids=("b",), reason="", present=True)


@pytest.mark.parametrize("closing", [0, 1], ids=["gateway", "node"])
async def test_both_ends_see_the_end_after_what_was_sent(pair: Pair, closing: int) -> None:
    here, there = pair[closing], pair[1 - closing]
    for number in range(50):
        await here.send(Beat(number=number, heard=0))
    await asyncio.gather(here.close(), here.close())
    assert await received(there, 50) == [Beat(number=number, heard=0) for number in range(50)]
    for end in (here, there):
        with pytest.raises(LinkClosed):
            await end.receive()
    for end in (here, there):
        with pytest.raises(LinkClosed):
            await end.send(Beat(number=0, heard=0))


async def test_a_receiver_that_waits_is_told_when_the_link_ends(pair: Pair) -> None:
    gateway, node = pair
    waiting = asyncio.create_task(gateway.receive())
    await asyncio.sleep(0)
    await node.close()
    with pytest.raises(LinkClosed):
        await waiting


async def test_giving_up_on_a_message_loses_nothing(pair: Pair) -> None:
    gateway, node = pair
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(gateway.receive(), 0.01)
    await node.send(Beat(number=1, heard=0))
    assert await gateway.receive() == Beat(number=1, heard=0)


async def test_a_prompt_of_a_million_tokens_arrives_whole(pair: Pair) -> None:
    gateway, node = pair
    big = request("big", 1_000_000)
    await gateway.send(submit(request("small"), big))
    assert await node.receive() == submit(request("small"), big)


async def test_a_new_attempt_comes_after_the_earlier_one(pair: Pair) -> None:
    gateway, node = pair
    first, second = submit(request("a", 300_000)), submit(request("a", 3, attempt=1))
    await gateway.send(first)
    await gateway.send(second)
    assert await received(node, 2) == [first, second]


async def test_beats_and_aborts_pass_a_huge_prompt(connect: Connect) -> None:
    gateway, node = await connect()
    await gateway.send(submit(request("big", 1_000_000)))
    await gateway.send(submit(request("small")))
    await gateway.send(Beat(number=1, heard=0))
    assert [type(message) for message in await received(node, 3)] == [Submit, Beat, Submit]


async def test_an_abort_drops_a_prompt_under_way(connect: Connect) -> None:
    gateway, node = await connect()
    await gateway.send(submit(request("gone", 1_000_000), request("kept", 500_000)))
    await gateway.send(Abort(request_ids=("gone",)))
    assert await received(node, 2) == [Abort(request_ids=("gone",)), submit(request("kept", 500_000))]


async def test_an_aborted_prompt_leaves_the_way_free_for_the_next_attempt(connect: Connect) -> None:
    gateway, node = await connect()
    again = submit(request("a", 200_000, attempt=1))
    await gateway.send(submit(request("a", 1_000_000)))
    await gateway.send(Abort(request_ids=("a",)))
    await gateway.send(again)
    assert await received(node, 2) == [Abort(request_ids=("a",)), again]


async def test_a_gateway_that_does_not_read_is_cut_off_and_others_go_on(connect: Connect) -> None:
    slow, slow_node = await connect(backlog=1 << 20)
    good, good_node = await connect()
    report = StepReport(deltas=tuple(TokenDelta(str(n), 0, tuple(range(100))) for n in range(500)))
    with pytest.raises(LinkClosed, match="does not read"):
        for _ in range(2_000):
            await slow_node.send(report)
            await asyncio.sleep(0)
    await good_node.send(report)
    assert await good.receive() == report
    with pytest.raises(LinkClosed):
        while True:
            await slow.receive()


async def test_finished_requests_of_a_node_are_forgotten_by_both_ends(connect: Connect) -> None:
    gateway, node = await connect()
    for name in map(str, range(50)):
        await gateway.send(submit(request(name)))
        await node.receive()
        last = StepReport(deltas=(TokenDelta(name, 0, (1,), finish=FinishReason.STOP),))
        await node.send(last)
        assert await gateway.receive() == last
    assert not gateway._end.handles.live and not node._end.handles.live


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(strategies.requests, max_size=3), report=strategies.reports, state=strategies.states)
async def test_every_field_survives(pair: Pair, requests: list[Request], report: StepReport, state: NodeState) -> None:
    gateway, node = pair
    asked = submit(*requests)
    await gateway.send(asked)
    assert await node.receive() == asked
    await node.send(report)
    await node.send(state)
    assert await received(gateway, 2) == [report, state]


async def test_versions_too_far_apart_are_refused_with_both_names() -> None:
    async def on_link(link: Any, peer: str) -> None:
        raise AssertionError("it was let in")

    server = LinkServer("127.0.0.1:0", None, on_link, wire_version=4)
    await server.start()
    with pytest.raises(InferenceError, match="wire version 1, and this one 4") as refusal:
        await dial(f"127.0.0.1:{server.port}", wire_version=1)
    assert refusal.value.info.code == "wire_version"
    await server.stop()


@pytest.mark.parametrize("theirs", [1, 2, 3])
async def test_adjacent_versions_link_and_speak_the_lower_one(theirs: int) -> None:
    async def on_link(link: Any, peer: str) -> None:
        await link.send(Beat(number=link.version, heard=0))

    server = LinkServer("127.0.0.1:0", None, on_link, wire_version=2)
    await server.start()
    link: Any = await dial(f"127.0.0.1:{server.port}", wire_version=theirs)
    assert await link.receive() == Beat(number=min(2, theirs), heard=0)
    assert link.version == min(2, theirs)
    await link.close()
    await server.stop()


async def test_a_taken_port_is_a_clear_error() -> None:
    async def on_link(link: Any, peer: str) -> None:
        return

    server = LinkServer("127.0.0.1:0", None, on_link)
    await server.start()
    with pytest.raises(InferenceError, match="Cannot listen"):
        await LinkServer(f"127.0.0.1:{server.port}", None, on_link).start()
    await server.stop()


async def test_a_second_stream_must_be_of_the_same_connection() -> None:
    """Whoever learnt the name of another's link can neither feed it nor take its place."""
    seen: asyncio.Queue[Any] = asyncio.Queue()

    async def on_link(link: Any, peer: str) -> None:
        while True:
            seen.put_nowait(await link.receive())

    server = LinkServer("127.0.0.1:0", None, on_link)
    await server.start()
    metadata = ((LINK_KEY, "secret"),)
    hello = pb.ToNode(hello=pb.Hello(wire_version=1)).SerializeToString()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=CHANNEL_OPTIONS) as owner:
        talk = owner.stream_stream(f"/{SERVICE}/{TALK}")(metadata=metadata)
        await talk.write(hello)
        assert pb.FromNode.FromString(await talk.read()).welcome.wire_version == 1
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=CHANNEL_OPTIONS) as thief:
            prompts = thief.stream_unary(f"/{SERVICE}/{PROMPTS}")(metadata=metadata)
            assert await prompts.code() is grpc.StatusCode.NOT_FOUND
            again = thief.stream_stream(f"/{SERVICE}/{TALK}")(metadata=metadata)
            await again.write(hello)
            assert await again.code() is grpc.StatusCode.INVALID_ARGUMENT
        await talk.write(pb.ToNode(beat=pb.Beat(number=5)).SerializeToString())
        assert await seen.get() == Beat(number=5, heard=0)
        await talk.done_writing()
    await server.stop()


@pytest.mark.parametrize("first", [b"\xff", b"", pb.ToNode(beat=pb.Beat()).SerializeToString()])
async def test_a_peer_that_does_not_say_hello_is_refused(first: bytes) -> None:
    async def on_link(link: Any, peer: str) -> None:
        raise AssertionError("it was let in")

    server = LinkServer("127.0.0.1:0", None, on_link)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=CHANNEL_OPTIONS) as channel:
        talk = channel.stream_stream(f"/{SERVICE}/{TALK}")(metadata=((LINK_KEY, "x"),))
        await talk.write(first)
        assert await talk.code() is grpc.StatusCode.INVALID_ARGUMENT
    await server.stop()


async def test_garbage_on_a_link_ends_that_link_alone(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    bad, bad_node = await connect()
    good, good_node = await connect()
    await bad._talk.write(b"\xff\xff")
    with pytest.raises(LinkClosed, match="makes no sense"):
        await bad_node.receive()
    with pytest.raises(LinkClosed):
        await bad.receive()
    assert "makes no sense" in caplog.text
    await good.send(Beat(number=1, heard=0))
    assert await good_node.receive() == Beat(number=1, heard=0)


async def test_what_cannot_be_encoded_ends_the_link_with_a_reason(connect: Connect) -> None:
    gateway, node = await connect()
    await node.send(StepReport(deltas=(TokenDelta("a", 0, (-1,)),)))
    with pytest.raises(LinkClosed, match="this end failed"):
        await node.receive()
    with pytest.raises(LinkClosed):
        await gateway.receive()
