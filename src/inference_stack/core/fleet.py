"""What a node tells of itself: its models, its workers, whether it can be used. Routing, metrics and health read it."""

from __future__ import annotations

from dataclasses import dataclass

from inference_stack.core.errors import ErrorInfo
from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.stats import GpuStats, Ledger, StepTimeModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a served model is, as its worker found it. `name` is what requests call it; `vocabulary` a digest of how its tokens are
    spelt, empty where that is not known."""

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
    vocabulary: str = ""


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
    """A node's condition, sent at every change. `models` are those that can run requests now; `ready` while there are any.

    `draining`: what runs there may end, nothing new is taken. `boot` is drawn anew whenever the node's process starts. `gpus` are
    read every few seconds, which is a change too.
    """

    node: str
    ready: bool
    models: tuple[ModelInfo, ...] = ()
    workers: tuple[WorkerState, ...] = ()
    ledgers: tuple[Ledger, ...] = ()
    error: ErrorInfo | None = None
    draining: bool = False
    boot: str = ""
    gpus: tuple[GpuStats, ...] = ()
