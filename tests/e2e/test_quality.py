"""The demo model as it is served stays close to its own weights in fp32."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("settings", [[], ["--kv-dtype", "int8"], ["--kernels", "torch"]], ids=str)
def test_serving_costs_hardly_any_quality(demo_model: object, settings: list[str]) -> None:
    limits = ["--max-kl", "0.02", "--max-perplexity-increase", "1"]
    command = [sys.executable, "-m", "inference_stack.cli.main", "evaluate", "smollm2", "--float32", *limits, *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
