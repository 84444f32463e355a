"""External servers as nodes: what they are asked, what their answers mean, and what becomes of streams when they fail."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from inference_stack.core.errors import InferenceError
from inference_stack.core.fleet import NodeState
from inference_stack.core.request import Continuation, FinishReason, Qos, Request, SamplingParams
from inference_stack.core.seams import LinkClosed, SystemClock
from inference_stack.core.step import TokenDelta
from inference_stack.gateway.external import ExternalLink, ExternalSettings, dial_external
from inference_stack.gateway.external_api import LocalModel, Refusal, noise_seed, request_body, urgency
from inference_stack.gateway.external_condition import Condition, Refusals
from inference_stack.wire.messages import Abort, Attach, Beat, DrainNode, LoadModel, Lost, StepReport, Submit
from tests.gateway.foreign import Foreign, foreign

ANSWER = [11, 12, 13, 14, 15, 2]
LOCAL = LocalModel(name="tiny", architecture="llama", vocab_size=400, max_model_len=128, eos_tokens=(2,))
SETTINGS = ExternalSettings(models={"tiny": LOCAL}, places=4)


def request(name: str = "r", emitted: tuple[int, ...] = (), attempt: int = 0, **params: Any) -> Request:
    given = SamplingParams(**{"max_tokens": 20, "temperature": 0.0} | params)
    known = Continuation(prompt=(7, 8, 9), params=given, seed=5, emitted=emitted)
    return Request(id=name, model="tiny", continuation=known, attempt=attempt)


async def dial(server: Foreign, settings: ExternalSettings | None = None) -> ExternalLink:
    fresh = replace(SETTINGS, refusals=Refusals())
    return await dial_external(f"openai:{server.url}", settings or fresh, SystemClock())


@asynccontextmanager
async def attached(server: Foreign, settings: ExternalSettings | None = None) -> AsyncIterator[ExternalLink]:
    """A link whose server has been checked."""
    link = await dial(server, settings)
    await link.send(Attach(wire_version=1, gateway="g", boot="b"))
    try:
        await state(link, lambda found: found.ready)
        yield link
    finally:
        await link.close()


async def heard(link: ExternalLink) -> Any:
    return await asyncio.wait_for(link.receive(), 10)


async def state(link: ExternalLink, wanted: Any) -> NodeState:
    """The first state of this kind."""
    while True:
        message = await heard(link)
        if isinstance(message, NodeState) and wanted(message):
            return message


async def outcome(link: ExternalLink) -> tuple[list[int], TokenDelta | Lost]:
    """The tokens of one request, and how it ended."""
    tokens: list[int] = []
    while True:
        message = await heard(link)
        if isinstance(message, Lost):
            return tokens, message
        for delta in message.deltas if isinstance(message, StepReport) else ():
            tokens += delta.tokens
            if delta.finish is not None:
                return tokens, delta


async def ask(link: ExternalLink, one: Request) -> tuple[list[int], TokenDelta | Lost]:
    await link.send(Submit(requests=(one,)))
    return await outcome(link)


# -- what a server is asked


def test_everything_that_chooses_a_token_is_said() -> None:
    params = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1}
    more = {"presence_penalty": 0.2, "frequency_penalty": 0.3, "logit_bias": {4: -1.0}, "min_tokens": 2}
    body = json.loads(request_body(request(**params, **more, stop_token_ids=(3,), logprobs=1), (2,)))
    assert {name: body[name] for name in params} == params
    assert {**more, "logit_bias": {"4": -1.0}} == {name: body[name] for name in more}
    assert body["prompt"] == [7, 8, 9] and body["max_tokens"] == 20 and body["seed"] == 5
    assert body["stop_token_ids"] == [3, 2] and body["logprobs"] == 1 and body["return_token_ids"]


def test_what_was_emitted_becomes_part_of_the_prompt() -> None:
    body = json.loads(request_body(request(emitted=(11, 12), min_tokens=3), (2,)))
    assert body["prompt"] == [7, 8, 9, 11, 12]
    assert body["max_tokens"] == 18 and body["min_tokens"] == 1


def test_defaults_of_the_server_do_not_count() -> None:
    body = json.loads(request_body(request(temperature=1.0), ()))
    assert (body["top_k"], body["top_p"], body["min_p"], body["repetition_penalty"]) == (-1, 1.0, 0.0, 1.0)


def test_end_tokens_are_no_stops_where_they_are_ignored() -> None:
    assert json.loads(request_body(request(ignore_eos=True), (2,)))["stop_token_ids"] == []


def test_each_choice_and_each_continuation_draws_other_noise() -> None:
    known = request().continuation
    seeds = {noise_seed(replace(known, choice=choice, emitted=(1,) * n)) for choice in range(3) for n in range(3)}
    assert len(seeds) == 9 and noise_seed(known) == 5


def test_a_seed_is_a_signed_integer() -> None:
    assert noise_seed(replace(request().continuation, seed=2**64 - 1)) == -1


def test_urgency_travels_in_headers() -> None:
    urgent = replace(request(), qos=Qos(priority=100, deadline=2.0, ttft_deadline=-1.0))
    expected = {"x-priority": "100", "x-deadline-ms": "2000.000", "x-ttft-deadline-ms": "1.000"}
    assert urgency(urgent) == expected


# -- what it is found to be


async def test_a_server_that_gives_token_ids_is_a_node() -> None:
    async with foreign(ANSWER) as server:
        link = await dial(server)
        await link.send(Attach(wire_version=1, gateway="g", boot="b"))
        found = await state(link, lambda found: found.ready)
        name = server.url.removeprefix("http://")
        assert found.node == name and found.error is None
        info = found.models[0]
        assert (info.name, info.vocab_size, info.eos_tokens, info.max_running) == ("tiny", 400, (2,), 4)
        assert info.numerics_id == f"external:{name}" and info.max_model_len == 128
        await link.close()


async def test_a_server_without_token_ids_is_refused() -> None:
    async with foreign(ANSWER, ids=False) as server:
        link = await dial(server)
        await link.send(Attach(wire_version=1, gateway="g", boot="b"))
        found = await state(link, lambda found: found.error is not None)
        assert found.error is not None and "cannot be a node" in found.error.message and not found.ready
        await link.close()


async def test_a_server_with_other_models_is_refused() -> None:
    async with foreign(ANSWER, models={"other": 10}) as server:
        link = await dial(server)
        await link.send(Attach(wire_version=1, gateway="g", boot="b"))
        found = await state(link, lambda found: found.error is not None)
        assert found.error is not None and "other" in found.error.message
        await link.close()


async def test_a_server_that_is_not_there_cannot_be_dialled() -> None:
    async with foreign(ANSWER) as server:
        pass
    with pytest.raises(LinkClosed, match="no connection"):
        await dial(server)


async def test_plain_http_beyond_this_machine_is_refused() -> None:
    with pytest.raises(InferenceError, match="TLS"):
        await dial_external("openai:http://192.0.2.1:80", SETTINGS, SystemClock())


async def test_a_server_that_ends_closes_its_link() -> None:
    async with foreign(ANSWER, faults=deque(["drop"])) as server:
        link = await dial(server)
        await link.send(Attach(wire_version=1, gateway="g", boot="b"))
        await state(link, lambda found: found.ready)
    await link.send(Submit(requests=(request(),)))
    with pytest.raises(LinkClosed):
        while True:
            await heard(link)
    with pytest.raises(LinkClosed):
        await link.send(Beat(number=1, heard=0))
    await link.close()


async def test_a_server_that_fails_its_checks_is_not_ready_until_it_passes_them() -> None:
    async with foreign(ANSWER, list_status=500) as server:
        link = await dial(server)
        await link.send(Attach(wire_version=1, gateway="g", boot="b"))
        found = await state(link, lambda found: "500" in found.workers[0].reason)
        assert not found.ready and found.error is None
        server.list_status = 200
        assert (await state(link, lambda found: found.ready)).models
        await link.close()


async def test_the_key_is_sent() -> None:
    async with foreign(ANSWER) as server, attached(server, replace(SETTINGS, key="secret")):
        assert {headers["authorization"] for headers in server.headers} == {"Bearer secret"}


async def test_beats_are_answered_with_numbers_of_the_load() -> None:
    async with foreign(ANSWER) as server, attached(server) as link:
        await ask(link, request())
        await link.send(Beat(number=7, heard=0))
        report = await heard(link)
        assert report.stats[0].prompt_tokens == 3 and report.stats[0].generation_tokens == 7
        assert report.stats[0].running == 0 and report.stats[0].step_time.base > 0
        assert await heard(link) == Beat(number=1, heard=7)


# -- what its answers mean


async def test_a_stream_ends_with_its_stop_token_and_its_prefix_hit() -> None:
    async with foreign(ANSWER) as server, attached(server) as link:
        tokens, last = await ask(link, request(attempt=3))
        assert tokens == ANSWER
        assert isinstance(last, TokenDelta) and last.finish is FinishReason.STOP
        assert last.attempt == 3 and last.cached_tokens == 2


async def test_a_stream_ends_at_its_limit() -> None:
    async with foreign(ANSWER) as server, attached(server) as link:
        tokens, last = await ask(link, request(max_tokens=4))
        assert tokens == ANSWER[:4] and isinstance(last, TokenDelta) and last.finish is FinishReason.LENGTH


async def test_a_stream_goes_on_where_another_left_off() -> None:
    async with foreign(ANSWER) as server, attached(server) as link:
        tokens, _ = await ask(link, request(emitted=(11, 12)))
        assert tokens == ANSWER[2:]


async def test_no_stream_goes_on_there_where_it_must_be_identical() -> None:
    async with foreign(ANSWER) as server, attached(server, replace(SETTINGS, fail_on_mismatch=True)) as link:
        assert (await ask(link, request("fresh")))[0] == ANSWER
        tokens, last = await ask(link, request("broken off", emitted=(11,)))
        assert not tokens and isinstance(last, TokenDelta) and last.error is not None and last.error.status == 503


async def test_a_prefix_hit_is_of_the_prompt_alone() -> None:
    async with foreign(ANSWER, cached=5) as server, attached(server) as link:
        _, last = await ask(link, request(emitted=(11, 12)))
        assert isinstance(last, TokenDelta) and last.cached_tokens == 3


async def test_a_stream_that_has_all_its_tokens_ends_at_once() -> None:
    async with foreign(ANSWER) as server, attached(server) as link:
        tokens, last = await ask(link, request(emitted=(11, 12), max_tokens=2))
        assert not tokens and isinstance(last, TokenDelta) and last.finish is FinishReason.LENGTH
        assert not server.bodies


async def test_log_probabilities_come_with_their_tokens() -> None:
    async with foreign(ANSWER) as server, attached(server) as link:
        await link.send(Submit(requests=(request(logprobs=1, max_tokens=2),)))
        found = []
        while len(found) < 2:
            message = await heard(link)
            found += [entry for delta in message.deltas for entry in delta.logprobs]
        assert [(one.token, one.logprob, one.rank, one.top) for one in found] == [
            (11, -0.5, 2, ((7, -0.25),)),
            (12, -0.5, 2, ((7, -0.25),)),
        ]


async def test_a_server_that_names_no_logprobs_is_a_node_without_them() -> None:
    async with foreign(ANSWER, named=False) as server, attached(server) as link:
        _, refused = await ask(link, request("a", logprobs=0))
        assert isinstance(refused, TokenDelta) and refused.error is not None and refused.error.param == "logprobs"
        assert (await ask(link, request("b")))[0] == ANSWER


@pytest.mark.parametrize("one", [request(prompt_logprobs=0), replace(request(), adapter="a")])
async def test_what_it_cannot_do_is_the_clients_error(one: Request) -> None:
    async with foreign(ANSWER) as server, attached(server) as link:
        _, last = await ask(link, one)
        assert isinstance(last, TokenDelta) and last.error is not None
        assert last.error.code == "unsupported_parameter" and last.error.status == 400
        assert not server.bodies


async def test_what_it_finds_wrong_with_a_request_is_the_clients_error() -> None:
    async with foreign(ANSWER, faults=deque(["400"])) as server, attached(server) as link:
        _, last = await ask(link, request())
        assert isinstance(last, TokenDelta) and last.error is not None
        assert (last.error.status, last.error.message, last.error.param) == (400, "no: 400", "prompt")


# -- how it fails


@pytest.mark.parametrize("fault", ["429", "500", "503", "401", "404", "307"])
async def test_a_refusing_server_is_left_alone_and_the_request_moves(fault: str) -> None:
    async with foreign(ANSWER, faults=deque([fault])) as server, attached(server) as link:
        await link.send(Submit(requests=(request(),)))
        resting = await heard(link)
        assert isinstance(resting, NodeState) and not resting.ready and fault in resting.workers[0].reason
        assert await heard(link) == Lost(
            request_ids=("r",), reason=f"{resting.node}: {resting.workers[0].reason}", present=False
        )
        assert (await state(link, lambda found: found.ready)).models


@pytest.mark.parametrize("fault", ["drop", "malformed", "error", "long", "strange", "text"])
async def test_a_stream_that_breaks_moves_with_what_it_had_emitted(fault: str) -> None:
    async with foreign(ANSWER, faults=deque([fault])) as server, attached(server) as link:
        tokens, last = await ask(link, request())
        assert tokens == ANSWER[:3] and isinstance(last, Lost) and not last.present


async def test_a_request_is_not_refused_for_ever() -> None:
    async with foreign(ANSWER, faults=deque(["503"] * 9)) as server, attached(server) as link:
        for _ in range(4):
            assert isinstance((await ask(link, request()))[1], Lost)
        _, last = await ask(link, request())
        assert isinstance(last, TokenDelta) and last.error is not None
        assert last.error.status == 502 and last.error.code == "external_server"


async def test_refusals_are_counted_across_links() -> None:
    settings = replace(SETTINGS, refusals=Refusals())
    async with foreign(ANSWER, faults=deque(["503"] * 9)) as server:
        async with attached(server, settings) as link:
            for _ in range(4):
                assert isinstance((await ask(link, request()))[1], Lost)
        async with attached(server, settings) as link:
            assert isinstance((await ask(link, request()))[1], TokenDelta)


def test_the_oldest_refusals_are_forgotten() -> None:
    refusals = Refusals(most=2)
    for name in ("a", "b", "c"):
        refusals.add("s", name)
    assert (refusals.add("s", "c"), refusals.add("s", "a"), refusals.add("t", "c")) == (2, 1, 1)


def test_a_server_rests_longer_each_time_and_once_for_all_that_fails_at_once() -> None:
    condition = Condition("s", {}, 1)
    for now, rest in ((0.0, 0.5), (0.1, 0.5), (1.0, 1.0), (1.5, 1.0), (9.0, 2.0)):
        condition.refused(Refusal("no"), now)
        assert condition.rests(now) == pytest.approx(rest)
    condition.worked()
    condition.refused(Refusal("no", 429, retry_after=7.0), 20.0)
    assert condition.rests(20.0) == 7.0


async def test_a_token_in_between_clears_a_request_of_its_refusals() -> None:
    faults = deque(["503"] * 4 + ["drop"] + ["503"])
    async with foreign(ANSWER, faults=faults) as server, attached(server) as link:
        assert all([isinstance((await ask(link, request()))[1], Lost) for _ in range(6)])


async def test_an_abort_closes_the_connection() -> None:
    async with foreign(ANSWER, faults=deque(["hang"])) as server, attached(server) as link:
        await link.send(Submit(requests=(request(),)))
        await asyncio.wait_for(server.streaming.wait(), 10)
        await link.send(Abort(request_ids=("r",)))
        assert await asyncio.wait_for(server.cut.wait(), 10)
        tokens, last = await ask(link, request("next"))  # nothing more is told of the first
        assert isinstance(last, TokenDelta) and last.request_id == "next"
        assert tokens[-len(ANSWER) :] == ANSWER and len(server.bodies) == 2


async def test_only_the_highest_attempt_is_obeyed() -> None:
    async with foreign(ANSWER, faults=deque(["hang"])) as server, attached(server) as link:
        await link.send(Submit(requests=(request(attempt=1),)))
        await asyncio.wait_for(server.streaming.wait(), 10)
        await link.send(Submit(requests=(request(attempt=1), request(attempt=0))))
        await link.send(Submit(requests=(request(attempt=2, emitted=(11,)),)))
        await asyncio.wait_for(server.cut.wait(), 10)
        _, last = await outcome(link)
        assert isinstance(last, TokenDelta) and last.attempt == 2 and len(server.bodies) == 2


async def test_a_drain_moves_what_does_not_end_in_time() -> None:
    async with foreign(ANSWER, faults=deque(["hang"])) as server, attached(server) as link:
        await link.send(Submit(requests=(request(),)))
        await asyncio.wait_for(server.streaming.wait(), 10)
        await link.send(DrainNode(seconds=0.01))
        assert (await state(link, lambda found: found.draining)).ready
        _, last = await outcome(link)
        assert isinstance(last, Lost)
        await link.send(DrainNode(seconds=0, undo=True))
        assert not (await state(link, lambda found: not found.draining)).draining


async def test_models_are_not_loaded_from_here() -> None:
    async with foreign(ANSWER) as server, attached(server) as link:
        await link.send(LoadModel(model="x"))
        found = await state(link, lambda found: found.workers[0].reason)
        assert "at the server itself" in found.workers[0].reason and found.ready
