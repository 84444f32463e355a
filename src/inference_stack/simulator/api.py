"""What the simulator's parts say to each other.

    workload ─Arrival▶ fleet: router ▶ instances (production scheduler, KV, cost model) ─▶ Outcome, Series ─▶ report

Times are seconds of the virtual clock, counted from the start of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class Segment(NamedTuple):
    """A piece of a prompt: `length` tokens of the endless token stream number `source`, from its token `start` on.

    Equal pieces are equal tokens: that is how prompts share prefixes. An answer is a stream too, numbered by its request's
    `seed`: the token at position p of the whole sequence is token p of that stream. So a later turn can quote an earlier answer.
    """

    source: int
    start: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One completion to come. `number` counts arrivals from 0 in the order of the workload and names them.

    `at` is when it arrives; with `follows` it is how long after that earlier arrival has ended. Deadlines are seconds from its
    arrival (None: none). `seed` is unique: it keys the answer's tokens.
    """

    number: int
    at: float
    prompt: tuple[Segment, ...]
    output_tokens: int
    seed: int
    follows: int | None = None
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    ttft_deadline: float | None = None
    deadline: float | None = None

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return sum(piece.length for piece in self.prompt)


class Workload(Protocol):
    """Arrivals, in order of `number`; those without `follows` in order of `at`. May be iterated several times, always alike."""

    def __iter__(self) -> Iterator[Arrival]: ...


class CostModel(Protocol):
    """How long a device takes."""

    def step_seconds(self, tokens: int, rows: int, context: int, pairs: int) -> float:
        """A step of `tokens` query tokens in `rows` rows, reading `context` tokens of KV (summed over rows; a row reads up to
        its last query), with `pairs` of a query and a key that it sees."""
        ...

    def load_seconds(self) -> float:
        """From a cold start until a model instance serves."""
        ...


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one arrival. `finish` is "length", "stop", "error" (see `error`), "refused" or "open" (the run ended first).

    `arrived` and the others are absolute; `first` is the first token's time, `ended` the last one's. `moves` counts re-dispatches.
    `longest_gap` is the longest wait between two tokens of the stream.
    """

    number: int
    tenant: str
    priority: int
    arrived: float
    prompt_tokens: int
    cached_tokens: int = 0
    output_tokens: int = 0
    node: int = -1
    queued: float = 0.0
    first: float | None = None
    ended: float | None = None
    longest_gap: float = 0.0
    moves: int = 0
    finish: str = "open"
    error: str = ""
    deadline: float | None = None
    ttft_deadline: float | None = None


FloatArray = npt.NDArray[np.float64]


@dataclass(slots=True, kw_only=True)
class Series:
    """The fleet over time, one entry per interval of `seconds`; sums over nodes, gauges as seen at the interval's end.

    `busy` is seconds of device time in the interval; `tokens` are emitted ones.
    """

    seconds: float
    running: FloatArray
    waiting: FloatArray
    kv_used: FloatArray
    kv_total: FloatArray
    busy: FloatArray
    tokens: FloatArray
    prompt_tokens: FloatArray
    nodes: FloatArray


@dataclass(slots=True, kw_only=True)
class Run:
    """All that one simulation found. `itl_edges` [B+1] seconds and `itl_counts` [B] are the histogram of times between tokens.

    `config` is what was asked; `events` are (time, what) of faults and scale changes, in order; `service` is, per tenant, tokens
    computed for it (prompt tokens not cached, and output tokens) divided by its weight.
    """

    config: dict[str, Any]
    seconds: float
    outcomes: list[Outcome]
    series: Series
    itl_edges: FloatArray
    itl_counts: npt.NDArray[np.int64]
    steps: int = 0
    preemptions: int = 0
    events: list[tuple[float, str]] = field(default_factory=list)
    service: dict[str, float] = field(default_factory=dict)
    node_hours: float = 0.0
    dollars: float | None = None
    complete: bool = True
    wall_seconds: float = 0.0
