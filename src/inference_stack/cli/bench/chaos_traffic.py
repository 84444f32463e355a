"""Clients that never stop asking while a fleet breaks, and check every answer against its undisturbed twin.

resuming: our client, which knows all gateways and comes back for what is missing
stock:    plain httpx on one gateway, which knows nothing of resuming; it fails with its gateway, and must not fail otherwise
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx

from inference_stack.cli.bench.chaos_requests import Case, Transcript, stopped
from inference_stack.cli.bench.chaos_spec import Record
from inference_stack.cli.sse import EventParser
from inference_stack.core.errors import ErrorInfo, InferenceError
from inference_stack.core.seams import Clock

if TYPE_CHECKING:
    from inference_stack_client import AsyncClient

IDLE_SECONDS = 2.0
"""A gateway that does not even send comments for this long is left for another."""
PATIENCE_SECONDS = 60.0
RETRIES = 8
CHECKERS = 6
NO_CLIENT = "the resuming client is not installed: pip install inference-stack-client (its source is in sdk/python)"

Answer = tuple[Case, Transcript]


class Failed(Exception):
    """A stock client's request ended without its answer."""


def _no_limits() -> httpx.Limits:
    return httpx.Limits(max_connections=None, max_keepalive_connections=0)


class StockClient:
    """Sends a request to one gateway, once."""

    def __init__(self) -> None:
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(PATIENCE_SECONDS, connect=5.0), limits=_no_limits(), trust_env=False
        )

    async def parts(self, url: str, case: Case) -> AsyncIterator[Mapping[str, Any]]:
        """The answer's chunks, or all of it at once. Raises `Failed` and `httpx.HTTPError`."""
        async with self._http.stream("POST", f"{url}/v1{case.path}", json=case.body) as response:
            if response.status_code != 200:
                raise Failed(f"{response.status_code}: {(await response.aread()).decode()[:200]}")
            if not case.streamed:
                yield json.loads(await response.aread())
                return
            parser = EventParser()
            async for received in response.aiter_bytes():
                for data in parser.feed(received):
                    if data == b"[DONE]":
                        return
                    event = json.loads(data)
                    if "error" in event:
                        raise Failed(str(event["error"]))
                    yield event
        raise Failed("the stream ended before its end mark")

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


class ResumingClient:
    """Our client; `on_request` is told of every HTTP request that it sends: the name given to it, the URL, whether it resumes."""

    def __init__(self, urls: list[str], on_request: Callable[[str, str, bool], None]) -> None:
        try:
            from inference_stack_client import AsyncClient, ClientError
        except ImportError as missing:
            raise InferenceError(ErrorInfo(message=NO_CLIENT, code="missing_package", status=500)) from missing

        self.problem: type[Exception] = ClientError

        async def sent(request: httpx.Request) -> None:
            on_request(request.headers["x-request-id"], str(request.url), "last-event-id" in request.headers)

        self._http = httpx.AsyncClient(limits=_no_limits(), trust_env=False, event_hooks={"request": [sent]})
        rotated = [urls[place:] + urls[:place] for place in range(len(urls))]
        self._clients: list[AsyncClient] = [
            AsyncClient(
                some, timeout=PATIENCE_SECONDS, idle_seconds=IDLE_SECONDS, max_retries=RETRIES, http_client=self._http
            )
            for some in rotated
        ]

    async def parts(self, first: int, case: Case, name: str) -> AsyncIterator[Mapping[str, Any]]:
        """The answer's chunks, or all of it at once; gateway number `first` is asked first. Raises `ClientError`."""
        client = self._clients[first % len(self._clients)]
        resource = client.chat.completions if case.path.startswith("/chat") else client.completions
        answer = await resource.create(**case.body, extra_headers={"x-request-id": name})
        if not case.streamed:
            yield answer
            return
        async for part in answer:
            yield part

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


async def undisturbed(url: str, cases: list[Case]) -> list[Answer]:
    """Every request with its answer. A `stop` request gets its stop string from its own answer. Raises `InferenceError`."""
    stock, answers = StockClient(), dict[int, Answer]()
    waiting = iter(enumerate(cases))

    async def ask(case: Case) -> Transcript:
        answer = Transcript()
        async for part in stock.parts(url, case):
            answer.take(part)
        return answer

    async def checker() -> None:
        for number, case in waiting:
            answer = await ask(case)
            if case.kind == "stop":
                case = stopped(case, answer)
                answer = await ask(case)
            answers[number] = case, answer

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CHECKERS):
                group.create_task(checker())
    except* (Failed, httpx.HTTPError) as problems:
        why = str(problems.exceptions[0])
        raise InferenceError(ErrorInfo(message=f"an undisturbed request failed: {why}", status=500)) from problems
    finally:
        await stock.close()
    return [answers[number] for number in range(len(cases))]


class Traffic:
    """`streams` requests in flight at any time, of which `resuming` by resuming clients. `urls` are gateways by name; `serves` says
    whether a gateway is up, so that stock clients do not knock at closed doors."""

    def __init__(
        self,
        answers: list[Answer],
        urls: dict[str, str],
        serves: Callable[[str], bool],
        clock: Clock,
        dice: random.Random,
    ) -> None:
        self.records: list[Record] = []
        self.active: dict[int, Record] = {}
        self._answers = answers
        self._urls = urls
        self._names = list(urls)
        self._serves = serves
        self._clock = clock
        self._dice = dice
        self._stock = StockClient()
        self._resuming = ResumingClient(list(urls.values()), self._on_request)
        self._stopping = asyncio.Event()

    async def run(self, streams: int, resuming: int) -> None:
        """Keep asking until `stop`; requests in flight then are awaited."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(streams):
                    group.create_task(self._client(number, resumes=number < resuming))
        finally:
            await self._stock.close()
            await self._resuming.close()

    def stop(self) -> None:
        """Ask nothing new."""
        self._stopping.set()

    async def _client(self, number: int, resumes: bool) -> None:
        gateway = self._names[number % len(self._names)]
        while not self._stopping.is_set():
            if not resumes and not self._serves(gateway):
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), 0.2)
                continue
            await self._one(gateway, resumes)

    async def _one(self, gateway: str, resumes: bool) -> None:
        case, twin = self._dice.choice(self._answers)
        now = self._clock.now()
        record = Record(number=len(self.records), case=case, resuming=resumes, gateway=gateway, begin=now, times=[now])
        self.records.append(record)
        self.active[record.number] = record
        try:
            answer = await self._read(record)
            record.wrong = answer.difference(twin)
        except (Failed, httpx.HTTPError, self._resuming.problem) as problem:
            record.error = f"{type(problem).__name__}: {problem}"
        record.end = self._clock.now()
        del self.active[record.number]
        if record.error:  # do not knock as fast as doors are slammed
            await asyncio.sleep(0.2)

    async def _read(self, record: Record) -> Transcript:
        answer = Transcript()
        if record.resuming:
            parts = self._resuming.parts(self._names.index(record.gateway), record.case, f"chaos-{record.number}")
        else:
            parts = self._stock.parts(self._urls[record.gateway], record.case)
        async for part in parts:
            record.times.append(self._clock.now())
            answer.take(part)
            record.id = answer.id
        return answer

    def _on_request(self, name: str, url: str, resumes: bool) -> None:
        record = self.records[int(name.removeprefix("chaos-"))]
        record.gateway = next(gateway for gateway, base in self._urls.items() if url.startswith(f"{base}/"))
        record.sent += 1
        record.resumes += resumes
