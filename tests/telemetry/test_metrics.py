"""Totals of instances survive restarts; the same numbers appear under the names that others read."""

from __future__ import annotations

from typing import Any

from inference_stack.core.stats import GpuStats, InstanceStats, Ledger
from inference_stack.telemetry.gpus import READINGS
from inference_stack.telemetry.metrics import Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def stats(**fields: Any) -> InstanceStats:
    return InstanceStats(model="m", **fields)


def test_gauges_show_the_last_report() -> None:
    metrics = Metrics()
    metrics.observe_instance(stats(running=3, waiting=2, kv_blocks_total=10, kv_blocks_used=4))
    metrics.observe_instance(stats(running=1, waiting=0, kv_blocks_total=10, kv_blocks_used=5))
    assert value(metrics, "inference_stack_requests_running", model="m", instance="0") == 1
    assert value(metrics, "inference_stack_requests_waiting", model="m", instance="0") == 0
    assert value(metrics, "inference_stack_kv_cache_usage_ratio", model="m", instance="0") == 0.5


def test_totals_grow_by_differences() -> None:
    metrics = Metrics()
    for total in (10, 25, 25):
        metrics.observe_instance(stats(generation_tokens=total))
    assert value(metrics, "inference_stack_engine_generation_tokens_total", model="m") == 25


def test_totals_that_restart_with_their_worker_go_on() -> None:
    metrics = Metrics()
    metrics.observe_instance(stats(steps=5, prompt_tokens=100, preemptions=1))
    metrics.observe_instance(stats(steps=2, prompt_tokens=30))
    metrics.observe_instance(stats(steps=3, prompt_tokens=40))
    assert value(metrics, "inference_stack_engine_prompt_tokens_total", model="m") == 140
    assert value(metrics, "inference_stack_preemptions_total", model="m") == 1
    assert value(metrics, "inference_stack_steps_total", model="m") == 8


def test_an_instance_that_is_lost_and_back_is_counted_from_zero() -> None:
    metrics = Metrics()
    metrics.observe_instance(stats(running=2, generation_tokens=10))
    metrics.lose_instance("m")
    assert value(metrics, "inference_stack_requests_running", model="m", instance="0") == 0
    metrics.observe_instance(stats(running=1, generation_tokens=12))
    assert value(metrics, "inference_stack_engine_generation_tokens_total", model="m") == 22


def test_instances_of_one_model_are_added_up() -> None:
    metrics = Metrics()
    metrics.observe_instance(stats(prefix_hits=5), "a")
    metrics.observe_instance(stats(prefix_hits=7), "b")
    assert value(metrics, "inference_stack_prefix_cache_hits_total", model="m") == 12


def test_steps_are_observed_one_by_one() -> None:
    metrics = Metrics()
    metrics.observe_instance(stats(steps=1, step_seconds=0.5, schedule_seconds=0.001))
    metrics.observe_instance(stats(steps=3, step_seconds=0.7, schedule_seconds=0.003))
    assert value(metrics, "inference_stack_step_seconds_count", model="m") == 3
    assert value(metrics, "inference_stack_step_seconds_bucket", model="m", le="0.1") == 2
    assert value(metrics, "inference_stack_schedule_seconds_count", model="m") == 3


def test_aliases_have_the_names_and_labels_that_others_read() -> None:
    metrics = Metrics()
    metrics.observe_instance(stats(running=3, kv_blocks_total=8, kv_blocks_used=2, prefix_queries=6, preemptions=1))
    model = metrics.model("m")
    model.ttft.observe(0.2)
    model.finished("stop")
    model.finished("error")
    labels = {"model_name": "m", "engine": "0"}
    assert value(metrics, "vllm:num_requests_running", **labels) == 3
    assert value(metrics, "vllm:kv_cache_usage_perc", **labels) == 0.25
    assert value(metrics, "vllm:prefix_cache_queries_total", model_name="m") == 6
    assert value(metrics, "vllm:num_preemptions_total", model_name="m") == 1
    assert value(metrics, "vllm:time_to_first_token_seconds_count", model_name="m") == 1
    assert value(metrics, "vllm:request_success_total", model_name="m", finished_reason="stop") == 1
    assert value(metrics, "vllm:request_success_total", model_name="m", finished_reason="error") is None
    config = {**labels, "block_size": "16", "num_gpu_blocks": "8"}
    assert value(metrics, "vllm:cache_config_info", **config) == 1


def test_no_series_is_exposed_twice() -> None:
    metrics = Metrics()
    metrics.observe_instance(stats(steps=1))
    metrics.model("m").finished("stop")
    lines = [line.rpartition(" ")[0] for line in metrics.render().decode().splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))
    assert any(line.startswith("vllm:") for line in lines)


def test_workers_are_replaced_and_their_restarts_counted() -> None:
    metrics = Metrics()
    metrics.observe_workers("n", [("cpu", 10, "ready", 0)])
    metrics.observe_workers("n", [("cpu", 11, "starting", 1)])
    metrics.observe_workers("n", [("cpu", 11, "ready", 1)])
    labels = {"node": "n", "device": "cpu"}
    assert value(metrics, "inference_stack_worker_restarts_total", **labels) == 1
    assert value(metrics, "inference_stack_worker_info", **labels, pid="11", state="ready") == 1
    assert value(metrics, "inference_stack_worker_info", **labels, pid="10", state="ready") is None
    assert value(metrics, "inference_stack_worker_info", **labels, pid="11", state="starting") is None


def test_a_ledger_shows_stages_and_memory() -> None:
    metrics = Metrics()
    ledger = Ledger(stages=(("weights", 1.5),), total_seconds=2.0, memory=(("kv", 1024),))
    metrics.observe_ledger("n", "0", ledger)
    assert value(metrics, "inference_stack_startup_seconds", node="n", worker="0", stage="weights") == 1.5
    assert value(metrics, "inference_stack_startup_seconds", node="n", worker="0", stage="total") == 2.0
    assert value(metrics, "inference_stack_memory_bytes", node="n", worker="0", purpose="kv") == 1024


def gpu(index: int = 0, **numbers: float | None) -> GpuStats:
    return GpuStats(index=index, uuid=f"GPU-{index}", memory_used=7, memory_total=9, **numbers)


def test_gpus_are_gauges_in_base_units() -> None:
    metrics = Metrics()
    metrics.observe_gpus("n", [gpu(utilisation=0.5, sm_clock=1.98e9, temperature=41.0, power=699.5)])
    found = {name: value(metrics, f"inference_stack_{name}", node="n", gpu="0", uuid="GPU-0") for name in READINGS}
    assert found == {
        "gpu_utilisation_ratio": 0.5,
        "gpu_memory_used_bytes": 7,
        "gpu_memory_total_bytes": 9,
        "gpu_sm_clock_hertz": 1.98e9,
        "gpu_temperature_celsius": 41.0,
        "gpu_power_watts": 699.5,
    }


def test_gpus_and_numbers_that_are_not_told_any_more_disappear() -> None:
    metrics = Metrics()
    metrics.observe_gpus("n", [gpu(0, power=1.0), gpu(1)])
    metrics.observe_gpus("other", [gpu(0)])
    metrics.observe_gpus("n", [gpu(0)])
    text = metrics.render().decode()
    assert 'gpu_memory_used_bytes{gpu="0",node="n",uuid="GPU-0"}' in text
    assert 'gpu_memory_used_bytes{gpu="0",node="other",uuid="GPU-0"}' in text
    assert "GPU-1" not in text
    assert "gpu_power_watts{" not in text


def test_registries_are_independent() -> None:
    first, second = Metrics(), Metrics()
    first.model("m").finished("stop")
    assert value(second, "inference_stack_completions_total", model="m", finish_reason="stop") is None


def test_a_node_that_is_forgotten_leaves_no_series_and_others_theirs() -> None:
    metrics = Metrics()
    for name in ("gone", "stays"):
        metrics.observe_instance(stats(running=1, generation_tokens=5), f"{name}:1")
        metrics.observe_workers(name, [("cpu", 7, "ready", 2)])
        metrics.observe_ledger(name, "0", Ledger(stages=(("load", 1.0),), total_seconds=1.0, memory=(("kv", 9),)))
        metrics.observe_gpus(name, [GpuStats(index=0, uuid="u", memory_used=1, memory_total=2)])
    metrics.forget_instances("gone:1")
    metrics.forget_node("gone")
    text = metrics.render().decode()
    assert "gone" not in text and text.count('"stays"') >= 5 and '"stays:1"' in text
    assert value(metrics, "inference_stack_engine_generation_tokens_total", model="m") == 10
