"""From a plan's columns to a step's device tensors.

Positions, token ids and addresses are computed on the device from slot tables; the host sends a few integers per row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.core.seams import Device
from inference_stack.core.step import StepPlan
from inference_stack.engine.slots import SlotTables
from inference_stack.ops.api import GroupTable, KvLayer, StepInputs


class Rows:
    """A plan's rows (int64 columns) with what follows from them on the host.

    `cu_q`, `cu_s` [R+1] are running sums of queries and samples; `context` [R] is how many tokens of KV each row's last query
    sees. For each sampled position, in row order: `sampled_row`, `sampled_query` (its query token's index in the step) and
    `sampled_position` (the position that the sampled token will take). `decode`: every row computes and samples one token.
    """

    __slots__ = (
        "context", "cu_q", "cu_s", "decode", "num_tokens", "sampled_position", "sampled_query", "sampled_row", "samples",
        "slots", "start",
    )  # fmt: skip

    def __init__(self, plan: StepPlan) -> None:
        columns = np.array((plan.slots, plan.start, plan.num_tokens, plan.samples), dtype=np.int64)
        self.slots, self.start, self.num_tokens, self.samples = columns
        self.context = self.start + self.num_tokens
        self.decode = bool((columns[2:] == 1).all())
        if self.decode:
            self.cu_q = self.cu_s = np.arange(len(self.slots) + 1)
            self.sampled_row = self.sampled_query = self.cu_q[:-1]
            self.sampled_position = self.context
            return
        self.cu_q, self.cu_s = (np.concatenate(([0], np.cumsum(column))) for column in (self.num_tokens, self.samples))
        self.sampled_row = row = np.repeat(np.arange(len(self.slots)), self.samples)
        back = self.cu_s[row + 1] - np.arange(len(row))  # 1 for a row's last sample
        self.sampled_query = self.cu_q[row + 1] - back
        self.sampled_position = self.context[row] - back + 1


def stage_drafts(plan: StepPlan, rows: Rows, tables: SlotTables, device: Device) -> Callable[[], None] | None:
    """Upload a plan's draft tokens; the call then puts them where the forward pass will read them: the last positions of
    their rows. None where there are none."""
    if plan.drafts is None:
        return None
    row, column = np.nonzero(plan.drafts >= 0)
    count = (plan.drafts >= 0).sum(axis=1)
    position = rows.context[row] - count[row] + column
    write = tables.writer(rows.slots[row], position)
    return partial(write, device.upload(plan.drafts[row, column].astype(np.int64)))


class RowColumns:
    """A step's rows, uploaded."""

    __slots__ = ("context", "cu_q", "first", "num_tokens", "rows", "sampled_query", "slots")

    def __init__(self, rows: Rows, device: Device) -> None:
        self.rows = rows
        self.slots = device.upload(rows.slots)
        self.num_tokens = device.upload(rows.num_tokens)
        self.first = device.upload(rows.start - rows.cu_q[:-1])
        self.context = device.upload(rows.context)
        self.cu_q = device.upload(rows.cu_q)
        self.sampled_query = device.upload(rows.sampled_query)


def build_inputs(columns: RowColumns, tables: SlotTables, kv: tuple[KvLayer, ...]) -> StepInputs:
    """The step's tensors, made on the device."""
    rows = columns.rows
    tokens = int(rows.cu_q[-1])
    row_T = torch.repeat_interleave(columns.num_tokens, output_size=tokens)
    positions_T = torch.arange(tokens, device=row_T.device) + columns.first[row_T]
    slot_T = columns.slots[row_T]
    blocks = -(-int(rows.context.max()) // BLOCK_TOKENS)
    block_T = positions_T // BLOCK_TOKENS
    offset_T = positions_T - block_T * BLOCK_TOKENS
    return StepInputs(
        tokens_T=tables.tokens[slot_T, positions_T],
        positions_T=positions_T,
        row_T=row_T,
        context_R=columns.context,
        cu_q_X=columns.cu_q,
        cu_q=tuple(rows.cu_q.tolist()),
        context=tuple(rows.context.tolist()),
        kv=kv,
        tables=tuple(
            GroupTable(entry_RB=entries[columns.slots, :blocks], entry_T=entries[slot_T, block_T], offset_T=offset_T)
            for entries in tables.entries
        ),
        sampled_S=columns.sampled_query,
    )
