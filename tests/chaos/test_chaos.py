"""A fleet of real processes breaks in every way there is, and no client that can come back notices more than a pause."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from inference_stack.cli.bench.chaos_run import run
from inference_stack.cli.bench.chaos_spec import Plan
from inference_stack.core.seams import SystemClock

pytestmark = pytest.mark.model

SHORT = "worker/kill,node/kill,node/stop,node/drain,link/cut,link/one way down,gateway/kill,gateway/stop"
ROLES = ("worker", "node", "gateway", "link")


def broken(plan: Plan) -> dict[str, Any]:
    """The account of a run in which nothing was lost or changed."""
    result = asyncio.run(run(plan, SystemClock(), print))
    assert result["troubles"] == []
    requests = result["requests"]
    assert (
        requests["failed_resuming"] == requests["failed_stock"] == requests["wrong_bytes"] == requests["unended"] == 0
    )
    assert result["identical_percent"] == 100.0
    assert result["faults"] == plan.faults
    return result


def test_a_breaking_fleet_loses_nothing(demo_model: Path) -> None:
    assert demo_model.exists()
    plan = Plan(kinds=SHORT, faults=8, every=1.0, hold=2.4, streams=12, cases=22, longest=90)
    result = broken(plan)
    assert result["moves"] > 0, "nothing had to move"
    assert result["requests"]["sent_again"] > 0, "nobody had to come back"
    assert {kind.partition("/")[0] for kind in result["kinds"]} == set(ROLES)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_faults_lose_nothing(demo_model: Path) -> None:
    assert demo_model.exists()
    result = broken(Plan())
    assert all(count["hit"] >= 3 for count in result["kinds"].values())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_certificates_change_nothing(demo_model: Path) -> None:
    assert demo_model.exists()
    broken(Plan(kinds=SHORT, faults=16, every=2.0, tls=True, streams=16))
