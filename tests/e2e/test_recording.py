"""A worker records its scheduler under load; the recording replays to the same plans and holds no text."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from inference_stack.scheduler.records import KINDS, Aborted, Planned
from inference_stack.simulator.rebuilt import Changes
from inference_stack.simulator.replay import replay
from inference_stack.wire.journal import JournalReader
from tests.e2e.server import Server

pytestmark = pytest.mark.model

STREAMS = 16
ROUNDS = 2


def converse(server: Server, number: int, failures: list[str]) -> None:
    """Turns of one chat, each with the earlier ones in it; some are left in the middle."""
    messages = [{"role": "system", "content": "You are a patient zookeeper who answers at length. " * 4}]
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for turn in range(ROUNDS):
            messages.append({"role": "user", "content": f"Tell me of animal {number} in turn {turn}."})
            body = {"model": "smollm2", "messages": messages, "max_tokens": 40, "temperature": 0, "stream": True}
            with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    failures.append(f"status {answer.status_code}")
                for place, _ in enumerate(answer.iter_lines()):
                    if number % 4 == 3 and place > 10:
                        break
            messages.append({"role": "assistant", "content": f"Animal {number} is a very quiet animal indeed."})


def test_a_recording_made_under_load_replays_identically(demo_model: Path, tmp_path: Path) -> None:
    assert demo_model.exists()
    server = Server("smollm2", "--record", str(tmp_path), "--max-batch-tokens", "256").wait_ready()
    failures: list[str] = []
    threads = [threading.Thread(target=converse, args=(server, number, failures)) for number in range(STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.stop() == 0 and not failures
    (path,) = tmp_path.glob("*.recording")
    journal = JournalReader(path, KINDS)
    verdict, records = replay(journal), list(journal)
    assert journal.cause == "closed"
    assert verdict.first is None and verdict.requests == STREAMS * ROUNDS
    assert sum(isinstance(record, Planned) and record.plan is not None for record in records) > 40
    assert any(isinstance(record, Aborted) for record in records)
    assert any(
        new.computed for record in records if isinstance(record, Planned) and record.plan for new in record.plan.entered
    )
    assert replay(records, Changes(limits={"max_batch_tokens": 64})).first is not None
