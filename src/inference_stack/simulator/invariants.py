"""What must hold whatever happens: checked while a fleet runs, and when it has come to rest.

always   integrity of every pool, scheduler and dispatcher; tokens in order, none lost, twice or changed (`clients` sees to it)
at rest  every arrival has an outcome; nothing is held: no block, slot or slab in use or fenced
no starvation: a request whose node is well gets on, or ends, within a bound
"""

from __future__ import annotations

from collections.abc import Sequence

from inference_stack.dispatch.flight import Flight
from inference_stack.simulator.clients import Broken, Clients
from inference_stack.simulator.gateway import Gateway
from inference_stack.simulator.ledger import Ledger
from inference_stack.simulator.node import Node

ENDS = frozenset(("length", "stop", "error", "refused"))


def check_nodes(nodes: Sequence[Node]) -> None:
    """Integrity of every living node's bookkeeping. Raises `Broken`."""
    for node in nodes:
        if node.working and not node.hung:
            node.instance.settle()
            try:
                node.instance.scheduler.check()
            except RuntimeError as error:
                raise Broken(f"node {node.number}: {error}") from error


def check_gateways(gateways: Sequence[Gateway]) -> None:
    """Integrity of every gateway's bookkeeping. Raises `Broken`."""
    for gateway in gateways:
        try:
            gateway.dispatcher.check()
        except RuntimeError as error:
            raise Broken(f"{gateway.name}: {error}") from error


def check_progress(clients: Clients, nodes: Sequence[Node], now: float, patience: float) -> None:
    """Nobody waits longer than `patience` seconds on a node that is well, or for a node while one is. Raises `Broken`."""
    any_sound = any(node.sound for node in nodes)
    for stream in clients.streams.values():
        flight = stream.flight
        if flight is None or now - max(stream.last, stream.sent, flight.since) <= patience:
            continue
        node = _where(flight, nodes)
        if any_sound if node is None else node.sound:
            where = "at its gateway, while a node is well" if node is None else f"on node {node.number}, which is well"
            raise Broken(f"request {stream.id} has waited {now - stream.last:.1f} s {where}")


def _where(flight: Flight, nodes: Sequence[Node]) -> Node | None:
    """The node that it was sent to and not taken back from."""
    if flight.node is None or flight.node.running.get(flight.id) is not flight:
        return None
    return nodes[int(flight.node.key)]


def check_rest(clients: Clients, nodes: Sequence[Node], ledger: Ledger) -> None:
    """The fleet has come to rest. Raises `Broken`."""
    if clients.streams:
        raise Broken(f"request {next(iter(clients.streams))} never ended")
    for gateway in clients.gateways:
        if not gateway.dispatcher.idle:
            raise Broken(f"{gateway.name} rests, but counts requests as waiting or running")
    for outcome in ledger.outcomes:
        if outcome.finish not in ENDS:
            raise Broken(f"request {outcome.number} has no outcome")
    for node in nodes:
        if not node.sound:
            continue
        if node.runs:
            raise Broken(f"node {node.number} rests, but runs {next(iter(node.runs))}")
        usage, stats = node.instance.scheduler.kv.usage(), node.instance.stats()
        if usage.used or usage.fenced or stats.running or stats.waiting:
            raise Broken(f"node {node.number} rests, but holds {usage.used} blocks, {stats.running} running requests")
    check_nodes(nodes)
    check_gateways(clients.gateways)
