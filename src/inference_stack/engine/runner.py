"""The runner of one model instance: executes plans in order, tokens in and tokens out.

    plan ─▶ uploads ─▶ slot tables ─▶ model step: hidden states, logits ─▶ sample ─▶ slot tables ─▶ fetch ┊ StepResult

Up to the dotted line nothing waits for the device, whatever that is: the next step may be launched before this one's tokens
are known to the host. It decides nothing: which rows, how many tokens and which blocks are the scheduler's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference_stack.core.errors import numerical_fault
from inference_stack.core.seams import Clock, Device, Fetch, InFlightStep
from inference_stack.core.step import IntArray, StepPlan, StepResult, TokenLogprob, ints
from inference_stack.engine.accelerator import Accelerator
from inference_stack.engine.graphs import GraphedStep
from inference_stack.engine.inputs import Rows, stage_drafts
from inference_stack.engine.launcher import Finish, Launcher
from inference_stack.engine.sampling import SampleColumns, accepted, score_columns, token_logprobs
from inference_stack.engine.slots import SlotTables
from inference_stack.engine.steps import EagerStep, FixedInputs, ModelStep, RecordedStep
from inference_stack.models.api import LoadedModel
from inference_stack.ops.api import KvLayer
from inference_stack.ops.facade import BoundOps
from inference_stack.telemetry.laps import Laps, NoLaps


class ModelRunner:
    """Runs one loaded model over its lease of the arena: op by op, or from `record` on by replaying a recorded step.

    `max_tokens` bounds the tokens of a step, `max_sampled` its rows and the logits computed at once.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        ops: BoundOps,
        device: Device,
        kv: tuple[KvLayer, ...],
        tables: SlotTables,
        clock: Clock,
        launcher: Launcher,
        max_tokens: int,
        max_sampled: int,
    ) -> None:
        self._loaded = loaded
        self._model = loaded.model
        self._ops = ops
        self._device = device
        self._kv = kv
        self._tables = tables
        self._clock = clock
        self._launcher = launcher
        self._max_tokens = max_tokens
        self._max_sampled = max_sampled
        self.step: ModelStep = EagerStep(loaded.model, ops, kv, tables, device)
        self._columns = SampleColumns(tables, loaded.eos_tokens, loaded.model.vocab_size, device)
        self.laps: Laps = NoLaps()

    def record(self) -> RecordedStep | None:
        """From now on replay a recording, where the chosen ops can be recorded. Returns it."""
        recorder = self._ops.recorder_of(self._loaded.step_ops)
        if recorder is None:
            return None
        inputs = FixedInputs(self._kv, self._tables, self._max_tokens, self._max_sampled, self._max_sampled)
        limits = self._max_tokens, self._max_sampled
        with torch.inference_mode():
            recorded = RecordedStep(self._model, self._ops, recorder, inputs, limits, self._launcher.native)
        self.step = recorded
        return recorded

    def record_graphs(self, device: Accelerator, parking: tuple[int, ...]) -> None:
        """From now on have the device record decode steps; `parking[group]` is the entry of a block that nobody owns."""
        self.step = GraphedStep(self._model, self._ops, self._kv, self._tables, device, parking, self._max_sampled)

    def forget_recording(self) -> None:
        """Run op by op again."""
        self.step = EagerStep(self._model, self._ops, self._kv, self._tables, self._device)

    def launch(self, plan: StepPlan) -> InFlightStep:
        """Start a step, behind those launched before it."""
        return self._launcher.submit(lambda: self._start(plan))

    def _start(self, plan: StepPlan) -> Finish:
        began = self._clock.now()
        self.laps.start()
        with torch.inference_mode():
            results = self._queue(plan)
        return lambda: self._finish(results, began)

    def _finish(self, results: _Results, began: float) -> StepResult:
        arrays = results.fetch.wait()
        self.laps.lap("waits for results")
        seconds = results.fetch.seconds
        result = results.sorted(arrays, seconds if seconds is not None else self._clock.now() - began)
        self.laps.lap("result")
        return result

    def _queue(self, plan: StepPlan) -> _Results:
        """Everything of the step that does not need to know its tokens."""
        self._device.begin()
        self._tables.stage(plan)
        rows = Rows(plan)
        drafts = stage_drafts(plan, rows, self._tables, self._device)
        compute = self.step.stage(rows)
        sampled = len(rows.sampled_row) > 0
        wanted = self._columns.stage(plan, rows) if sampled else None
        write = self._tables.writer(rows.slots[rows.sampled_row], rows.sampled_position) if sampled else None
        scored = self._scored_prompts(rows)
        self.laps.lap("uploads")
        self._device.send()
        self._tables.apply()
        if drafts is not None:
            drafts()
        self.laps.lap("slot tables")
        output = compute(self.laps)
        found: list[Tensor] = []
        if wanted is not None and write is not None and output.logits_SV is not None:
            columns = wanted()
            self.laps.lap("sampling: columns")
            chosen = self._ops.sample(output.logits_SV, columns)
            self.laps.lap("sampling: kernel")
            write(chosen.tokens_S)
            found = [chosen.tokens_S, chosen.finite_S, *score_columns(chosen)]
        count = len(found)
        for piece in scored:
            found += self._score(output.hidden_TD, piece)
        return _Results(plan, rows, self._columns.tops, count, scored, self._device.fetch(found))

    def _scored_prompts(self, rows: Rows) -> list[_Scored]:
        """Prompt tokens whose log-probabilities are wanted: position p's logits score the token at p+1."""
        found: list[_Scored] = []
        if rows.decode:
            return found
        for row, slot in enumerate(rows.slots):
            top = self._tables.params[slot].prompt_logprobs
            last = min(rows.context[row], self._tables.prompt_len[slot] - 1)
            if top is None or last <= rows.start[row]:
                continue
            positions = np.arange(rows.start[row], last)
            query = rows.cu_q[row] + positions - rows.start[row]
            for at in range(0, len(query), self._max_sampled):
                part = slice(at, at + self._max_sampled)
                uploads = self._device.upload(query[part]), self._device.upload(positions[part] + 1)
                found.append(_Scored(row, int(slot), top, *uploads))
        return found

    def _score(self, hidden_TD: Tensor, piece: _Scored) -> list[Tensor]:
        tokens_S = self._tables.tokens[piece.slot][piece.position_S]
        logits_SV = self._model.logits(self._ops, self._ops.select(hidden_TD, piece.query_S))
        return [tokens_S, *score_columns(self._ops.score(logits_SV, tokens_S, piece.top))]


@dataclass(frozen=True, slots=True)
class _Scored:
    """Prompt tokens of one row to score with `top` alternatives: the queries that predict them, and their positions."""

    row: int
    slot: int
    top: int
    query_S: Tensor
    position_S: Tensor


PIECE_COLUMNS = 5
"""Arrays of one scored piece: tokens, and what `score_columns` names."""


class _Results:
    """What a step is to give back, on its way to the host: of the sampled positions the first `count` arrays, then those of each
    piece of prompt."""

    def __init__(
        self, plan: StepPlan, rows: Rows, tops: np.ndarray, count: int, scored: list[_Scored], fetch: Fetch
    ) -> None:
        self._plan = plan
        self._rows = rows
        self._tops = tops
        self._count = count
        self._scored = scored
        self.fetch = fetch

    def sorted(self, arrays: Sequence[np.ndarray], seconds: float) -> StepResult:
        """The arrays by row; a row with a non-finite logit fails, and no token of it counts."""
        rows = len(self._plan.slots)
        tokens, counts = ints(np.full((rows, 1), -1)), ints(np.zeros(rows))
        logprobs: dict[int, tuple[TokenLogprob, ...]] = {}
        failed: list[int] = []
        if self._count:
            tokens, counts, stands, failed = self._tokens(arrays[0], arrays[1])
            logprobs = self._logprobs(arrays[0], arrays[2 : self._count], stands)
        return StepResult(
            step=self._plan.step,
            model=self._plan.model,
            tokens=tokens,
            counts=counts,
            logprobs=logprobs,
            prompt_logprobs=self._prompts(arrays),
            errors={row: numerical_fault() for row in failed},
            seconds=seconds,
        )

    def _tokens(self, sampled: np.ndarray, finite: np.ndarray) -> tuple[IntArray, IntArray, np.ndarray, list[int]]:
        """Tokens and counts of each row, which of the sampled positions stand, and the rows that failed."""
        row = self._rows.sampled_row
        counts = accepted(self._plan, self._rows, sampled)
        failed = sorted(set(row[~finite].tolist())) if not finite.all() else []
        counts[failed] = 0
        if self._rows.decode:
            return np.where(finite, sampled, -1).astype(np.int32)[:, None], counts, finite, failed
        column = np.arange(len(row)) - self._rows.cu_s[row]
        stands = column < counts[row]
        tokens = np.full((len(self._plan.slots), int(self._rows.samples.max())), -1, dtype=np.int32)
        tokens[row[stands], column[stands]] = sampled[stands]
        return tokens, counts, stands, failed

    def _logprobs(
        self, sampled: np.ndarray, scores: Sequence[np.ndarray], stands: np.ndarray
    ) -> dict[int, tuple[TokenLogprob, ...]]:
        found: dict[int, tuple[TokenLogprob, ...]] = {}
        if scores:
            row = self._rows.sampled_row
            for at, entry in token_logprobs(sampled, scores, self._tops).items():
                if stands[at]:
                    found[int(row[at])] = (*found.get(int(row[at]), ()), entry)
        return found

    def _prompts(self, arrays: Sequence[np.ndarray]) -> dict[int, tuple[TokenLogprob, ...]]:
        found: dict[int, tuple[TokenLogprob, ...]] = {}
        for number, piece in enumerate(self._scored):
            tokens, *scores = arrays[self._count + number * PIECE_COLUMNS :][:PIECE_COLUMNS]
            entries = token_logprobs(tokens, scores, np.full(len(tokens), piece.top))
            found[piece.row] = (*found.get(piece.row, ()), *entries.values())
        return found
