"""Faults by seed: which node, what, when, how long. The same seed always makes the same faults.

Never strikes the last healthy node: with nobody left alive there is no promise to check. Knows fates, not how nodes meet them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from inference_stack.simulator.ledger import Ledger
from inference_stack.simulator.loop import Loop
from inference_stack.simulator.node import Node
from inference_stack.simulator.workloads.reader import Reader

SLOWNESS: Final = 10.0
CROWDED: Final = 0.9
LOSS: Final = 0.5
LATE: Final = 1.0
"""Seconds by which a reordered report may be late."""

Fate = Callable[[Node], Callable[[], None]]
"""Strikes a node; the value undoes it."""


def _kill(node: Node) -> Callable[[], None]:
    node.kill()
    return lambda: None  # it is started again by itself


def _hang(node: Node) -> Callable[[], None]:
    node.hang()
    return node.wake


def _slow(node: Node) -> Callable[[], None]:
    node.slow(SLOWNESS)
    return lambda: node.slow(1.0)


def _cut(down: bool, up: bool) -> Fate:
    def strike(node: Node) -> Callable[[], None]:
        node.cut(down, up)
        return node.mend

    return strike


def _events(node: Node) -> Callable[[], None]:
    def set_to(loss: float, jitter: float) -> None:
        if node.reports is not None:
            node.reports.loss, node.reports.jitter = loss, jitter

    set_to(LOSS, LATE)
    return lambda: set_to(0.0, 0.0)


def _full(node: Node) -> Callable[[], None]:
    node.crowd(CROWDED)
    return lambda: node.crowd(0.0)


FATES: Final[Mapping[str, Fate]] = {
    "kill": _kill,
    "hang": _hang,
    "slow": _slow,
    "cut_up": _cut(down=False, up=True),
    "cut_both": _cut(down=True, up=True),
    "events": _events,
    "full": _full,
}
SILENCING: Final = frozenset(("kill", "hang", "cut_up", "cut_both"))
"""After these a node may be given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """How often, on average, something strikes, what it may be, and how long it lasts (uniform), in seconds."""

    every: float
    kinds: tuple[str, ...] = tuple(FATES)
    lasts: tuple[float, float] = (0.5, 10.0)
    seed: int = 0


def faults_from(plain: Any, origin: str = "faults") -> FaultPlan:
    """From YAML: `{every: 30, kinds: [kill, hang], lasts: [1, 10], seed: 1}`. Raises `InferenceError` naming what is wrong."""
    reader = Reader(plain, origin)
    every, seed = reader.number("every", above=0.0), reader.whole("seed", 0)
    lasts, kinds = reader.numbers("lasts") or [0.5, 10.0], reader.raw("kinds")
    kinds = list(FATES) if kinds is None else kinds
    if not isinstance(kinds, list) or not kinds or any(kind not in FATES for kind in kinds):
        raise reader.error("kinds", f"expected a list of {', '.join(FATES)}, not {kinds!r}")
    if len(lasts) != 2 or not 0 < lasts[0] <= lasts[1]:
        raise reader.error("lasts", f"expected [least, most] seconds above 0, not {lasts!r}")
    reader.close()
    return FaultPlan(every=every, kinds=tuple(kinds), lasts=(lasts[0], lasts[1]), seed=seed)


@dataclass
class Fury:
    """Strikes nodes while it is told to go on."""

    plan: FaultPlan
    loop: Loop
    nodes: Sequence[Node]
    ledger: Ledger
    struck: dict[int, str] = field(default_factory=dict)
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
        node = self._chance.choice(self.nodes)
        if self._may(node, kind):
            undo = FATES[kind](node)
            self.struck[node.number] = kind
            self.strikes += 1
            self.ledger.events.append((self.loop.now(), f"node {node.number}: {kind} for {lasts:.1f} s"))
            self.loop.after(lasts, lambda: self._undo(node, undo))
        self._await()

    def _may(self, node: Node, kind: str) -> bool:
        """One fault at a time on a node, and one node stays whole."""
        if node.number in self.struck or not node.alive or node.given_up:
            return False
        if kind not in SILENCING:
            return True
        well = [
            one for one in self.nodes if one.alive and not one.given_up and self.struck.get(one.number) not in SILENCING
        ]
        return len(well) > 1

    def _undo(self, node: Node, undo: Callable[[], None]) -> None:
        undo()
        del self.struck[node.number]
