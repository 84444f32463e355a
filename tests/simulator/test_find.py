"""The smallest fleet for an SLO, against trying every size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from inference_stack.core.errors import InferenceError
from inference_stack.simulator.find import Slo, evaluate, parse_slo, search, smallest
from inference_stack.simulator.fleet import FleetSpec
from inference_stack.simulator.workloads import workload_from
from tests.simulator.parts import Listed, spec, traffic

WORKLOADS: dict[str, Any] = {
    "poisson": {"kind": "poisson", "rate": 24, "duration": 5, "content": {"kind": "independent"}},
    "bursts": {"kind": "gamma", "rate": 8, "cv": 4, "duration": 5, "content": {"kind": "code"}},
    "documents": {"kind": "poisson", "rate": 6, "duration": 5, "content": {"kind": "rag"}},
}
SLO = parse_slo("ttft_p95=2.0,itl_p95=0.2,share=0.99")


def fleet(kind: str) -> FleetSpec:
    """One node of it is too few."""
    asked = spec(Listed(()), nodes=1, blocks=2000)
    limits = replace(asked.limits, max_batch_tokens=512, max_model_len=32_768)
    return replace(asked, workload=workload_from(WORKLOADS[kind], seed=1), limits=limits)


@pytest.mark.parametrize("kind", WORKLOADS)
def test_the_answer_is_within_one_node_of_trying_all(kind: str) -> None:
    asked = fleet(kind)
    trials = list(search(lambda nodes: evaluate(asked, nodes), SLO, most=64))
    found = smallest(trials)
    assert found is not None
    exhaustive = next(nodes for nodes in range(1, found.nodes + 2) if not SLO.broken(evaluate(asked, nodes)))
    assert abs(found.nodes - exhaustive) <= 1
    assert found.nodes > 1
    assert len(trials) < 2 + 2 * found.nodes.bit_length()


def test_the_search_halves_and_ends() -> None:
    asked: list[int] = []

    def measure(nodes: int) -> dict[str, Any]:
        asked.append(nodes)
        return {"latency": {"ttft": {"p95": 10.0 / nodes}}, "goodput": {"share": 1.0}}

    found = smallest(list(search(measure, Slo({"ttft_p95": 0.9}))))
    assert found is not None and found.nodes == 12
    assert asked == [1, 2, 4, 8, 16, 12, 10, 11]


def test_no_fleet_is_an_answer_too() -> None:
    summary = {"latency": {}, "goodput": {"share": 0.5}}
    trials = list(search(lambda nodes: summary, Slo({"share": 0.9}), most=5))
    assert [trial.nodes for trial in trials] == [1, 2, 4, 5] and smallest(trials) is None
    assert trials[0].broken == ("share 0.5000 < 0.9",)


@pytest.mark.parametrize("text", ["", "ttft", "ttft_p95", "ttft_p95=fast", "speed=3", "itl_p42=1"])
def test_what_is_no_slo_is_refused(text: str) -> None:
    with pytest.raises(InferenceError):
        parse_slo(text)


def test_a_fleet_that_gave_nobody_a_token_breaks_no_latency() -> None:
    run = spec(traffic(0), nodes=1)
    assert not Slo({"ttft_p95": 0.1}).broken(evaluate(run, 1))
