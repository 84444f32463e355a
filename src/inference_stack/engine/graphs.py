"""Decode steps as graphs: recorded once for each of a few batch sizes, when that size is first met, and replayed from then on.

    rows ─▶ (slot, start) of each row, filled up to the next size ─▶ one copy ─▶ replay: inputs, model, logits

A recording reads slot tables and lengths on the device, so that it serves whatever rows there are. Rows that fill it up know
nothing and write into a block that nobody owns. Steps with prompts run op by op: their work is large, and seldom the same.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from functools import partial

import numpy as np
import torch
from torch import Tensor

from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.engine.accelerator import Accelerator
from inference_stack.engine.inputs import Rows
from inference_stack.engine.slots import SlotTables
from inference_stack.engine.steps import Compute, EagerStep, StepOutput
from inference_stack.engine.streams import Graph
from inference_stack.models.api import Model
from inference_stack.ops.api import GroupTable, KvLayer, Ops, StepInputs
from inference_stack.telemetry.laps import Laps

log = logging.getLogger(__name__)

MOST_ROWS = 512


def sizes(rows: int) -> tuple[int, ...]:
    """Batch sizes that are recorded, for up to `rows` rows: 1, 2, 4, then multiples of 8 to 64, of 16 to 256, of 32 beyond."""
    ladder = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, MOST_ROWS + 1, 32)]
    top = min(rows, MOST_ROWS)
    return (*(size for size in ladder if size < top), top)


class Recorded:
    """One batch size's recording. `columns` int64 [2, size] are its rows' slots (-1: none) and first positions."""

    def __init__(self, columns: Tensor, graph: Graph, hidden_TD: Tensor, logits_SV: Tensor) -> None:
        self.columns = columns
        self.graph = graph
        self.hidden_TD = hidden_TD
        self.logits_SV = logits_SV


class GraphedStep:
    """Replays decode steps, and runs all others op by op. `parking[group]` is the entry of a block that nobody owns."""

    def __init__(
        self,
        model: Model,
        ops: Ops,
        kv: tuple[KvLayer, ...],
        tables: SlotTables,
        device: Accelerator,
        parking: tuple[int, ...],
        max_rows: int,
    ) -> None:
        self._model = model
        self._ops = ops
        self._kv = kv
        self._tables = tables
        self._device = device
        self._parking = parking
        self._sizes = sizes(max_rows)
        self._eager = EagerStep(model, ops, kv, tables, device)
        self._recorded: dict[int, Recorded] = {}
        self._unrecorded: set[int] = set()

    @property
    def recorded(self) -> tuple[int, ...]:
        """Batch sizes that were recorded so far."""
        return tuple(sorted(self._recorded))

    def stage(self, rows: Rows) -> Compute:
        """The rows' columns."""
        count = len(rows.slots)
        if not rows.decode or count > self._sizes[-1]:
            return self._eager.stage(rows)
        size = self._sizes[bisect_left(self._sizes, count)]
        columns = np.full((2, size), -1, dtype=np.int64)
        columns[0, :count], columns[1, :count] = rows.slots, rows.start
        return partial(self._compute, size, count, self._device.upload(columns))

    def _compute(self, size: int, count: int, columns_CR: Tensor, laps: Laps) -> StepOutput:
        recorded = self._recorded.get(size)
        if size in self._unrecorded:
            hidden_TD, logits_SV = self._work(columns_CR)
        elif recorded is None:
            hidden_TD, logits_SV = self._first(size, columns_CR)
        else:
            recorded.columns.copy_(columns_CR)
            laps.lap("inputs")
            recorded.graph.replay()
            hidden_TD, logits_SV = recorded.hidden_TD, recorded.logits_SV
        laps.lap("model")
        return StepOutput(hidden_TD[:count], logits_SV[:count])

    def _first(self, size: int, columns_CR: Tensor) -> tuple[Tensor, ...]:
        """This step op by op, so that kernels are compiled and libraries have made up their minds; then its recording. Without
        memory for that, steps of this size stay as they are."""
        self._device.untimed()
        columns = columns_CR.clone()
        work = partial(self._work, columns)
        results = work()
        try:
            graph, made = self._device.streams.record(work)
        except RuntimeError as error:
            log.warning("Steps of %d rows are not recorded, and slower for it: %s", size, error)
            self._unrecorded.add(size)
        else:
            self._recorded[size] = Recorded(columns, graph, *made)
        return results

    def _work(self, columns_CR: Tensor) -> tuple[Tensor, ...]:
        """What is recorded: nothing in it may read the device."""
        step = self._inputs(columns_CR)
        hidden_TD = self._model.forward(self._ops, step)
        return hidden_TD, self._model.logits(self._ops, self._ops.select(hidden_TD, step.sampled_S))

    def _inputs(self, columns_CR: Tensor) -> StepInputs:
        """One query a row, at the position that follows what is known."""
        slot_R, start_R = columns_CR
        live_R = slot_R >= 0
        slot_R, start_R = slot_R.clamp(min=0), start_R.clamp(min=0)
        size = len(slot_R)
        row_R = torch.arange(size, device=slot_R.device)
        block_R = start_R // BLOCK_TOKENS
        offset_R = start_R - block_R * BLOCK_TOKENS
        tables = tuple(
            GroupTable(
                entry_RB=entries[slot_R],
                entry_T=torch.where(live_R, entries[slot_R, block_R], parked),
                offset_T=offset_R,
            )
            for entries, parked in zip(self._tables.entries, self._parking, strict=True)
        )
        return StepInputs(
            tokens_T=self._tables.tokens[slot_R, start_R],
            positions_T=start_R,
            row_T=row_R,
            context_R=torch.where(live_R, start_R + 1, 0),
            cu_q_X=torch.arange(size + 1, device=slot_R.device),
            cu_q=(),
            context=(),
            kv=self._kv,
            tables=tables,
            sampled_S=row_R,
        )
