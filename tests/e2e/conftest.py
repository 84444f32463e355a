"""One real server with the demo model for all end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Server


@pytest.fixture(scope="session")
def server(demo_model: Path) -> Iterator[Server]:
    """One server for all tests that leave it as they found it."""
    assert demo_model.exists()
    running = Server("smollm2").wait_ready()
    yield running
    assert running.stop() == 0
