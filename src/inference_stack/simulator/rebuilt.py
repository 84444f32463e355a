"""What a recording describes, built again: schedulers over an arena, requests, results. Nothing of it was ever computed by a model.

Tokens that were not recorded are stood in for by what kind they are, and blocks keep the names they have in the recording. Knows
nothing of comparing.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Final

import numpy as np

from inference_stack.core.errors import SERVER_ERROR, ErrorInfo, invalid
from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import Continuation, Qos, Request, SamplingParams
from inference_stack.core.stats import StepTimeModel
from inference_stack.core.step import StepPlan, StepResult, TokenLogprob
from inference_stack.kv.events import Named
from inference_stack.kv.manager import KvManager
from inference_stack.kv.prefix import BlockHasher
from inference_stack.kv.slabs import SlabPool
from inference_stack.policy.ordering import ORDERINGS
from inference_stack.scheduler.limits import SchedulerLimits
from inference_stack.scheduler.records import NAME_BYTES, Added, Advanced, Asked, Opened, Recorded
from inference_stack.scheduler.scheduler import Scheduler

FAILED: Final = ErrorInfo(message="it failed when it was recorded", type=SERVER_ERROR, status=500)
UNTOLD: Final = TokenLogprob(token=0, logprob=0.0, rank=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What is to be different from the recording, for every instance. `limits` are fields of `SchedulerLimits`."""

    limits: dict[str, Any] = field(default_factory=dict)
    ordering: str = ""
    prefix_cache: bool | None = None
    slab_count: int = 0


def parse_changes(settings: Sequence[str]) -> Changes:
    """`KEY=VALUE` for max_running, max_batch_tokens, max_model_len, itl_target_ms (0: off), ordering, prefix_cache, kv_slabs.

    Raises `InferenceError` for anything else.
    """
    changes = Changes()
    for setting in settings:
        key, equals, value = setting.partition("=")
        try:
            changes = _changed(changes, key, value)
        except (ValueError, KeyError) as error:
            wanted = "KEY=VALUE" if not equals else f"a value for {key}, not {value!r}"
            raise invalid(f"--set {setting}: expected {wanted}", param="set") from error
    return changes


def _changed(changes: Changes, key: str, value: str) -> Changes:
    match key:
        case "max_running" | "max_batch_tokens" | "max_model_len":
            return replace(changes, limits=changes.limits | {key: _positive(value)})
        case "itl_target_ms":
            return replace(changes, limits=changes.limits | {"itl_target": float(value) / 1000 or None})
        case "ordering" if value in ORDERINGS:
            return replace(changes, ordering=value)
        case "prefix_cache":
            return replace(changes, prefix_cache={"true": True, "false": False}[value.lower()])
        case "kv_slabs":
            return replace(changes, slab_count=_positive(value))
    known = "max_running, max_batch_tokens, max_model_len, itl_target_ms, ordering, prefix_cache and kv_slabs"
    if key == "ordering":
        raise invalid(f"there is no ordering {value!r}; known are {', '.join(ORDERINGS)}", param="set")
    raise invalid(f"{key!r} cannot be set; what can: {known}", param="set")


def _positive(value: str) -> int:
    if int(value) < 1:
        raise ValueError("not positive")
    return int(value)


class RecordedNames(list[bytes]):
    """The names of one request's blocks: those it came with, and in `later` those recorded for the blocks it fills."""

    def __init__(self, names: Sequence[bytes], number: int, later: list[bytes]) -> None:
        super().__init__(names)
        self._came_with = len(names)
        self._number = number
        self.later = later

    def next(self) -> bytes:
        """The name of the first block that has none yet. One that was never recorded gets a name of its own."""
        place = len(self) - self._came_with
        if place < len(self.later):
            return self.later[place]
        return blake2b(f"{self._number}/{len(self)}".encode(), digest_size=2 * NAME_BYTES).digest()


class RecordedHasher(BlockHasher):
    """Names blocks as they are named in the recording, whatever their tokens."""

    def extend(self, names: list[bytes], root: bytes, tokens: array[int], start: int, end: int) -> list[Named]:
        assert isinstance(names, RecordedNames)
        while len(names) < end:
            names.append(names.next())
        return [(names[index], names[index - 1] if index else root, b"") for index in range(start, end)]


def rebuild(opened: Opened, changes: Changes) -> list[Scheduler]:
    """The recorded instances, over one arena. Raises `InferenceError` for changes that they cannot have."""
    geometry = replace(opened.geometry, slab_count=changes.slab_count or opened.geometry.slab_count)
    slabs = SlabPool(geometry)
    try:
        return [_scheduler(recorded, slabs, changes) for recorded in opened.instances]
    except ValueError as error:
        raise invalid(f"{error}", param="set") from error


def _scheduler(recorded: Recorded, slabs: SlabPool, changes: Changes) -> Scheduler:
    prefix_cache = recorded.prefix_cache if changes.prefix_cache is None else changes.prefix_cache
    if prefix_cache and not recorded.prefix_cache:
        raise invalid("it was recorded without a prefix cache: nobody knows which prompts begin alike", param="set")
    groups = [
        KvGroupSpec(
            name=group.name,
            layers=tuple(range(group.layers)),
            kv_heads=group.kv_heads,
            head_dim=group.head_dim,
            dtype=group.dtype,
            window=group.window,
        )
        for group in recorded.groups
    ]
    kv = KvManager(recorded.model, groups, slabs, prefix_cache=prefix_cache)
    kv.hasher = RecordedHasher(recorded.model)
    base, per_token, per_row, per_context = recorded.prior
    prior = StepTimeModel(base=base, per_token=per_token, per_row=per_row, per_context=per_context)
    limits: SchedulerLimits = replace(recorded.limits, **changes.limits)
    return Scheduler(limits, kv, ORDERINGS[changes.ordering or recorded.ordering](), prior=prior)


def names_in(added: Added, number: int, later: list[bytes]) -> RecordedNames:
    """The names that the recording's request of this number came with."""
    packed = added.names
    names = [packed[at : at + NAME_BYTES] for at in range(0, len(packed), NAME_BYTES)]
    return RecordedNames(names, number, later)


def request_of(asked: Asked, model: str) -> Request:
    """The request, as far as a scheduler looks at it."""
    if asked.known is None:
        known = (0,) * (asked.prompt_len + asked.emitted_len - 1) + (asked.last,)
    else:
        known = tuple(array("i", asked.known))
    params = SamplingParams(
        max_tokens=asked.max_tokens,
        min_tokens=asked.min_tokens,
        ignore_eos=asked.ignore_eos,
        stop_token_ids=asked.stops,
        prompt_logprobs=0 if asked.prompt_logprobs else None,
    )
    prompt, emitted = known[: asked.prompt_len], known[asked.prompt_len :]
    qos = Qos(priority=asked.priority, deadline=asked.deadline, ttft_deadline=asked.ttft_deadline)
    return Request(
        id=asked.id,
        model=model,
        continuation=Continuation(prompt=prompt, params=params, seed=0, emitted=emitted),
        qos=qos,
        attempt=asked.attempt,
        arrival=asked.arrival,
        isolated=asked.isolated,
    )


def result_of(advanced: Advanced, plan: StepPlan) -> StepResult:
    """The recorded result of this plan."""
    rows = len(plan.slots)
    if advanced.tokens is None:
        tokens = np.zeros((rows, max(1, int(plan.samples.max(initial=1)))), np.int32)
        for row, at, token in advanced.special:
            tokens[row, at] = token
    else:
        tokens = np.frombuffer(advanced.tokens, np.int32).reshape(rows, -1)
    return StepResult(
        step=plan.step,
        model=plan.model,
        tokens=tokens,
        counts=plan.samples if advanced.counts is None else np.frombuffer(advanced.counts, np.int32),
        logprobs={0: ()} if advanced.logprobs else {},
        prompt_logprobs={row: (UNTOLD,) * count for row, count in advanced.prompt_logprobs},
        errors=dict.fromkeys(advanced.errors, FAILED),
        seconds=advanced.seconds,
    )
