"""One engine step: what the scheduler asks (`StepPlan`) and what the runner answers (`StepResult`).

Columns are numpy arrays with one entry per row; a row is one request in one step. Plans are differences: a worker keeps slot
tables, so a running request costs a few integers. `advance(result)` may come 0 to 2 plans after `plan()`.

    slot      a request's row in the worker's tables, from `NewSlot` until `released`
    start     tokens whose KV is already computed     ┐  positions start … start+num_tokens-1
    num_tokens  tokens to compute in this step        ┘  are the row's queries
    samples   how many tokens to sample from the row's last positions: 0 (more prompt to come), 1, or 1+k with k drafts
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from inference_stack.core.errors import ErrorInfo
from inference_stack.core.request import FinishReason, SamplingParams

IntArray = npt.NDArray[np.int32]


def ints(values: object = ()) -> IntArray:
    """An int32 column."""
    return np.asarray(values, dtype=np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSlot:
    """A request that enters a worker's slot tables, with every token known so far (prompt, then emitted).

    `computed` tokens are already in its blocks (prefix hit). `prompt_len` separates prompt from emitted tokens.
    """

    slot: int
    request_id: str
    tokens: tuple[int, ...]
    prompt_len: int
    computed: int
    params: SamplingParams
    seed: int
    choice: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDelta:
    """New entries of one KV group's block tables: table[slots[i], index[i]] = blocks[i] (logical block numbers)."""

    slots: IntArray = field(default_factory=ints)
    index: IntArray = field(default_factory=ints)
    blocks: IntArray = field(default_factory=ints)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One iteration of one model instance. All columns are int32 of length R (rows); `blocks` has one entry per KV group.

    `drafts` is int32 [R, k] padded with -1 (speculation), `grammar` uint32 [R, ceil(V/32)] (allowed-token bits), `adapters`
    int32 [R], `encoder` the content hashes of encoder inputs to compute; None or empty when unused.
    `released` slots are free for the worker to forget: the scheduler re-uses them only behind their fence.
    """

    step: int
    model: str
    slots: IntArray
    start: IntArray
    num_tokens: IntArray
    samples: IntArray
    new: tuple[NewSlot, ...] = ()
    blocks: tuple[BlockDelta, ...] = ()
    released: tuple[int, ...] = ()
    drafts: IntArray | None = None
    grammar: npt.NDArray[np.uint32] | None = None
    adapters: IntArray | None = None
    encoder: tuple[str, ...] = ()

    @property
    def total_tokens(self) -> int:
        """Query tokens of the whole step."""
        return int(self.num_tokens.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Natural-log probability of one token under the model's raw distribution; `rank` counts from 1.

    `top` lists the most likely (token, logprob) pairs, best first.
    """

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The runner's answer to one plan, rows in plan order.

    `tokens` int32 [R, 1+k] padded with -1; `counts` int32 [R] says how many of them are real (0 … samples). `logprobs[row]`
    has one entry per sampled token, `prompt_logprobs[row]` one per prompt position computed in this step whose successor
    is a prompt token (that is: entry j belongs to the token at position start+j+1). `errors[row]` fails that request alone.
    """

    step: int
    model: str
    tokens: IntArray
    counts: IntArray
    logprobs: dict[int, tuple[TokenLogprob, ...]] = field(default_factory=dict)
    prompt_logprobs: dict[int, tuple[TokenLogprob, ...]] = field(default_factory=dict)
    errors: dict[int, ErrorInfo] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(slots=True)
class TokenDelta:
    """One request's news from one step, on its way up to the gateway. `tokens` are appended to its emitted tokens.

    Treat as immutable. One is made per row and step, so it is neither frozen nor keyword-only: either would double its cost.
    `cached_tokens` (prefix hit) and `prompt_logprobs` (all positions but the first) come once, with the first delta that
    knows them. `queue_seconds`, from the request's arrival until it was first scheduled, comes with `cached_tokens` unless a
    token had been emitted before. A delta with `finish` is the request's last; `error` explains `FinishReason.ERROR`.
    """

    request_id: str
    attempt: int = 0
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    cached_tokens: int | None = None
    finish: FinishReason | None = None
    error: ErrorInfo | None = None
    queue_seconds: float | None = None
