"""`istack replay` on files: what it prints, and its exit status."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from inference_stack.cli.main import app
from inference_stack.core.errors import InferenceError
from inference_stack.scheduler.records import Record
from inference_stack.wire.journal import JournalWriter
from tests.scheduler.recorded import recorded_world
from tests.scheduler.test_properties import MIXED
from tests.scheduler.traffic import soak


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random traffic on a scheduler with little memory."""
    records: list[Record] = []
    soak(recorded_world(records, groups=[MIXED], slab_count=10, lag=1), steps=100, seed=1, check_every=100)
    path = tmp_path_factory.mktemp("recordings") / "worker.recording"
    journal = JournalWriter(path, 1 << 20)
    for record in records:
        journal.append(record)
    journal.close()
    return path


def istack(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["replay", *arguments])


def test_an_unchanged_scheduler_decides_the_same(recording: Path) -> None:
    done = istack(str(recording))
    assert done.exit_code == 0
    assert "all identical" in done.stdout and "first difference" not in done.stdout and "note" not in done.stdout


@pytest.mark.parametrize("change", [("--set", "max_batch_tokens=20"), ("--ordering", "fcfs"), ("--set", "kv_slabs=6")])
def test_a_changed_scheduler_is_shown_beside_the_recorded_one(recording: Path, change: tuple[str, str]) -> None:
    done = istack(str(recording), *change)
    assert done.exit_code == 1
    assert "first difference" in done.stdout and "recorded" in done.stdout and "replayed" in done.stdout
    assert "plans differ" not in done.stdout


def test_counting_goes_on_after_the_first_difference(recording: Path) -> None:
    done = istack(str(recording), "--set", "max_batch_tokens=20", "--count")
    assert done.exit_code == 1
    assert "plans differ" in done.stdout and "first difference" in done.stdout


def test_a_truncated_file_is_replayed_and_said_to_be(recording: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.recording"
    cut.write_bytes(recording.read_bytes()[:-10])
    done = istack(str(cut))
    assert done.exit_code == 0 and "cut off" in done.stdout


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" * 10)
    assert isinstance(istack(str(tmp_path / "model.gguf")).exception, InferenceError)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refused = istack(str(tmp_path / "nothing"))
    assert isinstance(refused.exception, InferenceError) and "No such file" in str(refused.exception)


def test_an_unknown_change_is_refused(recording: Path) -> None:
    refused = istack(str(recording), "--set", "colour=blue")
    assert isinstance(refused.exception, InferenceError) and "max_batch_tokens" in str(refused.exception)
