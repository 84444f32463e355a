"""Faults by seed: which node, what, when, how long. The same seed always makes the same faults.

Never strikes the last healthy node or gateway: with nobody left alive there is no promise to check. Knows fates, not how they are
met.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from inference_stack.simulator.gateway import Gateway
from inference_stack.simulator.ledger import Ledger
from inference_stack.simulator.loop import Action, Loop
from inference_stack.simulator.node import Node
from inference_stack.simulator.workloads.reader import Reader

SLOWNESS: Final = 10.0
CROWDED: Final = 0.9
LOSS: Final = 0.5
LATE: Final = 1.0
"""Seconds by which a reordered report may be late."""

Fate = Callable[[Node], Action]
"""Strikes a node; the value undoes it."""


def _kill(node: Node) -> Action:
    node.kill()
    return lambda: None  # the node starts another worker by itself


def _crash(node: Node) -> Action:
    node.crash()
    return lambda: None  # it is started again by itself


def _drain(node: Node) -> Action:
    node.drain()
    return node.leave


def _hang(node: Node) -> Action:
    node.hang()
    return node.wake


def _slow(node: Node) -> Action:
    node.slow(SLOWNESS)
    return lambda: node.slow(1.0)


def _cut(down: bool, up: bool) -> Fate:
    def strike(node: Node) -> Action:
        node.cut(down, up)
        return node.mend

    return strike


def _events(node: Node) -> Action:
    def set_to(loss: float, jitter: float) -> None:
        for line in node.lines:
            line.reports.loss, line.reports.jitter = loss, jitter

    set_to(LOSS, LATE)
    return lambda: set_to(0.0, 0.0)


def _full(node: Node) -> Action:
    node.crowd(CROWDED)
    return lambda: node.crowd(0.0)


FATES: Final[Mapping[str, Fate]] = {
    "kill": _kill,
    "crash": _crash,
    "drain": _drain,
    "hang": _hang,
    "slow": _slow,
    "cut_up": _cut(down=False, up=True),
    "cut_down": _cut(down=True, up=False),
    "cut_both": _cut(down=True, up=True),
    "events": _events,
    "full": _full,
}
GATEWAY: Final = "gateway"
"""The fate of gateways, where there are several: the process dies, and is started again."""
SILENCING: Final = frozenset(("kill", "crash", "drain", "hang", "cut_up", "cut_down", "cut_both"))
"""Under these a node may be of no use for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """How often, on average, something strikes, what it may be, and how long it lasts (uniform), in seconds."""

    every: float
    kinds: tuple[str, ...] = (*FATES, GATEWAY)
    lasts: tuple[float, float] = (0.5, 10.0)
    seed: int = 0


def faults_from(plain: Any, origin: str = "faults") -> FaultPlan:
    """From YAML: `{every: 30, kinds: [kill, hang], lasts: [1, 10], seed: 1}`. Raises `InferenceError` naming what is wrong."""
    reader = Reader(plain, origin)
    every, seed = reader.number("every", above=0.0), reader.whole("seed", 0)
    lasts, kinds = reader.numbers("lasts") or [0.5, 10.0], reader.raw("kinds")
    known = [*FATES, GATEWAY]
    kinds = known if kinds is None else kinds
    if not isinstance(kinds, list) or not kinds or any(kind not in known for kind in kinds):
        raise reader.error("kinds", f"expected a list of {', '.join(known)}, not {kinds!r}")
    if len(lasts) != 2 or not 0 < lasts[0] <= lasts[1]:
        raise reader.error("lasts", f"expected [least, most] seconds above 0, not {lasts!r}")
    reader.close()
    return FaultPlan(every=every, kinds=tuple(kinds), lasts=(lasts[0], lasts[1]), seed=seed)


@dataclass
class Fury:
    """Strikes nodes and gateways while it is told to go on. `struck` are those that suffer now, by name."""

    plan: FaultPlan
    loop: Loop
    nodes: Sequence[Node]
    gateways: Sequence[Gateway]
    ledger: Ledger
    struck: dict[str, str] = field(default_factory=dict)
    strikes: int = 0
    over: bool = False

    def __post_init__(self) -> None:
        self._chance = random.Random(self.plan.seed)
        self._await()

    def _await(self) -> None:
        self.loop.after(self._chance.expovariate(1.0 / self.plan.every), self._strike)

    def _strike(self) -> None:
        if self.over:
            return
        kind, lasts = self._chance.choice(self.plan.kinds), self._chance.uniform(*self.plan.lasts)
        if kind == GATEWAY:
            gateway = self._chance.choice(self.gateways)
            if gateway.ready and sum(one.ready for one in self.gateways) > 1:
                gateway.die()
                self._struck(gateway.name, kind, lasts, gateway.restart)
        else:
            node = self._chance.choice(self.nodes)
            if self._may(node, kind):
                self._struck(_name(node), kind, lasts, FATES[kind](node))
        self._await()

    def _struck(self, name: str, kind: str, lasts: float, undo: Action) -> None:
        self.struck[name] = kind
        self.strikes += 1
        self.ledger.event(self.loop.now(), f"{name}: {kind} for {lasts:.1f} s")
        self.loop.after(lasts, lambda: self._undo(name, undo))

    def _may(self, node: Node, kind: str) -> bool:
        """One fault at a time on a node, and one node stays whole."""
        if _name(node) in self.struck or not node.sound:
            return False
        if kind not in SILENCING:
            return True
        return sum(one.sound and self.struck.get(_name(one)) not in SILENCING for one in self.nodes) > 1

    def _undo(self, name: str, undo: Action) -> None:
        undo()
        del self.struck[name]


def _name(node: Node) -> str:
    return f"node {node.number}"
