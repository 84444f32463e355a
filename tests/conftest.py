"""What every test shares: the demo model's file, a repeatable hypothesis, and one torch thread per test process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Tests run on shared, slow machines: examples are the same every time, and how long one takes proves nothing.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: GPU kernels are tested on the CPU


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model's GGUF file: SmolLM2-135M-Instruct. `scripts/test` has fetched it; otherwise this does."""
    from inference_stack.artifacts.catalogue import default_cache_dir
    from inference_stack.artifacts.resolve import resolve
    from inference_stack.core.errors import InferenceError

    try:
        return resolve("smollm2", default_cache_dir()).weights[0]
    except InferenceError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the demo model cannot be had here: {error}")
