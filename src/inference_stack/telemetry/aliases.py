"""The metrics that autoscalers, inference pools and public dashboards look for, under the names they know (`vllm:*`).

Made at scrape time by renaming our own, so that the token path counts everything once. Knows no source of numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from inference_stack.core.request import BLOCK_TOKENS

if TYPE_CHECKING:
    from inference_stack.telemetry.metrics import Metrics

RENAMED: Final = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_usage": "vllm:kv_cache_usage_perc",
    "prefix_queries": "vllm:prefix_cache_queries",
    "prefix_hits": "vllm:prefix_cache_hits",
    "preemptions": "vllm:num_preemptions",
    "prompt_tokens": "vllm:prompt_tokens",
    "generation_tokens": "vllm:generation_tokens",
    "ttft": "vllm:time_to_first_token_seconds",
    "itl": "vllm:inter_token_latency_seconds",
    "e2e": "vllm:e2e_request_latency_seconds",
    "queue": "vllm:request_queue_time_seconds",
    "prefill": "vllm:request_prefill_time_seconds",
    "decode": "vllm:request_decode_time_seconds",
}
"""Attribute of `Metrics` → alias, without the suffix that counters get."""

SUCCESS: Final = ("stop", "length", "abort")
LABELS: Final = {"model": "model_name", "instance": "engine", "finish_reason": "finished_reason"}


class Aliases(Collector):
    """A collector that shows `Metrics` under other names."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        for attribute, alias in RENAMED.items():
            for family in getattr(self._metrics, attribute).collect():
                yield _rename(family, alias, family.samples)
        for family in self._metrics.completions.collect():
            ended_well = [sample for sample in family.samples if sample.labels["finish_reason"] in SUCCESS]
            yield _rename(family, "vllm:request_success", ended_well)
        yield self._cache_config()

    def describe(self) -> Iterable[Metric]:
        """Nothing to check for duplicates: the names are not ours."""
        return ()

    def _cache_config(self) -> Metric:
        labels = ["model_name", "engine", "block_size", "num_gpu_blocks"]
        info = GaugeMetricFamily("vllm:cache_config_info", "Shape of the KV cache.", labels=labels)
        for family in self._metrics.kv_total.collect():
            for sample in family.samples:
                if not sample.value:  # its instance is gone
                    continue
                where = [sample.labels["model"], sample.labels["instance"]]
                info.add_metric([*where, str(BLOCK_TOKENS), str(int(sample.value))], 1)
        return info


def _rename(family: Metric, alias: str, samples: Iterable[Sample]) -> Metric:
    renamed = Metric(alias, family.documentation, family.type)
    for sample in samples:
        labels = {LABELS.get(name, name): value for name, value in sample.labels.items()}
        renamed.samples.append(sample._replace(name=alias + sample.name.removeprefix(family.name), labels=labels))
    return renamed
