"""What must hold whatever happens: checked while a fleet runs, and when it has come to rest.

always   integrity of every pool and scheduler; tokens in order, none lost, twice or changed (the gateway sees to it)
at rest  every arrival has an outcome; nothing is held: no block, slot or slab in use or fenced
no starvation: a request whose node is well gets on, or ends, within a bound
"""

from __future__ import annotations

from collections.abc import Sequence

from inference_stack.simulator.gateway import Broken, Gateway
from inference_stack.simulator.ledger import Ledger
from inference_stack.simulator.node import Node

ENDS = frozenset(("length", "stop", "error", "refused"))


def check_nodes(nodes: Sequence[Node]) -> None:
    """Integrity of every living node's bookkeeping. Raises `Broken`."""
    for node in nodes:
        if node.alive and not node.hung:
            node.instance.settle()
            try:
                node.instance.scheduler.check()
            except RuntimeError as error:
                raise Broken(f"node {node.number}: {error}") from error


def check_progress(gateway: Gateway, nodes: Sequence[Node], now: float, patience: float) -> None:
    """Nobody waits longer than `patience` seconds on a node that is well. Raises `Broken`."""
    for stream in gateway.streams.values():
        node = nodes[stream.node] if stream.node >= 0 else None
        if node is None or not node.alive or node.hung or node.given_up or node.silent:
            continue
        if now - max(stream.last, stream.sent) > patience:
            raise Broken(
                f"request {stream.id} has waited {now - stream.last:.1f} s on node {node.number}, which is well"
            )


def check_rest(gateway: Gateway, nodes: Sequence[Node], ledger: Ledger) -> None:
    """The fleet has come to rest. Raises `Broken`."""
    if gateway.streams:
        raise Broken(f"request {next(iter(gateway.streams))} never ended")
    for outcome in ledger.outcomes:
        if outcome.finish not in ENDS:
            raise Broken(f"request {outcome.number} has no outcome")
    for node in nodes:
        if not node.alive:
            continue
        usage, stats = node.instance.scheduler.kv.usage(), node.instance.stats()
        if usage.used or usage.fenced or stats.running or stats.waiting:
            raise Broken(f"node {node.number} rests, but holds {usage.used} blocks, {stats.running} running requests")
    check_nodes(nodes)
