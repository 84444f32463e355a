"""Those who ask, on virtual time: arrivals become requests, and every token of a stream is held against what it should say.

    arrival ─admit─▶ gateway ─tokens─▶ stream ─end─▶ outcome
                        │ dies           └─ none lost, none twice, none changed
    resume elsewhere ◀──┘  what the client has is told again, and suppressed

Knows the dispatcher's face, not its inside. What a gateway sends to nodes is checked too: all tokens so far, a new attempt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from inference_stack.core.errors import InferenceError
from inference_stack.core.request import Continuation, FinishReason, Qos, Request, SamplingParams
from inference_stack.core.step import TokenDelta
from inference_stack.dispatch.flight import ALONE_DEATHS, Flight
from inference_stack.kv.prefix import BlockHasher
from inference_stack.simulator.api import Arrival, Outcome
from inference_stack.simulator.instance import Times
from inference_stack.simulator.ledger import Ledger
from inference_stack.simulator.loop import Action, Loop
from inference_stack.simulator.tokens import answer_key, prompt_tokens, stream, token_at

if TYPE_CHECKING:
    from inference_stack.simulator.gateway import Gateway

RESUME_SECONDS = 0.5
"""How long a client waits before it comes back to another gateway, and between tries."""
GENERATION_BITS = 16
"""A resumed stream's attempts begin at its generation, shifted by this."""


class Broken(Exception):
    """A promise was broken: the message says which, of what, when."""


class Stream:
    """A completion in progress, as its client sees it.

    `seen` tokens reached the client; `heard` came from the gateway of this generation, which starts from none. `last` is when
    the latest token (or it) came, `sent` when it went to a node, as `attempt`; `deaths` are those of workers since its last token.
    """

    __slots__ = (
        "accounted",
        "arrival",
        "attempt",
        "clients",
        "deaths",
        "flight",
        "gateway",
        "generation",
        "heard",
        "key",
        "last",
        "names",
        "outcome",
        "prompt",
        "seen",
        "sent",
    )

    def __init__(
        self, clients: Clients, arrival: Arrival, outcome: Outcome, prompt: tuple[int, ...], names: list[bytes]
    ) -> None:
        self.clients = clients
        self.arrival = arrival
        self.outcome = outcome
        self.prompt = prompt
        self.names = names
        self.key = answer_key(arrival.seed)
        self.last = self.sent = outcome.arrived
        self.gateway: Gateway | None = None
        self.flight: Flight | None = None
        self.seen = self.heard = self.generation = self.deaths = 0
        self.attempt = -1
        self.accounted = False

    @property
    def id(self) -> str:
        """The request's id."""
        return str(self.arrival.number)

    def hear(self, delta: TokenDelta) -> None:
        """The dispatcher's sink. Raises `Broken` for a token that does not belong there."""
        if delta.cached_tokens is not None and not self.accounted:
            self.accounted = True
            self.clients.account(self, delta)
        if delta.tokens:
            self._verify(delta.tokens)
            self.heard += len(delta.tokens)
            self.deaths = 0
            if self.heard > self.seen:
                self._take(self.heard - self.seen)
        if delta.finish is not None:
            self.clients.ended(self, delta)

    def _verify(self, tokens: Sequence[int]) -> None:
        """The first and the last; those between came with them, and a gap would shift what follows."""
        first, vocab_size = len(self.prompt) + self.heard, self.clients.vocab_size
        last = len(tokens) - 1
        if tokens[0] != token_at(self.key, first, vocab_size) or (
            last and tokens[last] != token_at(self.key, first + last, vocab_size)
        ):
            raise Broken(f"request {self.id}: token {self.heard} of its answer is lost, repeated or wrong")

    def _take(self, count: int) -> None:
        """So many tokens are new to the client."""
        clients, outcome = self.clients, self.outcome
        at = clients.first_of(count)
        if outcome.first is None:
            outcome.first = at
        else:
            clients.ledger.gap(at - self.last)
            outcome.longest_gap = max(outcome.longest_gap, at - self.last)
        self.last = at
        self.seen += count
        clients.ledger.tokens += count
        if count > 1:
            clients.spread(self, count)


class Clients:
    """All clients of a fleet. `gateways` are those that they may ask."""

    def __init__(self, loop: Loop, ledger: Ledger, model: str, vocab_size: int, affinity: bool) -> None:
        self.streams: dict[str, Stream] = {}
        self.gateways: list[Gateway] = []
        self.ledger = ledger
        self.vocab_size = vocab_size
        self.at: float | None = None
        self._loop = loop
        self._model = model
        self._hasher = BlockHasher(model) if affinity else None
        self._times: Times | None = None
        self._between: Times = np.zeros(0)
        self._longest = 0.0
        self._whole = 0
        self._followers: dict[int, list[tuple[float, Action]]] = defaultdict(list)
        self._done: set[int] = set()

    # -- arrivals

    def expect(self, arrival: Arrival, came: Action = lambda: None) -> None:
        """It will arrive: at its time, or after the one that it follows. `came` is called when it has."""

        def arrive() -> None:
            self._arrive(arrival)
            came()

        if arrival.follows is None:
            self._loop.at(arrival.at, arrive)
        elif arrival.follows in self._done:
            self._loop.after(arrival.at, arrive)
        else:
            self._followers[arrival.follows].append((arrival.at, arrive))

    def _arrive(self, arrival: Arrival) -> None:
        outcome = Outcome(
            number=arrival.number,
            tenant=arrival.tenant,
            priority=arrival.priority,
            arrived=self._loop.now(),
            prompt_tokens=arrival.prompt_tokens,
            deadline=arrival.deadline,
            ttft_deadline=arrival.ttft_deadline,
        )
        self.ledger.outcomes.append(outcome)
        gateway = self._gateway(arrival.number)
        if gateway is None or self._refusal(gateway) is not None:
            outcome.finish = "refused"
            self._over(arrival)
            return
        prompt = prompt_tokens(arrival.prompt, self.vocab_size)
        names = self._hasher.chain(self._hasher.root(), prompt) if self._hasher else []
        created = self.streams[str(arrival.number)] = Stream(self, arrival, outcome, prompt, names)
        self._submit(created, gateway)

    def _gateway(self, number: int) -> Gateway | None:
        ready = [gateway for gateway in self.gateways if gateway.ready]
        return ready[number % len(ready)] if ready else None

    def _refusal(self, gateway: Gateway) -> InferenceError | None:
        try:
            gateway.dispatcher.admit(self._model, 1)
        except InferenceError as refused:
            return refused
        return None

    def _submit(self, mine: Stream, gateway: Gateway) -> None:
        mine.gateway = gateway
        mine.flight = gateway.dispatcher.submit(self._request(mine), mine.hear, mine.names)

    def _request(self, mine: Stream) -> Request:
        arrival, came = mine.arrival, mine.outcome.arrived
        return Request(
            id=mine.id,
            model=self._model,
            continuation=Continuation(
                prompt=mine.prompt,
                params=SamplingParams(max_tokens=arrival.output_tokens, temperature=0.0, ignore_eos=True),
                seed=arrival.seed,
            ),
            qos=Qos(
                tenant=arrival.tenant,
                priority=arrival.priority,
                weight=arrival.weight,
                ttft_deadline=None if arrival.ttft_deadline is None else came + arrival.ttft_deadline,
                deadline=None if arrival.deadline is None else came + arrival.deadline,
            ),
            attempt=mine.generation << GENERATION_BITS,
            arrival=came,
        )

    # -- a gateway is gone

    def disconnected(self, gateway: Gateway) -> None:
        """Its clients come back, to others."""
        for mine in self.streams.values():
            if mine.gateway is gateway:
                mine.gateway = mine.flight = None
                self._loop.after(RESUME_SECONDS, partial(self._resume, mine))

    def _resume(self, mine: Stream) -> None:
        gateway = self._gateway(mine.arrival.number)
        if gateway is None or self._refusal(gateway) is not None:
            self._loop.after(RESUME_SECONDS, partial(self._resume, mine))
            return
        mine.generation += 1
        mine.heard = mine.deaths = 0
        mine.outcome.moves += 1
        self._submit(mine, gateway)

    # -- what a gateway says and does

    def check_sent(self, request: Request, node: str) -> None:
        """A request goes to a node. Raises `Broken` unless it is a new attempt that knows every token so far."""
        mine = self.streams.get(request.id)
        if mine is None:
            raise Broken(f"request {request.id} is sent to node {node}, and has ended")
        if request.attempt <= mine.attempt:
            raise Broken(f"request {request.id} is sent to node {node} as attempt {request.attempt}, which is not new")
        emitted = request.continuation.emitted
        if emitted or mine.heard:
            known = stream(mine.arrival.seed, len(mine.prompt), mine.heard, self.vocab_size)
            if list(emitted) != known.tolist():
                raise Broken(f"request {request.id} goes on with {len(emitted)} tokens that are not its {mine.heard}")
        if mine.attempt >= 0 and request.attempt >> GENERATION_BITS == mine.attempt >> GENERATION_BITS:
            mine.outcome.moves += 1
        mine.attempt, mine.sent, mine.outcome.node = request.attempt, self._loop.now(), int(node)

    def count_deaths(self, request_ids: Sequence[str]) -> None:
        """They were on a worker that died."""
        for request_id in request_ids:
            if request_id in self.streams:
                self.streams[request_id].deaths += 1

    def account(self, mine: Stream, delta: TokenDelta) -> None:
        """It has begun to be computed."""
        cached = delta.cached_tokens or 0
        mine.outcome.cached_tokens = cached
        mine.outcome.queued = delta.queue_seconds or 0.0
        self.ledger.prompt_tokens += len(mine.prompt)
        self.ledger.service[mine.arrival.tenant] += (len(mine.prompt) - cached) / mine.arrival.weight

    def ended(self, mine: Stream, delta: TokenDelta) -> None:
        """A stream's last news. Raises `Broken` for an end that it must not come to."""
        outcome, arrival = mine.outcome, mine.arrival
        if self.streams.pop(mine.id, None) is None:
            raise Broken(f"request {mine.id} ended twice")
        if delta.finish is FinishReason.LENGTH and mine.heard != arrival.output_tokens:
            raise Broken(f"request {mine.id} ended after {mine.heard} of {arrival.output_tokens} tokens")
        code = "" if delta.error is None else delta.error.code or delta.error.type
        if code == "worker_crashed" and mine.deaths <= ALONE_DEATHS:
            raise Broken(f"request {mine.id} was given up after {mine.deaths} deaths")
        outcome.ended = self._loop.now() if self.at is None else self.at
        outcome.output_tokens = mine.seen
        outcome.finish, outcome.error = str(delta.finish), code
        self.ledger.service[arrival.tenant] += mine.seen / arrival.weight
        self._over(arrival)

    def _over(self, arrival: Arrival) -> None:
        self._done.add(arrival.number)
        for seconds, arrive in self._followers.pop(arrival.number, ()):
            self._loop.after(seconds, arrive)

    # -- when tokens come

    def begin_stretch(self, times: Times) -> None:
        """What is heard until `end_stretch` has a token at each of these times."""
        self._times, self._between = times, np.diff(times)
        self._longest, self._whole = float(self._between.max(initial=0.0)), 0

    def end_stretch(self) -> None:
        """The gaps of the streams that saw all of it are accounted for at once."""
        self.ledger.gaps(self._between, self._whole)
        self._times = None

    def first_of(self, count: int) -> float:
        """When the first of the latest `count` tokens came."""
        if self._times is not None:
            return float(self._times[-count])
        return self._loop.now() if self.at is None else self.at

    def spread(self, mine: Stream, count: int) -> None:
        """The latest `count` tokens of a stream came one after another."""
        if self._times is None:
            return
        mine.last = float(self._times[-1])
        if count == len(self._times):
            self._whole += 1
            mine.outcome.longest_gap = max(mine.outcome.longest_gap, self._longest)
        else:
            between = self._between[1 - count :]
            self.ledger.gaps(between, 1)
            mine.outcome.longest_gap = max(mine.outcome.longest_gap, float(between.max(initial=0.0)))
