"""A gateway in front of others: what clients get is what they would get from the servers behind, whatever happens to those."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from inference_stack.config.tree import ServerConfig
from inference_stack.core.request import Continuation, FinishReason, Request, SamplingParams
from inference_stack.core.seams import SystemClock
from inference_stack.core.step import TokenDelta
from inference_stack.dispatch.dispatcher import Limits
from inference_stack.frontend.chat import ChatEncoder
from inference_stack.frontend.load import Frontend
from inference_stack.gateway.app import create_app
from inference_stack.gateway.connect import Connector
from inference_stack.gateway.external import ExternalLink, ExternalSettings, dial_external
from inference_stack.gateway.external_api import LocalModel
from inference_stack.gateway.fleet import Fleet
from inference_stack.telemetry.metrics import Metrics
from tests.gateway.foreign import Wire, foreign
from tests.gateway.house import (
    CONTEXT,
    EOS,
    MODEL,
    TEMPLATE,
    TEXTS,
    TOKENIZER,
    Live,
    answers,
    chat_body,
    events,
    live,
    text_body,
)

CLOCK = SystemClock()
LOCAL = LocalModel(
    name=MODEL, architecture="llama", vocab_size=TOKENIZER.vocab_size, max_model_len=CONTEXT, eos_tokens=(EOS,)
)
ANSWER = answers()[0]
PROMPT = (5, 6, 7)


class Front:
    """A gateway whose nodes are servers."""

    def __init__(self) -> None:
        metrics = Metrics()
        self.fleet = Fleet("front", Limits(), 5.0, CLOCK, metrics)
        self.settings = ExternalSettings(models={MODEL: LOCAL}, places=4)
        self.connector = Connector(self.fleet, self._dial, CLOCK)
        frontends = {MODEL: Frontend(TOKENIZER, ChatEncoder(TOKENIZER, {"default": TEMPLATE}))}
        self.app = create_app(self.fleet, frontends, ServerConfig(), CLOCK, metrics, logging.getLogger("tests.front"))

    async def _dial(self, address: str) -> ExternalLink:
        return await dial_external(address, self.settings, CLOCK)

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://front")

    async def until_ready(self, count: int) -> None:
        async with asyncio.timeout(10):
            while sum(node.ready for node in self.fleet.nodes()) < count:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def front(*urls: str) -> AsyncIterator[Front]:
    """In front of these servers, once all of them can be used."""
    made = Front()
    time = asyncio.create_task(made.fleet.run())
    made.connector.nodes(frozenset(f"openai:{url}" for url in urls))
    try:
        await made.until_ready(len(urls))
        yield made
    finally:
        await made.connector.close()
        time.cancel()


@pytest.fixture(scope="module")
def behind() -> Iterator[Live]:
    """A gateway of ours, with an engine that plays a script."""
    with live() as served:
        yield served


def said(answer: dict[str, Any]) -> tuple[Any, Any]:
    """What must be the same: everything but ids and times."""
    return answer["choices"], answer["usage"]


def forget_hits(usage: dict[str, Any]) -> None:
    """A server tells of its prefix hit at its own end, and a stop string ends an answer before that."""
    usage["prompt_tokens_details"] = None


TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


def asked(**fields: Any) -> dict[str, Any]:
    """A completion request whose prompt is longer than the script's prefix hit."""
    return text_body(**{"prompt": "One two three four"} | fields)


BODIES = {
    "greedy": (TEXT, asked(temperature=0)),
    "seeded": (TEXT, asked(seed=1)),
    "negative seed": (TEXT, asked(seed=-2)),
    "cut off": (TEXT, asked(max_tokens=7)),
    "token ids": (TEXT, asked(return_token_ids=True)),
    "stop string": (TEXT, asked(stop="lazy")),
    "shown stop string": (TEXT, asked(stop=["lazy"], include_stop_str_in_output=True)),
    "stop token": (TEXT, asked(stop_token_ids=[ANSWER[4]])),
    "end ignored": (TEXT, asked(ignore_eos=True, max_tokens=len(ANSWER))),
    "logprobs": (TEXT, asked(logprobs=2)),
    "own logprobs": (TEXT, asked(logprobs=0)),
    "logprobs of parts of characters": (TEXT, asked(seed=1, logprobs=1)),
    "logprobs and stop string": (TEXT, asked(logprobs=1, stop="lazy")),
    "chat": (CHAT, chat_body()),
    "chat with logprobs": (CHAT, chat_body(logprobs=True, top_logprobs=2)),
    "several prompts": (TEXT, asked(prompt=["One two three four", "five six seven eight"])),
}


@pytest.mark.parametrize("case", BODIES)
async def test_an_answer_is_the_one_behind(behind: Live, case: str) -> None:
    path, body = BODIES[case]
    async with front(behind.url) as gateway, gateway.client() as near, httpx.AsyncClient(base_url=behind.url) as far:
        through, direct = await near.post(path, json=body), await far.post(path, json=body)
    assert through.status_code == 200, through.text
    answer, expected = through.json(), direct.json()
    if "stop" in body:
        forget_hits(answer["usage"])
        forget_hits(expected["usage"])
    assert said(answer) == said(expected)


@pytest.mark.parametrize("case", ["seeded", "stop string", "logprobs"])
async def test_a_stream_is_the_one_behind(behind: Live, case: str) -> None:
    path, body = BODIES[case]
    body = body | {"stream": True, "stream_options": {"include_usage": True}}

    async with front(behind.url) as gateway, gateway.client() as near, httpx.AsyncClient(base_url=behind.url) as far:
        assert await read(near, path, body) == await read(far, path, body)


async def read(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> tuple[str, list[str], list[Any]]:
    """A stream's text, the names of its tokens, its end and its usage."""
    async with client.stream("POST", path, json=body) as response:
        found = await events(response.aiter_lines())
    choices = [choice for chunk in found[:-1] for choice in chunk["choices"]]
    names = [name for choice in choices if choice["logprobs"] for name in choice["logprobs"]["tokens"]]
    ends = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    if "stop" in body:
        forget_hits(found[-2]["usage"])
    return "".join(choice["text"] for choice in choices), names, [*ends, found[-2]["usage"]]


async def test_an_error_behind_reaches_the_client(behind: Live) -> None:
    async with front(behind.url) as gateway, gateway.client() as near:
        refused = await near.post(TEXT, json=text_body(prompt_logprobs=1))
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "unsupported_parameter"


def request(name: str = "r") -> Request:
    params = SamplingParams(max_tokens=100, temperature=0.0)
    return Request(id=name, model=MODEL, continuation=Continuation(prompt=PROMPT, params=params, seed=0))


class Listener:
    """One request's news, and its end."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = asyncio.get_running_loop().create_future()

    def __call__(self, delta: TokenDelta) -> None:
        self.tokens += delta.tokens
        if delta.finish is not None and not self.ended.done():
            self.ended.set_result(delta)


async def test_an_abort_reaches_the_engine_behind() -> None:
    with live() as behind:
        behind.house.script.hold_after = 2
        async with front(behind.url) as gateway:
            behind.house.dispatch.holding.clear()
            flight = gateway.fleet.submit(request(), Listener())
            while not behind.house.dispatch.holding.is_set():
                await asyncio.sleep(0.005)
            aborted = behind.house.dispatch.streams[-1].aborted
            flight.abort()
            await asyncio.to_thread(behind.wait, aborted)
            assert gateway.fleet.idle
        behind.call(behind.house.script.go.set)


async def test_a_stream_goes_on_elsewhere_when_its_server_is_cut_off() -> None:
    with live() as behind:
        wire = Wire(behind.url)
        url = await wire.open()
        async with front(url) as gateway, foreign(ANSWER, base=len(PROMPT)) as other:
            behind.house.script.hold_after = 5
            news = Listener()
            gateway.fleet.submit(request(), news)
            async with asyncio.timeout(10):
                while len(news.tokens) < 5:
                    await asyncio.sleep(0.005)
            gateway.connector.nodes(frozenset({f"openai:{url}", f"openai:{other.url}"}))
            await gateway.until_ready(2)
            wire.cut()
            last = await asyncio.wait_for(news.ended, 10)
            behind.call(behind.house.script.go.set)
        assert news.tokens == ANSWER and last.finish is FinishReason.STOP
        assert other.bodies[0]["prompt"] == [*PROMPT, *ANSWER[:5]]


@pytest.mark.parametrize("fault", ["drop", "error", "malformed"])
async def test_a_broken_stream_goes_on_at_another_server(fault: str) -> None:
    async with (
        foreign(ANSWER, base=len(PROMPT), faults=deque([fault])) as one,
        foreign(ANSWER, base=len(PROMPT), faults=deque([fault])) as two,
        front(one.url, two.url) as gateway,
    ):
        news = Listener()
        gateway.fleet.submit(request(), news)
        last = await asyncio.wait_for(news.ended, 10)
        assert news.tokens == ANSWER and last.finish is FinishReason.STOP
        assert one.bodies and two.bodies


async def test_a_single_server_that_stumbles_finishes_the_stream_itself() -> None:
    async with (
        foreign(ANSWER, base=len(PROMPT), faults=deque(["503", "drop"])) as only,
        front(only.url) as gateway,
    ):
        news = Listener()
        gateway.fleet.submit(request(), news)
        await asyncio.wait_for(news.ended, 20)
        assert news.tokens == ANSWER and len(only.bodies) == 3


async def test_a_whole_text_comes_through_a_server_that_breaks() -> None:
    """Over HTTP at both ends: the first server breaks after three tokens, the client sees one answer."""
    prompt = TOKENIZER.encode("One two")
    async with (
        foreign(ANSWER, base=len(prompt), faults=deque(["drop"])) as only,
        front(only.url) as gateway,
        gateway.client() as near,
    ):
        answer = (await near.post(TEXT, json=text_body())).json()
    assert answer["choices"][0]["text"] == TEXTS[0] and answer["usage"]["completion_tokens"] == len(ANSWER)
