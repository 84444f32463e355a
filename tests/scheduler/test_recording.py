"""A recorded scheduler's calls, replayed, come to the same plans; a changed one's are told apart where they first differ."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_stack.core.errors import InferenceError
from inference_stack.core.request import Continuation, Qos, Request, SamplingParams
from inference_stack.core.step import StepPlan, StepResult, ints
from inference_stack.kv.pool import BlockPool
from inference_stack.scheduler.records import KINDS, Added, Advanced, Opened, Planned, PlanReader, Record
from inference_stack.scheduler.scheduler import Scheduler
from inference_stack.simulator.rebuilt import Changes, parse_changes
from inference_stack.simulator.replay import replay
from inference_stack.wire import journal as journal_module
from inference_stack.wire.journal import MAGIC, JournalReader, JournalWriter
from tests.scheduler.recorded import recorded_world
from tests.scheduler.test_properties import FULL, MIXED, SHAPES
from tests.scheduler.traffic import soak
from tests.scheduler.world import World

MIB = 1 << 20


def soaked(seed: int, steps: int = 150, tokens: bool = False, **shape: Any) -> tuple[list[Record], World]:
    records: list[Record] = []
    world = recorded_world(records, tokens, seed=seed, **shape)
    soak(world, steps=steps, seed=seed, check_every=steps)
    return records, world


def written(path: Path, records: list[Record], limit: int = 64 * MIB) -> Path:
    """A file of them, in chunks of a few."""
    journal = JournalWriter(path, limit)
    for record in records:
        journal.append(record)
    journal.close()
    return path


# -- identical


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 2**20),
    st.sampled_from(sorted(SHAPES)),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from((17, 40, 100)),
    st.sampled_from(("priority", "fcfs")),
)
def test_replaying_random_traffic_is_identical(
    seed: int, shape: str, lag: int, tokens: bool, batch: int, ordering: str
) -> None:
    records, world = soaked(
        seed, 60, tokens, **SHAPES[shape], lag=lag, max_batch_tokens=batch, ordering=ordering, faults=0.01
    )
    verdict = replay(records)
    assert verdict.first is None
    assert verdict.plans == sum(isinstance(record, Planned) for record in records)
    assert verdict.evicted[0] == verdict.evicted[1] and verdict.ended[0] == verdict.ended[1]
    assert verdict.ended[0] > 0 or not world.models[0].requests


def test_the_traffic_has_what_is_hard_to_replay() -> None:
    records, world = soaked(1, groups=[MIXED], slab_count=10, lag=1)
    (model,) = world.models
    stats, verdict = model.scheduler.stats(), replay(records)
    assert verdict.identical
    assert stats.preemptions > 0 and stats.prefix_hits > 0 and verdict.evicted[0] > 0
    assert any(isinstance(record, Advanced) and record.special for record in records)


def test_recording_changes_nothing() -> None:
    shape: dict[str, Any] = dict(groups=[FULL], slab_count=8, lag=1)
    plain = World.build(**shape, seed=3)
    soak(plain, steps=100, seed=3)
    _, world = soaked(3, 100, **shape)
    assert world.models[0].scheduler.stats() == plain.models[0].scheduler.stats()


def test_a_file_replays_as_the_records_do(tmp_path: Path) -> None:
    records, _ = soaked(2, groups=[MIXED], slab_count=10, lag=2)
    journal = JournalReader(written(tmp_path / "r", records), KINDS)
    read = list(journal)
    assert read == records and journal.cause == "closed"
    assert replay(journal).identical


def test_counting_on_an_identical_replay_changes_nothing() -> None:
    records, _ = soaked(4, groups=[FULL], slab_count=8, lag=1, faults=0.01)
    assert replay(records, counting=True) == replay(records)


def test_a_crash_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call in which a scheduler raises is the recording's last."""
    records, _ = soaked(1, 40, groups=[FULL], slab_count=8)
    records = records[: [isinstance(record, Advanced) for record in records].index(True) + 1]

    def broken(self: BlockPool, step: int) -> None:
        raise RuntimeError("blocks do not add up")

    monkeypatch.setattr(BlockPool, "retire", broken)
    again: list[Record] = []
    with pytest.raises(RuntimeError, match="add up"):
        world = recorded_world(again, groups=[FULL], slab_count=8, seed=1)
        soak(world, steps=40, seed=1)
    assert len(again) == len(records) and isinstance(again[-1], Advanced)
    with pytest.raises(RuntimeError, match="add up"):
        replay(again)


# -- what is hidden


SECRET = tuple(range(1_000_001, 1_000_041))


class Chatting:
    """One request after another on a recorded scheduler, whose every token is known."""

    def __init__(self, tokens: bool) -> None:
        self.records: list[Record] = []
        world = recorded_world(self.records, tokens, groups=[FULL], slab_count=40)
        self.scheduler = world.models[0].scheduler

    def ask(self, number: int, prompt: tuple[int, ...], answer: tuple[int, ...]) -> int | None:
        """The answer is computed token by token; how much of the prompt was cached."""
        params = SamplingParams(max_tokens=len(answer))
        continuation = Continuation(prompt=prompt, params=params, seed=0)
        request = Request(id=f"r{number}", model="m0", continuation=continuation, qos=Qos(tenant="tenant-name"))
        self.scheduler.add(request, float(number))
        cached, left = None, list(answer)
        while (plan := self.scheduler.plan(float(number))) is not None:
            for delta in self.scheduler.advance(self._result(plan, left), float(number)):
                cached = delta.cached_tokens if delta.cached_tokens is not None else cached
        return cached

    def _result(self, plan: StepPlan, left: list[int]) -> StepResult:
        sampled = bool(plan.samples[0])
        token = left.pop(0) if sampled else -1
        return StepResult(step=plan.step, model="m0", tokens=ints([[token]]), counts=ints([int(sampled)]))


def plain_bytes(records: list[Record]) -> bytes:
    return b"".join(msgspec.msgpack.encode(record) for record in records)


def traces_of(tokens: tuple[int, ...], plain: bytes) -> bool:
    """Whether any of the tokens, as packed in arrays or in msgpack, is there."""
    return any(array("i", [token]).tobytes() in plain or msgspec.msgpack.encode(token) in plain for token in tokens)


def test_tokens_of_prompts_and_answers_are_not_in_a_recording() -> None:
    chat = Chatting(tokens=False)
    chat.ask(0, SECRET, tuple(reversed(SECRET)))
    assert not traces_of(SECRET, plain_bytes(chat.records))
    assert b"tenant-name" not in plain_bytes(chat.records)


def test_names_of_blocks_are_salted() -> None:
    chat = Chatting(tokens=False)
    chat.ask(0, SECRET, SECRET)
    request = next(record.request for record in chat.records if isinstance(record, Added))
    assert request.prompt_len == len(SECRET)
    names = chat.scheduler.kv.hasher.chain(chat.scheduler.kv.hasher.root(), SECRET)
    assert not any(name[:8] in plain_bytes(chat.records) for name in names)


def test_tokens_are_there_when_asked_for() -> None:
    chat = Chatting(tokens=True)
    chat.ask(0, SECRET, SECRET[:5])
    assert traces_of(SECRET, plain_bytes(chat.records))
    assert replay(chat.records).identical


@pytest.mark.parametrize("tokens", [False, True])
def test_hits_on_earlier_answers_replay(tokens: bool) -> None:
    chat = Chatting(tokens)
    first = (*SECRET, *SECRET)
    chat.ask(0, SECRET, SECRET)
    cached = chat.ask(1, (*first, 7, 8), SECRET[:3])
    assert cached is not None and cached > len(SECRET)
    assert replay(chat.records).identical


# -- a file's bounds and ends


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "CHUNK_RECORDS", 40)


@pytest.mark.usefixtures("small_chunks")
def test_a_recording_ends_at_its_bound_and_replays_as_far_as_it_goes(tmp_path: Path) -> None:
    records = soaked(5, 400, groups=[FULL], slab_count=8)[0]
    path = written(tmp_path / "r", records, limit=10_000)
    journal = JournalReader(path, KINDS)
    read = list(journal)
    assert 8_000 < path.stat().st_size <= 10_000 and journal.cause == "full"
    assert read == records[: len(read)] and 0 < len(read) < len(records)
    assert replay(journal).identical


def test_a_journal_whose_disk_fails_ends_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = JournalWriter(tmp_path / "r", MIB)

    def fail(plain: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "_chunk", fail)
    journal.append(soaked(6, 20, groups=[FULL], slab_count=8)[0][0])
    journal.close()
    assert journal.cause == "failed" and "No space left" in journal.trouble
    journal.append("nothing happens")


def test_a_journal_that_cannot_keep_up_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "BACKLOG", 10)
    records = soaked(6, 40, groups=[FULL], slab_count=8)[0]
    journal = JournalReader(written(tmp_path / "r", records * 100), KINDS)
    read = list(journal)
    assert journal.cause == "slow" and read == records[: len(read)] and len(read) < len(records) * 100


def test_a_recording_is_private(tmp_path: Path) -> None:
    assert written(tmp_path / "r", []).stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_a_truncated_file_is_read_up_to_there(tmp_path: Path, share: float) -> None:
    records = soaked(7, groups=[MIXED], slab_count=10)[0]
    path = written(tmp_path / "r", records)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    cut = JournalReader(path, KINDS)
    read = list(cut)
    assert cut.cause is None and read == records[: len(read)] and len(read) >= 40
    assert replay(cut).identical


def test_a_damaged_chunk_ends_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "r", soaked(7, groups=[FULL], slab_count=8)[0])
    damaged = bytearray(path.read_bytes())
    damaged[len(MAGIC) + 30] ^= 1
    path.write_bytes(damaged)
    journal = JournalReader(path, KINDS)
    assert list(journal) == [] and journal.cause is None


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(b"GGUF and so on")
    with pytest.raises(InferenceError, match="is no recording"):
        JournalReader(tmp_path / "r", KINDS)


def test_a_record_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "r", soaked(7, 20, groups=[FULL], slab_count=8)[0])
    with pytest.raises(InferenceError, match="none of this version"):
        list(JournalReader(path, [Opened]))


# -- changed schedulers


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20), st.integers(0, 2), st.integers(20, 39))
def test_a_smaller_batch_differs_first_where_a_step_was_larger(seed: int, lag: int, batch: int) -> None:
    """With room for `batch` tokens nothing changes before the first step that had more."""
    records, _ = soaked(seed, 60, groups=[FULL], slab_count=60, lag=lag)
    reader, plans = PlanReader(), [record.plan for record in records if isinstance(record, Planned)]
    sizes = [0 if plan is None else int(reader.read(plan)[2].sum()) for plan in plans]
    expected = next((place for place, size in enumerate(sizes) if size > batch), None)
    verdict = replay(records, Changes(limits={"max_batch_tokens": batch}))
    assert (verdict.first.plan if verdict.first else None) == expected
    if verdict.first is not None:
        assert verdict.first.what == "plan" and verdict.first.rows


def arrivals(scheduler: Scheduler) -> None:
    for number, priority in enumerate((0, 0, 100)):
        continuation = Continuation(prompt=(number,) * 30, params=SamplingParams(max_tokens=5), seed=0)
        qos = Qos(priority=priority)
        scheduler.add(Request(id=f"r{number}", model="m0", continuation=continuation, qos=qos, arrival=number), 3.0)


def test_another_ordering_differs_in_who_goes_first() -> None:
    records: list[Record] = []
    scheduler = recorded_world(records, groups=[FULL], slab_count=60).models[0].scheduler
    arrivals(scheduler)
    scheduler.plan(3.0)
    first = replay(records, parse_changes(["ordering=fcfs"])).first
    assert first is not None and first.plan == 0
    assert ("r2", "tokens 0…29, samples 1", "–") in first.rows
    assert ("r0", "tokens 0…9", "tokens 0…29, samples 1") in first.rows


def test_a_shorter_context_refuses_what_was_accepted() -> None:
    records: list[Record] = []
    arrivals(recorded_world(records, groups=[FULL], slab_count=60).models[0].scheduler)
    first = replay(records, parse_changes(["max_model_len=20"])).first
    assert first is not None and first.what == "admission"
    ((_, recorded, replayed),) = first.rows
    assert recorded == "accepted" and replayed.startswith("refused")


def test_less_memory_evicts_otherwise() -> None:
    records, _ = soaked(9, 200, groups=[FULL], slab_count=60)
    verdict = replay(records, parse_changes(["kv_slabs=8"]), counting=True)
    assert verdict.first is not None and verdict.evicted[0] != verdict.evicted[1]
    assert verdict.plans_that_differ > 0


def test_a_tampered_eviction_is_noticed() -> None:
    records, _ = soaked(1, groups=[FULL], slab_count=8)
    place = next(at for at, record in enumerate(records) if isinstance(record, Planned) and record.forgotten)
    planned = records[place]
    assert isinstance(planned, Planned)
    forged = planned.forgotten[0]._replace(marks=bytes(len(planned.forgotten[0].marks)))
    records[place] = planned._replace(forgotten=[forged])
    first = replay(records).first
    assert first is not None and first.what == "eviction"


def test_a_counted_replay_serves_everybody_with_more_room() -> None:
    """More room can only make requests end: with room for all at once nobody waits, and every answer is as long as it was."""
    records, _ = soaked(10, 200, groups=[FULL], slab_count=60, max_running=2)
    verdict = replay(records, parse_changes(["max_running=16"]), counting=True)
    assert verdict.first is not None and verdict.ended[1] > 0.8 * verdict.ended[0]


@pytest.mark.parametrize(
    "setting", ["max_batch_tokens", "max_batch_tokens=many", "max_running=0", "ordering=lifo", "colour=blue"]
)
def test_a_wrong_change_is_refused(setting: str) -> None:
    with pytest.raises(InferenceError):
        parse_changes([setting])


def test_a_prefix_cache_cannot_be_added() -> None:
    records, _ = soaked(11, 20, groups=[FULL], slab_count=60, prefix_cache=False)
    assert replay(records).identical
    with pytest.raises(InferenceError, match="without a prefix cache"):
        replay(records, parse_changes(["prefix_cache=true"]))


def test_without_prefix_cache_the_first_hit_differs() -> None:
    chat = Chatting(tokens=False)
    chat.ask(0, SECRET, SECRET[:2])
    chat.ask(1, (*SECRET, 1, 2, 3), SECRET[:2])
    first = replay(chat.records, parse_changes(["prefix_cache=false"])).first
    assert first is not None and first.what == "plan"
    assert ("r1 starts", "slot 0, 32 of 43 tokens cached", "slot 0, 0 of 43 tokens cached") in first.rows


def test_a_recording_of_another_version_is_refused() -> None:
    records, _ = soaked(13, 10, groups=[FULL], slab_count=8)
    opened = records[0]
    assert isinstance(opened, Opened)
    with pytest.raises(InferenceError, match="version"):
        replay([opened._replace(version=99)])


def test_records_without_a_beginning_are_refused() -> None:
    records, _ = soaked(13, 10, groups=[FULL], slab_count=8)
    with pytest.raises(InferenceError, match="does not say"):
        replay(records[1:])
