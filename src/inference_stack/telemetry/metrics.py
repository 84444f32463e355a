"""Prometheus metrics of one process, in a registry of its own.

Fed by the gateway's request lifecycle and by the numbers instances report with every step. Knows nothing of HTTP, of
nodes or of transports; names follow `inference_stack_*`, and `aliases` shows the same under the names of vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import Metric

from inference_stack.core.stats import GpuStats, InstanceStats, Ledger
from inference_stack.telemetry.aliases import Aliases
from inference_stack.telemetry.gpus import GpuMetrics
from inference_stack.telemetry.hot import HotHistogram

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

LATENCY: Final = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.5,
    0.75,
    1,
    2,
    3,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
)
TOKEN_GAP: Final = (
    0.001,
    0.0025,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
)
ADDED: Final = (0.0002, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1)
STEP: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
SCHEDULE: Final = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.05, 0.25)
TOTALS: Final = (
    "steps",
    "prompt_tokens",
    "generation_tokens",
    "prefix_queries",
    "prefix_hits",
    "preemptions",
    "schedule_seconds",
    "step_seconds",
)
COALESCED_STEPS: Final = 32
"""A report may cover several steps; more is a first sight of an old instance and says nothing about one step."""


class ModelMetrics:
    """The children of one model's request metrics, resolved once so that the token path pays no label look-up."""

    def __init__(self, owner: Metrics, model: str) -> None:
        self.owner = owner
        self.model = model
        self.in_flight = owner.in_flight.labels(model)
        self.ttft = owner.ttft.labels(model)
        self.itl = owner.itl.labels(model)
        self.e2e = owner.e2e.labels(model)
        self.queue = owner.queue.labels(model)
        self.prefill = owner.prefill.labels(model)
        self.decode = owner.decode.labels(model)
        self.added = owner.added.labels(model)
        self.prompt_tokens = owner.prompt_tokens.labels(model)
        self.generation_tokens = owner.generation_tokens.labels(model)

    def finished(self, reason: str) -> None:
        """Count one completion that ended for `reason`."""
        self.owner.completions.labels(self.model, reason).inc()


class Metrics:
    """Every metric of one process. `render` is the body of `/metrics`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._request_metrics()
        self._engine_metrics()
        self._process_metrics()
        self.registry.register(Aliases(self))
        self._models: dict[str, ModelMetrics] = {}
        self._last: dict[tuple[str, str], InstanceStats] = {}
        self._workers: dict[str, set[tuple[str, str, str]]] = {}
        self._restarts: dict[tuple[str, str], int] = {}

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"inference_stack_{name}", help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"inference_stack_{name}", help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> HotHistogram:
        return HotHistogram(f"inference_stack_{name}", help, "model", buckets, self.registry)

    def _request_metrics(self) -> None:
        self.requests = self._counter("requests", "HTTP requests answered, by route and status.", "route", "status")
        self.errors = self._counter("errors", "Requests that ended in an error, by its code.", "model", "code")
        self.completions = self._counter("completions", "Completions ended, by reason.", "model", "finish_reason")
        self.in_flight = self._gauge("requests_in_flight", "Completions accepted and not ended.", "model")
        self.ttft = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", LATENCY)
        self.itl = self._histogram("inter_token_latency_seconds", "Between tokens of a completion.", TOKEN_GAP)
        self.e2e = self._histogram("request_seconds", "From arrival to the end of a completion.", LATENCY)
        self.queue = self._histogram("queue_seconds", "From arrival until a completion was first scheduled.", LATENCY)
        self.prefill = self._histogram(
            "prefill_seconds", "From when a completion was first scheduled to its first token.", LATENCY
        )
        self.decode = self._histogram("decode_seconds", "From the first token to the last.", LATENCY)
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of completions that started.", "model")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated for clients.", "model")
        self.resumed = self._counter(
            "continuations", "Times that a completion went on after its worker, node or link was lost."
        )
        self.stream_resumes = self._counter("stream_resumes", "Streams that clients came back for.", "model")
        self.mismatched = self._counter(
            "continuation_mismatches", "Continuations where numbers may come out differently.", "model"
        )
        self.added = self._histogram(
            "added_latency_seconds", "From the end of an engine's step to the writing of its tokens to a client.", ADDED
        )

    def _engine_metrics(self) -> None:
        self.running = self._gauge("requests_running", "Completions in the engine's batch.", "model", "instance")
        self.waiting = self._gauge("requests_waiting", "Completions queued in the engine.", "model", "instance")
        self.kv_usage = self._gauge("kv_cache_usage_ratio", "KV blocks in use, of all.", "model", "instance")
        self.kv_total = self._gauge("kv_blocks", "KV blocks there are.", "model", "instance")
        self.kv_cached = self._gauge("kv_blocks_cached", "Free KV blocks whose content is kept.", "model", "instance")
        self.engine_prompt = self._counter("engine_prompt_tokens", "Prompt tokens engines took in.", "model")
        self.engine_generation = self._counter("engine_generation_tokens", "Tokens engines generated.", "model")
        self.prefix_queries = self._counter("prefix_cache_queries", "Tokens looked up in the prefix index.", "model")
        self.prefix_hits = self._counter("prefix_cache_hits", "Tokens found in the prefix index.", "model")
        self.preemptions = self._counter("preemptions", "Completions put back into the queue.", "model")
        self.steps = self._counter("steps", "Engine steps.", "model")
        self.step_seconds = self._histogram("step_seconds", "An engine step.", STEP)
        self.schedule_seconds = self._histogram("schedule_seconds", "The scheduler's part of a step.", SCHEDULE)

    def _process_metrics(self) -> None:
        self.worker_info = self._gauge("worker_info", "A worker process.", "node", "device", "pid", "state")
        self.restarts = self._counter("worker_restarts", "Workers replaced.", "node", "device")
        self.startup = self._gauge("startup_seconds", "Start-up of a worker, by stage.", "node", "worker", "stage")
        self.gateway_tasks = self._gauge("gateway_tasks", "Concurrent activities of the gateway's process.")
        self.memory = self._gauge("memory_bytes", "Bytes of a worker's ledger.", "node", "worker", "purpose")
        self.gpus = GpuMetrics(self._gauge)

    def model(self, name: str) -> ModelMetrics:
        """The request metrics of one model."""
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = ModelMetrics(self, name)
        return found

    def observe_instance(self, stats: InstanceStats, instance: str = "0") -> None:
        """Take in an instance's numbers. Totals that shrink have restarted from zero with their worker."""
        last = self._last.get((stats.model, instance))
        self._last[(stats.model, instance)] = stats
        self.running.labels(stats.model, instance).set(stats.running)
        self.waiting.labels(stats.model, instance).set(stats.waiting)
        self.kv_total.labels(stats.model, instance).set(stats.kv_blocks_total)
        self.kv_cached.labels(stats.model, instance).set(stats.kv_blocks_cached)
        self.kv_usage.labels(stats.model, instance).set(stats.kv_blocks_used / max(1, stats.kv_blocks_total))
        grown = _growth(stats, last)
        for counter, name in self._totals():
            if grown[name]:
                counter.labels(stats.model).inc(grown[name])
        steps = int(grown["steps"])
        if 0 < steps <= COALESCED_STEPS:
            for _ in range(steps):
                self.step_seconds.labels(stats.model).observe(grown["step_seconds"] / steps)
                self.schedule_seconds.labels(stats.model).observe(grown["schedule_seconds"] / steps)

    def _totals(self) -> tuple[tuple[Counter, str], ...]:
        return (
            (self.engine_prompt, "prompt_tokens"),
            (self.engine_generation, "generation_tokens"),
            (self.prefix_queries, "prefix_queries"),
            (self.prefix_hits, "prefix_hits"),
            (self.preemptions, "preemptions"),
            (self.steps, "steps"),
        )

    def lose_instance(self, model: str, instance: str = "0") -> None:
        """An instance is gone: its gauges fall to zero, its totals stay counted."""
        if self._last.pop((model, instance), None) is None:
            return
        for gauge in (self.running, self.waiting, self.kv_usage, self.kv_total, self.kv_cached):
            gauge.labels(model, instance).set(0)

    def observe_workers(self, node: str, workers: Iterable[tuple[str, int, str, int]]) -> None:
        """Take in a node's workers as (device, pid, state, restarts); those not named any more disappear."""
        seen: set[tuple[str, str, str]] = set()
        for device, pid, state, restarts in workers:
            seen.add((device, str(pid), state))
            counted = self._restarts.get((node, device), 0)
            if restarts > counted:
                self.restarts.labels(node, device).inc(restarts - counted)
            self._restarts[(node, device)] = restarts
            self.worker_info.labels(node, device, str(pid), state).set(1)
        for gone in self._workers.get(node, set()) - seen:
            self.worker_info.remove(node, *gone)
        self._workers[node] = seen

    def observe_ledger(self, node: str, worker: str, ledger: Ledger) -> None:
        """Take in where a worker's start-up time and memory went."""
        for stage, seconds in ledger.stages:
            self.startup.labels(node, worker, stage).set(seconds)
        self.startup.labels(node, worker, "total").set(ledger.total_seconds)
        for purpose, size in ledger.memory:
            self.memory.labels(node, worker, purpose).set(size)

    def observe_gpus(self, node: str, gpus: Iterable[GpuStats]) -> None:
        """Take in what a node's GPUs do now; those not named any more disappear."""
        self.gpus.observe(node, gpus)

    def forget_instances(self, instance: str) -> None:
        """What was told apart by this does not come back: its series disappear, its totals stay counted."""
        for gauge in (self.running, self.waiting, self.kv_usage, self.kv_total, self.kv_cached):
            gauge.remove_by_labels({"instance": instance})
        self._last = {key: stats for key, stats in self._last.items() if key[1] != instance}

    def forget_node(self, node: str) -> None:
        """No node of this name comes back: its series disappear."""
        self.observe_workers(node, ())
        for family in (self.restarts, self.startup, self.memory):
            family.remove_by_labels({"node": node})
        self._restarts = {key: count for key, count in self._restarts.items() if key[0] != node}
        del self._workers[node]
        self.gpus.forget(node)

    def render(self) -> bytes:
        """The exposition text, one scrape."""
        return generate_latest(_WithoutBirthdays(self.registry))


class _WithoutBirthdays(CollectorRegistry):
    """A view of a registry that leaves out when each series was created: half as many lines, which nobody reads."""

    def __init__(self, source: CollectorRegistry) -> None:
        super().__init__()
        self._source = source

    def collect(self) -> Iterator[Metric]:
        for family in self._source.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def _growth(new: InstanceStats, old: InstanceStats | None) -> dict[str, float]:
    """How much each total grew. If any shrank, the instance started anew, and all its totals are growth."""
    now = {name: getattr(new, name) for name in TOTALS}
    if old is None:
        return now
    before = {name: getattr(old, name) for name in TOTALS}
    if any(now[name] < before[name] for name in TOTALS):
        return now
    return {name: now[name] - before[name] for name in TOTALS}
