"""One scrape out of several processes': nothing added up, nothing lost."""

from prometheus_client.parser import text_string_to_metric_families

from inference_stack.core.stats import InstanceStats
from inference_stack.telemetry.merge import merged
from inference_stack.telemetry.metrics import Metrics


def one(requests: int) -> bytes:
    metrics = Metrics()
    metrics.requests.labels("/v1/chat/completions", "200").inc(requests)
    metrics.model("m").ttft.observe(0.01 * requests)
    metrics.observe_instance(InstanceStats(model="m", running=requests))
    return metrics.render()


def test_each_sample_says_which_process_it_is_of() -> None:
    text = merged({"0": one(3), "1": one(5)}).decode()
    found = {
        sample.labels["process"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "inference_stack_requests_total"
    }
    assert found == {"0": 3, "1": 5}


def test_every_sample_of_every_process_is_there_once() -> None:
    def samples(text: bytes) -> list[tuple[str, str]]:
        families = text_string_to_metric_families(text.decode())
        return sorted(
            (sample.name, str(sorted((k, v) for k, v in sample.labels.items() if k != "process")))
            for family in families
            for sample in family.samples
        )

    whole = merged({"0": one(3), "1": one(5)})
    assert samples(whole) == sorted(2 * samples(one(3)))
    assert whole.decode().count("# TYPE inference_stack_requests_total counter") == 1
