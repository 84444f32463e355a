"""How one step of the model is executed: op by op, or as a recording of it that is replayed.

    EagerStep      Rows ─▶ StepInputs of the step's size ─▶ model.forward, model.logits
    RecordedStep   Rows ─▶ numbers into inputs of the largest size, at fixed addresses ─▶ one native call

Both leave hidden states and logits in the workspace. The recording was made by the same model code; it is never written down twice.
`engine/graphs.py` has a third kind, for devices that record by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.core.seams import Device
from inference_stack.engine.inputs import RowColumns, Rows, build_inputs
from inference_stack.engine.slots import SlotTables
from inference_stack.models.api import Model
from inference_stack.ops.api import GroupTable, KvLayer, Ops, StepInputs
from inference_stack.ops.facade import Recorder
from inference_stack.telemetry.laps import Laps


@dataclass(frozen=True, slots=True)
class StepOutput:
    """hidden_TD (and perhaps rows beyond T), and logits_SV of the sampled tokens (None when there are none). Valid until the next
    step."""

    hidden_TD: Tensor
    logits_SV: Tensor | None


Compute = Callable[[Laps], StepOutput]


class ModelStep(Protocol):
    """Runs the model over a step's rows."""

    def stage(self, rows: Rows) -> Compute:
        """Upload what the step needs; the call, once that was sent and the slot tables are up to date, computes it."""
        ...


class EagerStep:
    """Every op is called when the model calls it."""

    def __init__(self, model: Model, ops: Ops, kv: tuple[KvLayer, ...], tables: SlotTables, device: Device) -> None:
        self._model = model
        self._ops = ops
        self._kv = kv
        self._tables = tables
        self._device = device

    def stage(self, rows: Rows) -> Compute:
        """The rows' columns."""
        return partial(self._compute, RowColumns(rows, self._device))

    def _compute(self, columns: RowColumns, laps: Laps) -> StepOutput:
        inputs = build_inputs(columns, self._tables, self._kv)
        laps.lap("inputs")
        hidden_TD = self._model.forward(self._ops, inputs)
        logits_SV = None
        if len(columns.rows.sampled_row):
            logits_SV = self._model.logits(self._ops, self._ops.select(hidden_TD, inputs.sampled_S))
        laps.lap("model")
        return StepOutput(hidden_TD, logits_SV)


class FixedInputs:
    """`StepInputs` of the largest step, whose memory every step fills as far as it needs. Lives on the host."""

    def __init__(self, kv: tuple[KvLayer, ...], tables: SlotTables, tokens: int, rows: int, samples: int) -> None:
        blocks = tables.entries[0].shape[1]
        zeros = {name: torch.zeros(tokens, dtype=torch.int64) for name in ("tokens", "positions", "row", "offset")}
        context_R, cu_q_X, sampled_S = (torch.zeros(size, dtype=torch.int64) for size in (rows, rows + 1, samples))
        groups = [
            (torch.zeros((rows, blocks), dtype=torch.int64), torch.zeros(tokens, dtype=torch.int64))
            for _ in tables.entries
        ]
        self.inputs = StepInputs(
            tokens_T=zeros["tokens"],
            positions_T=zeros["positions"],
            row_T=zeros["row"],
            context_R=context_R,
            cu_q_X=cu_q_X,
            cu_q=(),
            context=(),
            kv=kv,
            tables=tuple(
                GroupTable(entry_RB=entry_RB, entry_T=entry_T, offset_T=zeros["offset"]) for entry_RB, entry_T in groups
            ),
            sampled_S=sampled_S,
        )
        self._row, self._positions, self._offset = (zeros[name].numpy() for name in ("row", "positions", "offset"))
        self._tokens = zeros["tokens"].numpy()
        self._context, self._cu_q, self._sampled = (column.numpy() for column in (context_R, cu_q_X, sampled_S))
        self._groups = [(entry_RB.numpy(), entry_T.numpy()) for entry_RB, entry_T in groups]
        self._known = tables.tokens.numpy()
        self._entries = [entries.numpy() for entries in tables.entries]

    def fill(self, rows: Rows) -> None:
        """The columns of one step."""
        count, tokens = len(rows.slots), int(rows.cu_q[-1])
        if rows.decode:
            slot, positions = rows.slots, rows.start
            self._row[:tokens] = rows.sampled_row
        else:
            row = self._row[:tokens] = np.repeat(np.arange(count), rows.num_tokens)
            slot, positions = rows.slots[row], np.arange(tokens) + (rows.start - rows.cu_q[:-1])[row]
        self._positions[:tokens] = positions
        np.bitwise_and(positions, BLOCK_TOKENS - 1, out=self._offset[:tokens])
        self._tokens[:tokens] = self._known[slot, positions]
        self._context[:count] = rows.context
        self._cu_q[: count + 1] = rows.cu_q
        self._sampled[: len(rows.sampled_query)] = rows.sampled_query
        block, width = positions // BLOCK_TOKENS, -(-int(rows.context.max()) // BLOCK_TOKENS)
        for (entry_RB, entry_T), entries in zip(self._groups, self._entries, strict=True):
            entry_T[:tokens] = entries[slot, block]
            entry_RB[:count, :width] = entries[rows.slots, :width]


class RecordedStep:
    """The model's step as one native call. Made once the workspace is sealed; `native` is called before each call."""

    def __init__(
        self,
        model: Model,
        ops: Ops,
        recorder: Recorder,
        inputs: FixedInputs,
        limits: tuple[int, int],
        native: Callable[[], None],
    ) -> None:
        max_tokens, max_samples = limits
        self._inputs = inputs
        self._native = native
        with recorder.record(max_tokens, max_samples) as finish:
            self._hidden_TD = model.forward(ops, inputs.inputs)
            self._logits_SV = model.logits(ops, ops.select(self._hidden_TD, inputs.inputs.sampled_S))
            self.recording = finish()
        # Made once per count: slicing a tensor costs more than it should between two steps.
        self._outputs: dict[int, StepOutput] = {0: StepOutput(self._hidden_TD, None)}

    def stage(self, rows: Rows) -> Compute:
        """Nothing: the inputs are on the host."""
        return partial(self._compute, rows)

    def _compute(self, rows: Rows, laps: Laps) -> StepOutput:
        self._inputs.fill(rows)
        laps.lap("inputs")
        tokens, samples = int(rows.cu_q[-1]), len(rows.sampled_row)
        self._native()
        self.recording.run(tokens, len(rows.slots), samples)
        laps.lap("model")
        if samples not in self._outputs:
            self._outputs[samples] = StepOutput(self._hidden_TD, self._logits_SV[:samples])
        return self._outputs[samples]
