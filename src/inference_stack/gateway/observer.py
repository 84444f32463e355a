"""What a dispatcher reports of its node and instances, turned into metrics.

Knows messages and metrics; neither knows the other.
"""

from __future__ import annotations

from inference_stack.core.fleet import NodeState
from inference_stack.core.stats import InstanceStats
from inference_stack.telemetry.metrics import Metrics


class MetricsObserver:
    """One per node, which calls itself `name` once it is known; `node` tells instances of the same model apart."""

    def __init__(self, metrics: Metrics, node: str = "0") -> None:
        self._metrics = metrics
        self._node = node
        self.name = ""
        self._seen: set[str] = set()

    def observe_instance(self, stats: InstanceStats) -> None:
        """An instance's numbers after a step."""
        self._seen.add(stats.model)
        self._metrics.observe_instance(stats, self._node)

    def observe_node(self, state: NodeState) -> None:
        """A node's condition changed. Instances of a node that is not ready run nothing."""
        self.name = state.node
        workers = ((worker.device, worker.pid, worker.state, worker.restarts) for worker in state.workers)
        self._metrics.observe_workers(state.node, workers)
        self._metrics.observe_gpus(state.node, state.gpus)
        for number, ledger in enumerate(state.ledgers):
            self._metrics.observe_ledger(state.node, str(number), ledger)
        if not state.ready:
            self._lose()

    def observe_gone(self) -> None:
        """The node cannot be reached: nothing is known to run there, and none of its workers to be ready."""
        self._lose()
        self._metrics.observe_workers(self.name, ())
        self._metrics.observe_gpus(self.name, ())

    def forget(self, elsewhere: bool) -> None:
        """The node does not come back. `elsewhere`: one of its name is reached in another way."""
        self._metrics.forget_instances(self._node)
        if self.name and not elsewhere:
            self._metrics.forget_node(self.name)

    def _lose(self) -> None:
        for model in self._seen:
            self._metrics.lose_instance(model, self._node)
        self._seen.clear()
