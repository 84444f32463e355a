"""The gateway's part on virtual time: arrivals in, a node for each, streams verified and carried over when nodes fail.

    arrival ─admit, route▶ node ─deltas▶ stream ─end▶ outcome
                 ▲                         │ its node is lost
                 └────── prompt + emitted ─┘ as the next attempt

Every token that arrives is compared with what the stream should say there: none lost, none twice, none changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from inference_stack.core.request import Continuation, FinishReason, Qos, Request, SamplingParams
from inference_stack.core.step import IntArray, TokenDelta
from inference_stack.kv.prefix import BlockHasher
from inference_stack.policy.admission import DrainRate, admit
from inference_stack.policy.routing import Router
from inference_stack.simulator.api import Arrival, Outcome
from inference_stack.simulator.instance import Times
from inference_stack.simulator.ledger import Ledger
from inference_stack.simulator.loop import Action, Loop
from inference_stack.simulator.tokens import answer_key, prompt_tokens, stream, token_at


class Broken(Exception):
    """A promise was broken: the message says which, of what, when."""


@dataclass(slots=True)
class Stream:
    """A completion in progress, as the gateway knows it. `last` is when its latest token (or it) came, `sent` when it
    went to its node; `uncached` is what the router was told of its prompt and has not been told to forget, -1 when it has."""

    arrival: Arrival
    outcome: Outcome
    prompt: tuple[int, ...]
    names: list[bytes]
    last: float
    key: int
    emitted: int = 0
    attempt: int = 0
    node: int = -1
    sent: float = 0.0
    uncached: int = -1

    @property
    def id(self) -> str:
        """The request's id."""
        return str(self.arrival.number)


class Gateway:
    """All gateways as one. `send(node, request)` reaches nodes."""

    def __init__(
        self,
        loop: Loop,
        router: Router,
        hasher: BlockHasher,
        ledger: Ledger,
        model: str,
        vocab_size: int,
        places: int,
        max_queue: int,
        send: Callable[[int, Request], None],
    ) -> None:
        self.streams: dict[str, Stream] = {}
        self._loop = loop
        self._router = router
        self._hasher = hasher
        self._ledger = ledger
        self._model = model
        self._vocab_size = vocab_size
        self._places = places
        self._max_queue = max_queue
        self._send = send
        self._drain = DrainRate()
        self._homeless: dict[str, Stream] = {}
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
        now = self._loop.now()
        outcome = Outcome(
            number=arrival.number,
            tenant=arrival.tenant,
            priority=arrival.priority,
            arrived=now,
            prompt_tokens=arrival.prompt_tokens,
            deadline=arrival.deadline,
            ttft_deadline=arrival.ttft_deadline,
        )
        self._ledger.outcomes.append(outcome)
        decision = admit(len(self.streams), self._places, self._max_queue, self._drain.per_second(now))
        if not decision.admitted:
            outcome.finish = "refused"
            self._over(arrival)
            return
        prompt = prompt_tokens(arrival.prompt, self._vocab_size)
        names = self._hasher.chain(self._hasher.root(), prompt)
        self.streams[str(arrival.number)] = created = Stream(
            arrival, outcome, prompt, names, now, answer_key(arrival.seed)
        )
        self._route(created)

    def _route(self, mine: Stream) -> None:
        known = len(mine.prompt) + mine.emitted
        choice = self._router.choose(known, mine.names)
        if choice is None:
            self._homeless[mine.id] = mine
            return
        mine.node = mine.outcome.node = choice.node
        mine.sent = self._loop.now()
        mine.uncached = known - choice.cached_tokens
        self._router.sent(choice.node, len(mine.prompt), mine.uncached)
        self._router.prefixes.sent(mine.names, choice.node)
        self._send(choice.node, self._request(mine))

    def _request(self, mine: Stream) -> Request:
        arrival, came = mine.arrival, mine.outcome.arrived
        emitted = (
            stream(arrival.seed, len(mine.prompt), mine.emitted, self._vocab_size).tolist() if mine.emitted else ()
        )
        return Request(
            id=mine.id,
            model=self._model,
            continuation=Continuation(
                prompt=mine.prompt,
                params=SamplingParams(max_tokens=arrival.output_tokens, temperature=0.0, ignore_eos=True),
                seed=arrival.seed,
                emitted=tuple(emitted),
            ),
            qos=Qos(
                tenant=arrival.tenant,
                priority=arrival.priority,
                weight=arrival.weight,
                ttft_deadline=None if arrival.ttft_deadline is None else came + arrival.ttft_deadline,
                deadline=None if arrival.deadline is None else came + arrival.deadline,
            ),
            attempt=mine.attempt,
            arrival=came,
        )

    # -- news of nodes

    def deltas(self, node: int, deltas: Sequence[TokenDelta], at: float) -> None:
        """What a node's step came to, arriving at a time."""
        for delta in deltas:
            mine = self.streams.get(delta.request_id)
            if mine is None or delta.attempt != mine.attempt or mine.node != node:
                continue
            if delta.cached_tokens is not None and mine.attempt == 0:
                self._account(mine, delta)
            if delta.tokens:
                self._verify(mine, delta.tokens)
                self._token(mine, at, len(delta.tokens))
            if delta.finish is not None:
                self._finish(mine, delta, at)

    def leapt(self, node: int, ids: list[str], tokens_RK: IntArray, times: Times) -> None:
        """One token for each of these requests at each of these times."""
        steps, between = len(times), np.diff(times)
        self._ledger.gaps(between, len(ids))
        longest = float(between.max(initial=0.0))
        for row, request_id in enumerate(ids):
            mine = self.streams.get(request_id)
            if mine is None or mine.node != node:
                raise Broken(f"request {request_id} computes on node {node} in a quiet stretch, which nobody asked for")
            self._verify(mine, (int(tokens_RK[row, 0]),))  # the others are the same stream's next ones
            self._token(mine, float(times[0]), 1)
            mine.emitted += steps - 1
            mine.last = float(times[-1])
            mine.outcome.longest_gap = max(mine.outcome.longest_gap, longest)
            self._ledger.tokens += steps - 1

    def lost(self, node: int) -> None:
        """A node is gone: its streams go on elsewhere, most important first."""
        self._router.lost(node)
        orphans = [mine for mine in self.streams.values() if mine.node == node]
        for mine in sorted(orphans, key=lambda mine: (-mine.arrival.priority, mine.outcome.arrived)):
            mine.attempt += 1
            mine.uncached = -1
            mine.node = -1
            mine.outcome.moves += 1
            self._route(mine)

    def back(self, node: int) -> None:
        """A node may be used again."""
        self._router.back(node)
        homeless, self._homeless = self._homeless, {}
        for mine in homeless.values():
            self._route(mine)

    # -- inside

    def _account(self, mine: Stream, delta: TokenDelta) -> None:
        cached = delta.cached_tokens or 0
        mine.outcome.cached_tokens = cached
        mine.outcome.queued = delta.queue_seconds or 0.0
        self._ledger.prompt_tokens += len(mine.prompt)
        self._ledger.service[mine.arrival.tenant] += (len(mine.prompt) - cached) / mine.arrival.weight

    def _verify(self, mine: Stream, tokens: Sequence[int]) -> None:
        first = len(mine.prompt) + mine.emitted
        for place, token in enumerate(tokens, first):
            if token != token_at(mine.key, place, self._vocab_size):
                raise Broken(
                    f"request {mine.id}: token {place - len(mine.prompt)} of its answer is lost, repeated or wrong"
                )

    def _token(self, mine: Stream, at: float, count: int) -> None:
        outcome = mine.outcome
        if outcome.first is None:
            outcome.first = at
        else:
            self._ledger.gap(at - mine.last)
            outcome.longest_gap = max(outcome.longest_gap, at - mine.last)
        self._began(mine)
        mine.last = at
        mine.emitted += count
        self._ledger.tokens += count

    def _began(self, mine: Stream) -> None:
        """Its prompt is no longer ahead of anybody's; the router is told once."""
        if mine.uncached >= 0:
            self._router.began(mine.node, mine.uncached)
            mine.uncached = -1

    def _finish(self, mine: Stream, delta: TokenDelta, at: float) -> None:
        outcome = mine.outcome
        if delta.finish is FinishReason.LENGTH and mine.emitted != mine.arrival.output_tokens:
            raise Broken(f"request {mine.id} ended after {mine.emitted} of {mine.arrival.output_tokens} tokens")
        outcome.ended, outcome.output_tokens = at, mine.emitted
        outcome.finish = str(delta.finish)
        outcome.error = "" if delta.error is None else delta.error.code or delta.error.type
        self._began(mine)
        self._router.ended(mine.node, len(mine.prompt), mine.emitted)
        self._ledger.service[mine.arrival.tenant] += mine.emitted / mine.arrival.weight
        self._drain.finished(self._loop.now())
        del self.streams[mine.id]
        self._over(mine.arrival)

    def _over(self, arrival: Arrival) -> None:
        self._done.add(arrival.number)
        for seconds, arrive in self._followers.pop(arrival.number, ()):
            self._loop.after(seconds, arrive)
