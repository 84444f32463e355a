"""The messages of the two hops: gateway ↔ node, and node ↔ worker.

    gateway ── Submit, Abort ─────────▶ node ── Configure, Submit, Abort, Drain ──▶ worker
    gateway ◀─ StepReport, Lost, NodeState ── node ◀── Hello, Ready, StepReport, Heartbeat, Fatal ── worker

At most one `StepReport` per engine step. Deadlines cross machines as seconds from now, never as clock readings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from inference_stack.core.errors import ErrorInfo
from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import Request
from inference_stack.core.stats import InstanceStats, Ledger, StepTimeModel
from inference_stack.core.step import TokenDelta

WIRE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a served model is, as its worker found it. `name` is what requests call it."""

    name: str
    architecture: str
    numerics_id: str
    max_model_len: int
    vocab_size: int
    eos_tokens: tuple[int, ...]
    kv_groups: tuple[KvGroupSpec, ...]
    kv_blocks: int
    max_running: int
    step_time: StepTimeModel = StepTimeModel()


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
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The worker serves these models from now on, with `kv_memory` bytes of KV memory in all."""

    models: tuple[ModelInfo, ...]
    ledger: Ledger
    kv_memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """News of one engine step: tokens, ends, errors, and the instances' numbers."""

    deltas: tuple[TokenDelta, ...]
    stats: tuple[InstanceStats, ...] = ()


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
class WorkerState:
    """One worker as its node sees it. `state`: starting, ready, draining, failed."""

    pid: int
    device: str
    state: str
    restarts: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """A node's condition, sent at every change. `models` are those that can run requests now."""

    node: str
    ready: bool
    models: tuple[ModelInfo, ...] = ()
    workers: tuple[WorkerState, ...] = ()
    ledgers: tuple[Ledger, ...] = ()
    error: ErrorInfo | None = field(default=None)


ToWorker = Configure | Submit | Abort | Drain
FromWorker = Hello | Ready | StepReport | Heartbeat | Fatal
ToNode = Submit | Abort
FromNode = StepReport | Lost | NodeState
