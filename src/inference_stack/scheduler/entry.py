"""One request inside the scheduler: its tokens, its end, its place in the order, its block tables.

What changes every step while it runs lives in the slot table's columns instead. Knows nothing of other requests.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Final

from inference_stack.core.errors import context_length_exceeded, invalid
from inference_stack.core.request import FinishReason, Request
from inference_stack.core.step import NewSlot, TokenLogprob
from inference_stack.kv.manager import Sequence
from inference_stack.policy.ordering import Key

NO_SLOT: Final = -1
FOREVER: Final = 1 << 62


@dataclass(slots=True, eq=False)
class Entry:
    """`tokens` are the known tokens; while it runs the latest may be in the slot table alone. The completion ends when they
    number `limit`, or at a stop from index `stops_from` on.

    ignore_until   rows of steps up to this one say nothing about this entry any more
    resume_after   a preempted entry resumes when this step has retired: its tokens in flight have arrived then
    room_after     a running entry that found no memory may preempt (more) when this step has retired, and what was freed
                   is no longer fenced; -1 when it has what it needs
    cornered       it could not grow although it was alone: it runs alone, one block per step, with the arena claimed
    waits_for      the name of the block that a running request is computing for it
    leads          names of this many first blocks were registered as being computed by it
    special_stops  it has stop tokens beside the model's
    """

    request: Request
    tokens: array[int]
    limit: int
    stops: frozenset[int]
    stops_from: int
    rank: tuple[Key, int]
    sequence: Sequence
    id: str
    attempt: int
    slot: int = NO_SLOT
    ignore_until: int = -1
    resume_after: int = -1
    room_after: int = -1
    cornered: bool = False
    waits_for: bytes = b""
    leads: int = 0
    special_stops: bool = False
    cached_tokens: int | None = None
    queue_seconds: float | None = None
    told_cached: bool = False
    prompt_logprobs: dict[int, TokenLogprob] | None = None

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt, without emitted ones."""
        return len(self.request.continuation.prompt)

    @property
    def recompute_tokens(self) -> int:
        """What it would cost to compute it again."""
        return len(self.tokens)

    @property
    def plain(self) -> bool:
        """Its next delta carries tokens and nothing else, and only the model's end tokens or the limit end it."""
        return self.told_cached and self.prompt_logprobs is None and not self.special_stops

    @property
    def alone(self) -> bool:
        """Nothing may run beside it: it is cornered, or isolated and has not shown yet that it does no harm."""
        return self.cornered or (self.request.isolated and not self.told_cached)

    @property
    def done(self) -> bool:
        """It has left the scheduler."""
        return self.ignore_until == FOREVER

    @property
    def reuses_prefix(self) -> bool:
        """Whether prefix hits may be used: not while prompt logprobs are owed, nor when cornered (scattered blocks)."""
        return self.prompt_logprobs is None and not self.cornered

    def finish_at(self, length: int) -> FinishReason | None:
        """Whether the completion ends with the token that makes it `length` tokens long."""
        if length > self.stops_from and self.tokens[length - 1] in self.stops:
            return FinishReason.STOP
        return FinishReason.LENGTH if length >= self.limit else None

    def finished_before_start(self) -> FinishReason | None:
        """The end that a continuation's emitted tokens already contain; also a completion of no tokens at all."""
        if len(self.tokens) > self.prompt_len:
            return self.finish_at(len(self.tokens))
        nothing_to_do = len(self.tokens) >= self.limit and (self.prompt_logprobs is None or self.limit == 1)
        return FinishReason.LENGTH if nothing_to_do else None

    def new_slot(self, computed: int) -> NewSlot:
        """How a worker gets to know it."""
        continuation = self.request.continuation
        return NewSlot(
            slot=self.slot,
            request_id=self.id,
            tokens=continuation.prompt if len(self.tokens) == self.prompt_len else tuple(self.tokens),
            prompt_len=self.prompt_len,
            computed=computed,
            params=continuation.params,
            seed=continuation.seed,
            choice=continuation.choice,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What limits every sequence of an instance: the model's and the memory's longest, and the model's end tokens."""

    max_model_len: int
    max_memory_len: int
    eos_tokens: tuple[int, ...] = field(default=())

    @property
    def longest(self) -> int:
        """The longest sequence that can be completed."""
        return min(self.max_model_len, self.max_memory_len)


def check_request(request: Request, bounds: Bounds) -> None:
    """Raises `InferenceError` for a request that can never run here."""
    continuation = request.continuation
    prompt, params = len(continuation.prompt), continuation.params
    if prompt == 0:
        raise invalid("The prompt is empty.", param="prompt")
    if params.max_tokens < 0 or params.min_tokens < 0:
        raise invalid("max_tokens and min_tokens must not be negative.", param="max_tokens")
    needs_room = 1 if params.max_tokens else 0
    if prompt + needs_room > bounds.longest:
        raise context_length_exceeded(bounds.longest, prompt, params.max_tokens)


def make_entry(request: Request, bounds: Bounds, rank: tuple[Key, int], sequence: Sequence) -> Entry:
    """A checked request on its way into the queue."""
    continuation = request.continuation
    params = continuation.params
    prompt = len(continuation.prompt)
    eos = () if params.ignore_eos else bounds.eos_tokens
    return Entry(
        request=request,
        tokens=array("i", continuation.prompt + continuation.emitted),
        limit=min(prompt + params.max_tokens, bounds.longest),
        stops=frozenset(eos + params.stop_token_ids),
        stops_from=prompt + params.min_tokens,
        rank=rank,
        sequence=sequence,
        id=request.id,
        attempt=request.attempt,
        special_stops=bool(params.stop_token_ids),
        prompt_logprobs=None if params.prompt_logprobs is None else {},
    )
