"""What a retired step means: tokens appended, ends recognised, errors told, blocks published, memory freed.

Results come in order, up to two steps after their plan. Rows of requests that have left, or whose tokens in flight were
voided, mean nothing. Knows nothing of how the next rows are chosen.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from inference_stack.core.errors import ErrorInfo
from inference_stack.core.request import BLOCK_TOKENS, FinishReason
from inference_stack.core.step import IntArray, StepResult, TokenDelta, TokenLogprob
from inference_stack.policy.step_time import StepTimeFit
from inference_stack.scheduler.entry import NO_SLOT, Entry
from inference_stack.scheduler.state import Flight, State
from inference_stack.scheduler.table import unroll


class Results:
    """Takes results in."""

    def __init__(self, state: State, fit: StepTimeFit) -> None:
        self._state = state
        self._fit = fit

    def take(self, result: StepResult) -> None:
        """Book one retired step; its news is in `state.deltas`. Raises `ValueError` when it is not the oldest in flight."""
        state = self._state
        if not state.flights or state.flights[0].step != result.step:
            expected = state.flights[0].step if state.flights else "none"
            raise ValueError(f"result of step {result.step} came, but the oldest step in flight is {expected}")
        flight = state.flights.popleft()
        state.retired = flight.step
        state.kv.retire(flight.step)
        state.table.retire(flight.step)
        counts = result.counts
        known, short = state.table.settle(flight.slots, flight.samples, counts)
        retired = flight.start + flight.num_tokens - short
        ended = self._tokens(flight, result, known, retired)
        self._publish(flight, retired)
        for entry in ended:
            state.leave(entry)
        if np.count_nonzero(short):
            self._void(flight, short)
        self._count(flight, result)

    # -- tokens

    def _tokens(self, flight: Flight, result: StepResult, known: IntArray, retired: IntArray) -> list[Entry]:
        """Append every row's tokens and tell them; returns whose completion ended.

        Rows that give one token which ends nothing are nearly all rows: they are told apart by columns, and kept cheap.
        """
        sampled = result.tokens[:, 0]
        fast = self._uneventful(flight, result, known, sampled)
        table, slots, tokens = self._state.table, flight.slots[fast], sampled[fast]
        table.keep(slots, known[fast], tokens)
        who = slots.tolist()
        ids, attempts = map(table.ids.__getitem__, who), map(table.attempts.__getitem__, who)
        self._state.deltas += map(TokenDelta, ids, attempts, zip(tokens.tolist(), strict=True))
        self._state.counters.generation_tokens += len(who)
        return [
            flight.entries[row]
            for row in (~fast).nonzero()[0].tolist()
            if self._row(row, flight.entries[row], result, flight, int(retired[row]))
        ]

    def _uneventful(
        self, flight: Flight, result: StepResult, known: IntArray, sampled: IntArray
    ) -> npt.NDArray[np.bool_]:
        """Rows with exactly one token that ends nothing, of requests that expect just that."""
        if result.errors or result.logprobs or result.prompt_logprobs:
            return np.zeros(len(sampled), np.bool_)
        table, slots = self._state.table, flight.slots
        fast: npt.NDArray[np.bool_] = table.plain.take(slots) & (result.counts == 1) & (known < table.limit.take(slots))
        for eos in self._state.limits.eos_tokens:
            fast &= sampled != eos
        return fast

    def _row(self, row: int, entry: Entry, result: StepResult, flight: Flight, retired: int) -> bool:
        """A row that is not one token and nothing else. True when the completion ended with it."""
        count = int(result.counts[row])
        if flight.step <= entry.ignore_until:
            return False
        if row in result.errors:
            self._fail(entry, result.errors[row])
            return False
        if entry.slot != NO_SLOT:
            self._state.catch_up(entry, but=count)
        first = len(entry.tokens)
        finish = self._append(entry, result.tokens[row, :count].tolist())
        self._state.counters.generation_tokens += len(entry.tokens) - first
        self._keep_prompt_logprobs(entry, int(flight.start[row]), result.prompt_logprobs.get(row, ()))
        if count == 0 and entry.limit == entry.prompt_len and retired >= entry.limit - 1:
            finish = FinishReason.LENGTH
        fresh = tuple(entry.tokens[first:])
        if fresh or finish:
            self._tell(entry, fresh, result.logprobs.get(row, ())[: len(fresh)], finish)
        return finish is not None

    def _append(self, entry: Entry, sampled: list[int]) -> FinishReason | None:
        """Append tokens up to the one that ends the completion."""
        for token in sampled:
            entry.tokens.append(token)
            finish = entry.finish_at(len(entry.tokens))
            if finish is not None:
                return finish
        return None

    def _tell(
        self, entry: Entry, tokens: tuple[int, ...], logprobs: tuple[TokenLogprob, ...], finish: FinishReason | None
    ) -> None:
        """A delta, with what is told once if it has not been told."""
        prompt_logprobs = None
        if entry.prompt_logprobs is not None:
            owed = entry.prompt_logprobs
            prompt_logprobs = tuple(owed[place] for place in range(1, entry.prompt_len))
            entry.prompt_logprobs = None
        self._state.deltas.append(
            TokenDelta(
                request_id=entry.id,
                attempt=entry.attempt,
                tokens=tokens,
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
                cached_tokens=None if entry.told_cached else entry.cached_tokens,
                finish=finish,
                queue_seconds=None if entry.told_cached else entry.queue_seconds,
            )
        )
        entry.told_cached = True
        if entry.slot != NO_SLOT:
            self._state.table.plain[entry.slot] = entry.plain

    def _keep_prompt_logprobs(self, entry: Entry, start: int, logprobs: tuple[TokenLogprob, ...]) -> None:
        if entry.prompt_logprobs is not None:
            for place, logprob in enumerate(logprobs, start + 1):
                entry.prompt_logprobs[place] = logprob

    def _fail(self, entry: Entry, error: ErrorInfo) -> None:
        """This request alone has failed."""
        self._state.leave(entry)
        self._state.deltas.append(
            TokenDelta(request_id=entry.id, attempt=entry.attempt, finish=FinishReason.ERROR, error=error)
        )

    # -- memory

    def _publish(self, flight: Flight, retired: IntArray) -> None:
        """Blocks that became full are remembered, and blocks that left their window freed."""
        state = self._state
        crossed = (retired - state.table.published.take(flight.slots) * BLOCK_TOKENS >= BLOCK_TOKENS).nonzero()[0]
        slots = flight.slots[crossed]
        columns = (crossed, slots, retired[crossed])
        rows = []
        for row, slot, computed, known, recent in zip(
            *(column.tolist() for column in columns), *state.table.kept_by(slots), strict=True
        ):
            entry = flight.entries[row]
            if entry.slot == slot and flight.step > entry.ignore_until:
                have = len(entry.tokens)
                if known > have:
                    entry.tokens.frombytes(unroll(recent, have, known))
                rows.append((entry, entry.sequence.published, min(computed, known) // BLOCK_TOKENS, computed))
        state.kv.publish([(entry.sequence, entry.tokens, full) for entry, _, full, _ in rows])
        for entry, before, _, computed in rows:
            if state.kv.windowed:
                state.kv.slide(entry.sequence, computed)
            state.published(entry, before)

    def _void(self, flight: Flight, short: IntArray) -> None:
        """Rows that gave fewer tokens than were counted on: later rows in flight that build on those mean nothing.

        A request that was preempted meanwhile has no placeholders any more; it resumes when all its rows have retired.
        """
        state = self._state
        for row in (short > 0).nonzero()[0].tolist():
            entry, slot = flight.entries[row], flight.slots[row]
            if flight.step <= entry.ignore_until:
                continue
            if entry.slot == NO_SLOT:
                entry.ignore_until = entry.resume_after
            elif entry.slot == slot and state.table.total[slot] > state.table.known[slot]:
                state.void(entry)

    def _count(self, flight: Flight, result: StepResult) -> None:
        counters = self._state.counters
        counters.steps += 1
        counters.step_seconds += result.seconds
        tokens = int(np.add.reduce(flight.num_tokens))
        self._fit.observe(tokens, len(flight.slots), int(np.add.reduce(flight.start)) + tokens, result.seconds)
