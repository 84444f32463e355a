"""The messages of the two hops: gateway ↔ node, and node ↔ worker.

    gateway ── Attach, Submit, Abort, Beat, DrainNode ─▶ node ── Configure, Submit, Abort, Drain ──▶ worker
    gateway ◀──── NodeState, StepReport, Lost, Beat ──── node ◀── Hello, Ready, StepReport, Heartbeat, Fatal ── worker

At most one `StepReport` per engine step. Deadlines cross machines as seconds from now, never as clock readings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inference_stack.core.errors import ErrorInfo
from inference_stack.core.fleet import ModelInfo, NodeState
from inference_stack.core.request import Request
from inference_stack.core.stats import InstanceStats, Ledger
from inference_stack.core.step import TokenDelta

WIRE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Configure:
    """First message to a worker: its whole configuration, as the plain tree that `config` encodes."""

    config: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Requests to run. Deadlines in `qos` are seconds from now while in transit. A known id with a higher attempt replaces."""

    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Stop these requests now; nothing more is reported about them."""

    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Take no new requests; exit with status 0 when the running ones have finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A worker's first words, before its models are loaded."""

    wire_version: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The worker serves these models from now on, with `kv_memory` bytes of KV memory in all."""

    models: tuple[ModelInfo, ...]
    ledger: Ledger
    kv_memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """News of one engine step: tokens, ends, errors, and the instances' numbers. `at` is when the engine emitted it, in Unix
    seconds; of several joined reports the oldest counts."""

    deltas: tuple[TokenDelta, ...]
    stats: tuple[InstanceStats, ...] = ()
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The worker process is scheduled and its loop has retired `steps` steps; `busy` while it has work."""

    steps: int
    busy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fatal:
    """The worker cannot go on, for example because its model cannot be loaded; it exits non-zero after this."""

    error: ErrorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Nothing more comes of this attempt at these requests. `present`: they were on a worker when it died or hung; otherwise
    they never reached one."""

    request_ids: tuple[str, ...]
    reason: str
    present: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """A gateway's first words on a link: the newest wire version it speaks, and who it is. `boot` is drawn anew whenever its
    process starts. The node answers with its `NodeState`."""

    wire_version: int
    gateway: str
    boot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A sign of life in either direction when there is nothing else to say. `number` counts the sender's beats; `heard` is the
    newest number that came from the other side: while it does not rise, the way there is cut."""

    number: int
    heard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainNode:
    """Take nothing new; what runs may end for `seconds`, the rest is handed back. The node stays. `undo` takes an earlier one
    back."""

    seconds: float
    undo: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadModel:
    """Serve this model too: a path, a known name or a hub id, called `name` by requests (empty: its own name).

    Workers restart one by one; their states' reasons tell of what went wrong, and then the old models are served on.
    """

    model: str
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadModel:
    """Serve the model that requests call `name` no longer."""

    name: str


ToWorker = Configure | Submit | Abort | Drain
FromWorker = Hello | Ready | StepReport | Heartbeat | Fatal
ToNode = Attach | Submit | Abort | Beat | DrainNode | LoadModel | UnloadModel
FromNode = StepReport | Lost | NodeState | Beat
