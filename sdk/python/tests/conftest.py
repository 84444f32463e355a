"""In tests the client never waits as long as it would for a real server."""

from __future__ import annotations

import pytest

from inference_stack_client import exchange


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between attempts: they are written down, and are short."""
    real = exchange.pause
    asked: list[float] = []

    def noted(attempt: int, headers: object = None) -> float:
        asked.append(real(attempt, headers))  # type: ignore[arg-type]
        return 0.001

    monkeypatch.setattr(exchange, "pause", noted)
    monkeypatch.setattr(exchange, "SCATTER_SECONDS", 0.0)
    return asked
