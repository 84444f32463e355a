"""Which node a flight is sent to: hard filters first, then the predicted wait; and the bookkeeping that both need.

Knows nodes and routers. What a dispatcher does about a flight that finds no place is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from inference_stack.core.fleet import ModelInfo
from inference_stack.core.stats import InstanceStats
from inference_stack.dispatch.flight import Flight
from inference_stack.dispatch.node import Node, Nodes
from inference_stack.policy.routing import Router

CHUNK_TOKENS = 512
"""Prompt tokens that a step is taken to compute, where nothing else is known."""

Mask = npt.NDArray[np.bool_]


class Placement:
    """One router per model over all nodes. `recovery_tokens` bounds what a node is asked to recompute at once."""

    def __init__(
        self, nodes: Nodes, recovery_tokens: int, fail_on_mismatch: bool, chunk_tokens: int = CHUNK_TOKENS
    ) -> None:
        self._nodes = nodes
        self._recovery_tokens = recovery_tokens
        self._fail_on_mismatch = fail_on_mismatch
        self._chunk = chunk_tokens
        self._routers: dict[str, Router] = {}
        self._kinds: dict[str, set[str]] = {}
        self._special: set[Node] = set()
        self.places = 0

    # -- nodes

    def added(self, node: Node) -> None:
        """There is one node more. Its number may have been another's."""
        for router in self._routers.values():
            if node.number == len(router.usable):
                router.add()
            else:
                router.reset(node.number)

    def forget(self, node: Node) -> None:
        """It does not come back; nothing runs there."""
        node.reserved = None
        self._special.discard(node)

    def changed(self, node: Node) -> None:
        """A node's condition changed."""
        for model in node.models:
            if model not in self._routers:
                router = self._routers[model] = Router(self._nodes.numbers, self._chunk)
                router.usable[:] = False
        for model, router in self._routers.items():
            info = node.serves(model)
            if info is not None and not router.usable[node.number]:
                router.expect(node.number, info.step_time, info.max_running)
                router.back(node.number)
            elif info is None and router.usable[node.number]:
                router.close(node.number, forget=not node.draining)
        served = [info for one in self._nodes if one.usable for info in one.models.values()]
        self.places = sum(info.max_running for info in served)
        self._kinds = {model: {info.numerics_id for info in served if info.name == model} for model in self._routers}

    def models(self, known: dict[str, ModelInfo]) -> dict[str, ModelInfo]:
        """What is served, by name: known ones are remembered while they are not. Of nodes that serve one differently, the
        shortest context holds for all."""
        found: dict[str, ModelInfo] = {}
        for node in self._nodes:
            for name, info in node.models.items() if node.usable else ():
                if name not in found or info.max_model_len < found[name].max_model_len:
                    found[name] = info
        return known | found

    def observe(self, node: Node, numbers: InstanceStats) -> None:
        """An instance reports its speed and load."""
        router, info = self._routers.get(numbers.model), node.models.get(numbers.model)
        if router is not None and info is not None:
            router.observe(node.number, numbers, info.max_running)

    # -- flights

    def node_for(self, flight: Flight) -> Node | None:
        """The best node that may take it now. `flight.uncached` is then what it would have to compute there."""
        router = self._routers.get(flight.request.model)
        if router is None:
            return None
        among = self._among(flight, router)
        if among is not None and not among.any():
            return None
        flight.uncached = flight.known_tokens
        held = self._nodes.hinted(flight.holder)
        if held is not None and router.usable[held.number] and (among is None or among[held.number]):
            return held
        choice = router.choose(flight.known_tokens, flight.names, among)
        if choice is None:
            return None
        flight.uncached -= choice.cached_tokens
        return self._nodes.numbered(choice.node)

    def reserve(self, node: Node, flight: Flight) -> None:
        """Nothing but this flight is sent there until `free`."""
        node.reserved = flight
        self._special.add(node)

    def free(self, flight: Flight) -> None:
        """No node is kept for it any more."""
        for node in [node for node in self._special if node.reserved is flight]:
            node.reserved = None
            self._review(node)

    def impossible(self, flight: Flight) -> bool:
        """Whether it must fail: its model is served in reach, but nothing computes as its first node did, and it may not go on
        otherwise."""
        if not self._fail_on_mismatch or not flight.picky:
            return False
        model = flight.request.model
        reachable = [info for node in self._nodes if node.linked and (info := node.models.get(model))]
        return bool(reachable) and all(info.numerics_id != flight.numerics for info in reachable)

    def depart(self, flight: Flight, node: Node) -> bool:
        """It is sent there. Whether what it emitted so far was computed differently."""
        flight.node, flight.holder = node, b""
        router = self._routers[flight.request.model]
        router.sent(node.number, len(flight.request.continuation.prompt), flight.uncached)
        router.prefixes.sent(flight.names, node.number)
        if flight.recovering:
            flight.recompute = flight.known_tokens
            node.recovering += flight.recompute
            self._special.add(node)
        numerics = node.models[flight.request.model].numerics_id
        differs = flight.picky and numerics != flight.numerics
        flight.numerics = numerics
        return differs

    def began(self, flight: Flight, node: Node) -> None:
        """Its prompt is no longer ahead of anybody's."""
        self._routers[flight.request.model].began(node.number, flight.uncached)
        flight.uncached = -1
        self._recovered(flight, node)

    def ended(self, flight: Flight, node: Node) -> None:
        """It has left its node; `began` was told before."""
        prompt = len(flight.request.continuation.prompt)
        self._routers[flight.request.model].ended(node.number, prompt, len(flight.emitted))

    def withdrawn(self, flight: Flight, node: Node) -> None:
        """It left its node before its end."""
        prompt = len(flight.request.continuation.prompt)
        self._routers[flight.request.model].withdrawn(node.number, prompt, max(flight.uncached, 0))
        flight.uncached = -1
        self._recovered(flight, node)

    def check(self) -> None:
        """Raise `RuntimeError` unless what is believed of every node is what runs there."""
        for node in self._nodes:
            flights = list(node.running.values())
            recovering = sum(flight.recompute for flight in flights if flight.recovering)
            if node.recovering != recovering:
                raise RuntimeError(f"node {node.key} is to recompute {recovering} tokens, not {node.recovering}")
            if node.reserved is not None and node.reserved.done:
                raise RuntimeError(f"node {node.key} is kept for {node.reserved.id}, which has ended")
            for model, router in self._routers.items():
                mine = [flight for flight in flights if flight.request.model == model]
                uncached = sum(max(flight.uncached, 0) for flight in mine)
                context = sum(len(flight.request.continuation.prompt) for flight in mine)
                if router.ahead(node.number) != (len(mine), uncached, context):
                    raise RuntimeError(f"node {node.key} is taken to have {router.ahead(node.number)} of {model} ahead")

    # -- inside

    def _recovered(self, flight: Flight, node: Node) -> None:
        if flight.recovering:
            flight.recovering = False
            node.recovering -= flight.recompute
            self._review(node)

    def _review(self, node: Node) -> None:
        if node.reserved is None and not node.recovering:
            self._special.discard(node)

    def _among(self, flight: Flight, router: Router) -> Mask | None:
        """The nodes that it may be sent to, of those that can be used; None is all of them."""
        mine = [node.number for node in self._special if node.reserved is flight and router.usable[node.number]]
        if mine:
            return self._mask(mine)
        among: Mask | None = None
        if flight.picky and self._kinds[flight.request.model] != {flight.numerics}:
            alike = router.usable & self._mask(self._alike(flight))
            if alike.any():
                among = alike
            elif self._fail_on_mismatch:
                return alike
        full = [node.number for node in self._special if self._refuses(node, flight)]
        if full:
            among = router.usable.copy() if among is None else among
            among[full] = False
        return among

    def _refuses(self, node: Node, flight: Flight) -> bool:
        if node.reserved is not None and node.reserved is not flight:
            return True
        return flight.recovering and 0 < node.recovering > self._recovery_tokens - flight.known_tokens

    def _alike(self, flight: Flight) -> list[int]:
        model = flight.request.model
        return [
            node.number
            for node in self._nodes
            if (info := node.models.get(model)) and info.numerics_id == flight.numerics
        ]

    def _mask(self, numbers: Iterable[int]) -> Mask:
        mask = np.zeros(self._nodes.numbers, bool)
        mask[list(numbers)] = True
        return mask
