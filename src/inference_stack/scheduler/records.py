"""What a recording consists of: every call that schedulers of one device received, in order, and what they decided.

Plain values, so that any codec can store them. A step that only goes on decoding takes a few bytes: its rows follow from the
step before. Knows neither files nor how a record comes about.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from inference_stack.core.step import IntArray, StepPlan, ints
from inference_stack.kv.slabs import ArenaGeometry
from inference_stack.scheduler.limits import SchedulerLimits

VERSION: Final = 1
NAME_BYTES: Final = 8
"""Of a block's salted name."""
MARK_BYTES: Final = 4
"""Of the name of a forgotten block: the names themselves came before."""

ORDINARY, EOS, STOP, EOS_AND_STOP = range(4)
"""What stands for a token that is not recorded: whether it is one of the model's end tokens, one of its request's, or both."""


class Group(NamedTuple):
    """One KV group: see `KvGroupSpec`. `layers` is how many."""

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    window: int | None


class Recorded(NamedTuple):
    """One instance: everything its scheduler was built from. `prior` are the four coefficients of `StepTimeModel`."""

    model: str
    groups: list[Group]
    limits: SchedulerLimits
    ordering: str
    prefix_cache: bool
    prior: tuple[float, float, float, float]


class Opened(NamedTuple):
    """The first record. `tokens`: they are recorded in full, otherwise only what kind each sampled one is."""

    version: int
    tokens: bool
    geometry: ArenaGeometry
    instances: list[Recorded]


class Asked(NamedTuple):
    """What a scheduler needs to know of a request. `last` is the last emitted token, or what stands for it."""

    id: str
    attempt: int
    prompt_len: int
    emitted_len: int
    last: int
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stops: tuple[int, ...]
    prompt_logprobs: bool
    priority: int
    arrival: float
    deadline: float | None
    ttft_deadline: float | None
    isolated: bool
    known: bytes | None = None


class Forgotten(NamedTuple):
    """Evicted blocks of one group in order: the first bytes of their names. `EVERY_GROUP`: all that was remembered."""

    instance: int
    group: int
    marks: bytes


class Added(NamedTuple):
    """`Scheduler.add`. `names` are the salted names of the blocks it came with, `refused` whether it can never run."""

    instance: int
    now: float
    request: Asked
    names: bytes
    refused: bool
    forgotten: list[Forgotten]


class Aborted(NamedTuple):
    """`Scheduler.abort`."""

    instance: int
    id: str
    forgotten: list[Forgotten]


class Entered(NamedTuple):
    """A request that got a slot: so many `tokens` are known, of which `computed` came from the prefix cache."""

    slot: int
    id: str
    computed: int
    tokens: int


class Step(NamedTuple):
    """A plan. `rows` are slots, start, num_tokens and samples as 32-bit integers; None: the last plan's, one token further.
    `blocks` holds slots, index and blocks for each group likewise."""

    step: int
    rows: bytes | None
    entered: list[Entered]
    blocks: list[bytes]
    released: tuple[int, ...]


class Planned(NamedTuple):
    """`Scheduler.plan`."""

    instance: int
    now: float
    plan: Step | None
    forgotten: list[Forgotten]


class Advanced(NamedTuple):
    """`Scheduler.advance`. `counts` None: every row gave all it was asked for. `special` are (row, column, token) of sampled
    tokens that are not ordinary; `tokens` are all of them, where they are recorded. `named` are blocks that became full: the
    request's number and the name. `ended` are (request, reason)."""

    instance: int
    now: float
    step: int
    seconds: float
    counts: bytes | None
    special: list[tuple[int, int, int]]
    tokens: bytes | None
    errors: list[int]
    logprobs: bool
    prompt_logprobs: list[tuple[int, int]]
    named: list[tuple[int, bytes]]
    ended: list[tuple[str, str]]
    forgotten: list[Forgotten]


class Drained(NamedTuple):
    """`Scheduler.drain_deltas`, where there were any."""

    instance: int
    ended: list[tuple[str, str]]


Record = Opened | Added | Aborted | Planned | Advanced | Drained
KINDS: Final[tuple[type, ...]] = (Opened, Added, Aborted, Planned, Advanced, Drained)

Columns = tuple[IntArray, IntArray, IntArray, IntArray]
"""slots, start, num_tokens, samples."""


def columns_of(packed: bytes, count: int) -> IntArray:
    """`count` columns [count, R] that were packed one after another."""
    return np.frombuffer(packed, np.int32).reshape(count, -1)


class PlanPacker:
    """Plans of one instance to records, in order."""

    def __init__(self) -> None:
        self._steady = b""

    def pack(self, plan: StepPlan) -> Step:
        """The plan, by reference to the one before where possible."""
        slots, tokens = plan.slots.tobytes(), plan.num_tokens.tobytes()
        rows = b"".join((slots, plan.start.tobytes(), tokens, plan.samples.tobytes()))
        known = rows == self._steady
        self._steady = _one_further(slots, plan.start + plan.num_tokens)
        return Step(
            plan.step,
            None if known else rows,
            [Entered(new.slot, new.request_id, new.computed, len(new.tokens)) for new in plan.new],
            [b"".join((news.slots.tobytes(), news.index.tobytes(), news.blocks.tobytes())) for news in plan.blocks],
            plan.released,
        )


class PlanReader:
    """Records of one instance's plans back to columns, in order."""

    def __init__(self) -> None:
        self._slots, self._start = ints(), ints()

    def read(self, step: Step) -> Columns:
        """The rows of the plan."""
        if step.rows is None:
            one = np.ones(len(self._slots), np.int32)
            columns = (self._slots, self._start, one, one)
        else:
            slots, start, tokens, samples = columns_of(step.rows, 4)
            columns = (slots, start, tokens, samples)
        self._slots, self._start = columns[0], columns[1] + columns[2]
        return columns


def _one_further(slots: bytes, start: IntArray) -> bytes:
    """Rows that follow when everybody decodes one more token."""
    one = np.ones(len(start), np.int32).tobytes()
    return b"".join((slots, start.tobytes(), one, one))
