"""What a node tells of itself, put together from its workers: models, workers, ledgers, errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from inference_stack.config.sizes import format_size
from inference_stack.core.errors import ErrorInfo
from inference_stack.core.fleet import ModelInfo
from inference_stack.core.stats import Ledger
from inference_stack.node.devices import host_memory
from inference_stack.node.placement import Slot
from inference_stack.node.supervisor import Supervisor


def served(slots: Sequence[Slot]) -> tuple[ModelInfo, ...]:
    """The models that can run requests now. Instances that compute alike are one model with all their places and memory."""
    alike: dict[tuple[str, str], ModelInfo] = {}
    for slot in slots:
        for info in slot.supervisor.condition.models if slot.usable else ():
            known = alike.get(key := (info.name, info.numerics_id))
            alike[key] = info if known is None else _together(known, info)
    return tuple(alike.values())


def _together(one: ModelInfo, other: ModelInfo) -> ModelInfo:
    return replace(
        one,
        max_running=one.max_running + other.max_running,
        kv_blocks=one.kv_blocks + other.kv_blocks,
        max_model_len=min(one.max_model_len, other.max_model_len),
    )


def ledgers(slots: Sequence[Slot], gpus: Ledger) -> tuple[Ledger, ...]:
    """One for each worker that serves, with what the system says of its device; and one for GPUs, where there are any."""
    found = list(_worker_ledgers(slot.supervisor for slot in slots if slot.usable))
    if found and gpus.derived and not gpus.memory:
        found[0] = replace(found[0], derived=found[0].derived | gpus.derived)
    return (*found, gpus) if found and gpus.memory else tuple(found)


def _worker_ledgers(workers: Iterable[Supervisor]) -> Iterator[Ledger]:
    memory = {name: format_size(nbytes) for name, nbytes in host_memory()}
    for worker in workers:
        ledger = worker.condition.ledger
        yield replace(ledger, derived={**ledger.derived, "device": worker.device, **memory})


def failure(slots: Sequence[Slot]) -> ErrorInfo | None:
    """Why nothing can ever run here: every worker has failed for good. The first one's reason. Not while models change, since a
    worker that cannot load new ones goes back to the old ones."""
    given_up = all(slot.accepting and slot.supervisor.condition.state == "failed" for slot in slots)
    return slots[0].supervisor.condition.error if given_up else None
