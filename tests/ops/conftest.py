"""Threads and fixtures for op tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from inference_stack.ops.facade import BoundOps
from tests.ops.parts import make_ops, native_sets


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> Iterator[None]:
    """Two threads, so that a result which depends on how work is shared out would show."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=["torch", *native_sets()])
def ops(request: pytest.FixtureRequest) -> BoundOps:
    """The reference ops, then every native kernel set, measuring."""
    return make_ops(kernels=request.param)
