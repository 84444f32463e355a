"""The runner of one model instance: executes plans in order, tokens in and tokens out.

    plan ─▶ slot tables ─▶ model step: hidden states, logits of sampled rows ─▶ sample ─▶ slot tables, StepResult

It decides nothing: which rows, how many tokens and which blocks are the scheduler's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from inference_stack.core.errors import numerical_fault
from inference_stack.core.seams import Clock, Device, InFlightStep
from inference_stack.core.step import IntArray, StepPlan, StepResult, TokenLogprob, ints
from inference_stack.engine.inputs import Rows, write_drafts
from inference_stack.engine.launcher import Launcher
from inference_stack.engine.sampling import SampleColumns, accepted, token_logprobs
from inference_stack.engine.slots import SlotTables
from inference_stack.engine.steps import EagerStep, FixedInputs, ModelStep, RecordedStep
from inference_stack.models.api import LoadedModel
from inference_stack.ops.api import KvLayer, Sampled, SampleInputs
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
        recorder = self._ops.recorder
        if recorder is None:
            return None
        inputs = FixedInputs(self._kv, self._tables, self._max_tokens, self._max_sampled, self._max_sampled)
        limits = self._max_tokens, self._max_sampled
        with torch.inference_mode():
            recorded = RecordedStep(self._model, self._ops, recorder, inputs, limits, self._launcher.native)
        self.step = recorded
        return recorded

    def forget_recording(self) -> None:
        """Run op by op again."""
        self.step = EagerStep(self._model, self._ops, self._kv, self._tables, self._device)

    def launch(self, plan: StepPlan) -> InFlightStep:
        """Start a step, behind those launched before it."""
        return self._launcher.submit(lambda: self._run(plan))

    def _run(self, plan: StepPlan) -> StepResult:
        began = self._clock.now()
        self.laps.start()
        with torch.inference_mode():
            result = self._compute(plan)
        finished = result.finished(self._clock.now() - began)
        self.laps.lap("result")
        return finished

    def _compute(self, plan: StepPlan) -> _Result:
        self._update_tables(plan)
        rows = Rows(plan)
        write_drafts(plan, rows, self._tables, self._device)
        self.laps.lap("slot tables")
        output = self.step(rows, self.laps)
        result = _Result(plan, rows)
        if output.logits_SV is not None:
            self._sample(result, output.logits_SV)
        self._score_prompts(result, output.hidden_TD)
        return result

    def _update_tables(self, plan: StepPlan) -> None:
        for new in plan.new:
            self._tables.enter(new)
        for group, delta in enumerate(plan.blocks):
            self._tables.extend(group, delta)

    def _sample(self, result: _Result, logits_SV: Tensor) -> None:
        wanted = self._columns.of(result.plan, result.rows)
        self.laps.lap("sampling: columns")
        chosen = self._ops.sample(logits_SV, wanted)
        self.laps.lap("sampling: kernel")
        rows = result.rows
        self._tables.write(rows.slots[rows.sampled_row], rows.sampled_position, chosen.tokens_S)
        result.take(chosen, wanted)

    def _score_prompts(self, result: _Result, hidden_TD: Tensor) -> None:
        """Log-probabilities of prompt tokens, for the rows that ask: position p's logits score the token at p+1."""
        rows = result.rows
        if rows.decode:
            return
        for row, slot in enumerate(rows.slots):
            top = self._tables.params[slot].prompt_logprobs
            last = min(rows.context[row], self._tables.prompt_len[slot] - 1)
            if top is not None and last > rows.start[row]:
                positions = np.arange(rows.start[row], last)
                query = rows.cu_q[row] + positions - rows.start[row]
                result.prompt_logprobs[row] = self._score(
                    hidden_TD, query, self._tables.tokens[slot, positions + 1], top
                )

    def _score(self, hidden_TD: Tensor, query: np.ndarray, tokens: Tensor, top: int) -> tuple[TokenLogprob, ...]:
        entries: list[TokenLogprob] = []
        for at in range(0, len(query), self._max_sampled):
            part = slice(at, at + self._max_sampled)
            selected_S = self._device.upload(query[part])
            logits_SV = self._model.logits(self._ops, self._ops.select(hidden_TD, selected_S))
            scores = self._ops.score(logits_SV, tokens[part], top)
            wanted = np.full(len(selected_S), top)
            entries += token_logprobs(tokens[part].cpu().numpy(), scores, wanted).values()
        return tuple(entries)


class _Result:
    """A `StepResult` in the making."""

    def __init__(self, plan: StepPlan, rows: Rows) -> None:
        self.plan = plan
        self.rows = rows
        self.prompt_logprobs: dict[int, tuple[TokenLogprob, ...]] = {}
        self._tokens: IntArray | None = None
        self._counts: IntArray | None = None
        self._logprobs: dict[int, tuple[TokenLogprob, ...]] = {}
        self._failed: list[int] = []

    def take(self, chosen: Sampled, wanted: SampleInputs) -> None:
        """Sort the sampler's answer into rows; a row with a non-finite logit fails, and no token of it counts."""
        tokens = chosen.tokens_S.cpu().numpy()
        finite = chosen.finite_S.cpu().numpy()
        row = self.rows.sampled_row
        self._counts = accepted(self.plan, self.rows, tokens)
        if not finite.all():
            self._failed = sorted(set(row[~finite].tolist()))
            self._counts[self._failed] = 0
        if self.rows.decode:
            self._tokens = np.where(finite, tokens, -1).astype(np.int32)[:, None]
            stands = finite
        else:
            column = np.arange(len(row)) - self.rows.cu_s[row]
            stands = column < self._counts[row]
            self._tokens = np.full((len(self.plan.slots), int(self.rows.samples.max())), -1, dtype=np.int32)
            self._tokens[row[stands], column[stands]] = tokens[stands]
        if wanted.max_top >= 0:
            self._take_logprobs(tokens, chosen, wanted, stands)

    def _take_logprobs(self, tokens: np.ndarray, chosen: Sampled, wanted: SampleInputs, stands: np.ndarray) -> None:
        row = self.rows.sampled_row
        for at, entry in token_logprobs(tokens, chosen, wanted.top_S.cpu().numpy()).items():
            if stands[at]:
                self._logprobs[int(row[at])] = (*self._logprobs.get(int(row[at]), ()), entry)

    def finished(self, seconds: float) -> StepResult:
        """The result, with the step's duration."""
        rows = len(self.plan.slots)
        return StepResult(
            step=self.plan.step,
            model=self.plan.model,
            tokens=ints(np.full((rows, 1), -1)) if self._tokens is None else self._tokens,
            counts=ints(np.zeros(rows)) if self._counts is None else self._counts,
            logprobs=self._logprobs,
            prompt_logprobs=self.prompt_logprobs,
            errors={row: numerical_fault() for row in self._failed},
            seconds=seconds,
        )
