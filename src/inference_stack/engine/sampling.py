"""From slot parameters to the sampler's columns, and from its answer to per-row results.

Histories and bans are derived from tokens alone, so a continuation samples as the undisturbed run would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from inference_stack.core.seams import Device
from inference_stack.core.step import StepPlan, TokenLogprob
from inference_stack.engine.inputs import Rows
from inference_stack.engine.slots import SlotTables
from inference_stack.ops.api import Sampled, SampleInputs, Scored

Pairs = tuple[np.ndarray, np.ndarray]
NOTHING = np.zeros(0, dtype=np.int64)


def _join(pieces: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.asarray(piece, dtype=dtype) for piece in pieces]) if pieces else np.zeros(0, dtype=dtype)


def _histories(slots: np.ndarray, position: np.ndarray, tables: SlotTables) -> np.ndarray:
    """int64 [4, P]: row, slot, known tokens and prompt tokens of the rows whose choice depends on history."""
    row_P = np.flatnonzero([tables.params[slot].penalised for slot in slots])
    slot_P = slots[row_P]
    return np.array((row_P, slot_P, position[row_P], tables.prompt_len[slot_P]), dtype=np.int64)


def _bans(slots: np.ndarray, position: np.ndarray, tables: SlotTables, eos: tuple[int, ...]) -> Pairs:
    """(row, token) of stops that come too early for `min_tokens`."""
    rows, tokens = [], []
    for row, (slot, known) in enumerate(zip(slots, position, strict=True)):
        params = tables.params[slot]
        if known - tables.prompt_len[slot] < params.min_tokens:
            stops = {*params.stop_token_ids, *(() if params.ignore_eos else eos)}
            rows.append(np.full(len(stops), row))
            tokens.append(np.asarray(sorted(stops)))
    return _join(rows, np.int64), _join(tokens, np.int64)


def _biases(slots: np.ndarray, tables: SlotTables) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, token, bias) of every logit bias."""
    entries = [
        (row, tables.params[slot].logit_bias) for row, slot in enumerate(slots) if tables.params[slot].logit_bias
    ]
    rows = [np.full(len(bias), row) for row, bias in entries]
    tokens = [np.fromiter(bias.keys(), dtype=np.int64) for _, bias in entries]
    values = [np.fromiter(bias.values(), dtype=np.float32) for _, bias in entries]
    return _join(rows, np.int64), _join(tokens, np.int64), _join(values, np.float32)


def _tops(slots: np.ndarray, tables: SlotTables) -> np.ndarray:
    wanted = [tables.params[slot].logprobs for slot in slots]
    return np.asarray([-1 if count is None else count for count in wanted], dtype=np.int64)


class SampleColumns:
    """The sampler's columns, one entry per sampled position. Kept from step to step while the same requests decode."""

    def __init__(self, tables: SlotTables, eos: tuple[int, ...], vocab_size: int, device: Device) -> None:
        self._tables = tables
        self._eos = eos
        self._vocab_size = vocab_size
        self._device = device
        self._inputs: SampleInputs | None = None
        self._slots = np.zeros(0, dtype=np.int64)
        self._entered = -1
        self.tops = np.zeros(0, dtype=np.int64)

    def stage(self, plan: StepPlan, rows: Rows) -> Callable[[], SampleInputs]:
        """Upload a plan's columns; the call gives them, once they were sent. `tops` is the host's own `top_S` of them."""
        slots = rows.slots if rows.decode else rows.slots[rows.sampled_row]
        if self._inputs is not None and plan.grammar is None and self._same(slots):
            return partial(self._moved, self._inputs, self._device.upload(rows.sampled_position))
        lasting = plan.grammar is None and not any(self._changes(slot) for slot in slots)
        self._inputs, self._slots, self._entered = None, slots, self._tables.entered
        self.tops = _tops(slots, self._tables)
        history = _histories(slots, rows.sampled_position, self._tables)
        inputs = self._build(plan, rows, slots)
        if lasting:
            return partial(self._keep, inputs)
        return partial(self._with_history, inputs, self._device.upload(history), int(history[2].sum()))

    def _same(self, slots: np.ndarray) -> bool:
        """Whether these are the requests of the step before."""
        if self._entered != self._tables.entered or len(slots) != len(self._slots):
            return False
        return bool((slots == self._slots).all())

    def _changes(self, slot: int) -> bool:
        """Whether what a request asks for depends on how far it has got."""
        params = self._tables.params[slot]
        return params.penalised or params.min_tokens > 0

    def _moved(self, inputs: SampleInputs, position_S: Tensor) -> SampleInputs:
        inputs.position_S.copy_(position_S)
        return inputs

    def _keep(self, inputs: SampleInputs) -> SampleInputs:
        """The columns for this step and those after it: uploads last for one step only."""
        kept = {name: self._device.keep(column) for name, column in columns_of(inputs).items()}
        self._inputs = replace(inputs, **kept)
        return self._inputs

    def _with_history(self, inputs: SampleInputs, history_4P: Tensor, total: int) -> SampleInputs:
        """All `total` known tokens are looked up on the device, which may know them before the host does."""
        if not total:
            return inputs
        row_P, slot_P, known_P, prompt_P = history_4P
        tokens = self._tables.tokens
        first_P = known_P.cumsum(0) - known_P
        owner_N = torch.repeat_interleave(known_P, output_size=total)
        entry_N = torch.arange(total, device=owner_N.device)
        place_N = (slot_P * tokens.shape[1] - first_P).index_select(0, owner_N) + entry_N
        return replace(
            inputs,
            history_row=row_P.index_select(0, owner_N),
            history_token=tokens.view(-1).index_select(0, place_N),
            history_is_output=entry_N >= (first_P + prompt_P).index_select(0, owner_N),
        )

    def _build(self, plan: StepPlan, rows: Rows, slots: np.ndarray) -> SampleInputs:
        """All columns but histories."""
        tables, up, tops = self._tables, self._device.upload, self.tops
        columns = {name: values[slots] for name, values in tables.floats.items()}
        top_k, bias = tables.top_k[slots], _biases(slots, tables)
        bans = _bans(slots, rows.sampled_position, tables, self._eos)
        filtered = (top_k > 0) & (top_k < self._vocab_size) | (columns["top_p"] < 1) | (columns["min_p"] > 0)
        return SampleInputs(
            temperature_S=up(columns["temperature"]),
            top_k_S=up(top_k),
            top_p_S=up(columns["top_p"]),
            min_p_S=up(columns["min_p"]),
            repetition_S=up(columns["repetition_penalty"]),
            presence_S=up(columns["presence_penalty"]),
            frequency_S=up(columns["frequency_penalty"]),
            seed_S=up(tables.seed[slots].view(np.int64)),
            choice_S=up(tables.choice[slots]),
            position_S=up(rows.sampled_position.copy()),
            top_S=up(tops),
            history_row=up(NOTHING),
            history_token=up(NOTHING),
            history_is_output=up(NOTHING.astype(np.bool_)),
            bias_row=up(bias[0]),
            bias_token=up(bias[1]),
            bias_value=up(bias[2]),
            banned_row=up(bans[0]),
            banned_token=up(bans[1]),
            allowed_SW=None if plan.grammar is None else up(plan.grammar[rows.sampled_row].view(np.int32)),
            any_random=bool((columns["temperature"] > 0).any()),
            any_filtered=bool((filtered & (columns["temperature"] > 0)).any()),
            max_top=int(tops.max(initial=-1)),
        )


def columns_of(inputs: SampleInputs) -> dict[str, Tensor]:
    """The tensors among the columns, by name."""
    named = ((field.name, getattr(inputs, field.name)) for field in fields(inputs))
    return {name: value for name, value in named if isinstance(value, Tensor)}


def accepted(plan: StepPlan, rows: Rows, tokens: np.ndarray) -> np.ndarray:
    """How many of each row's sampled tokens stand: a draft stands if it equals the token sampled in its place, and the first
    sample after the last standing draft stands too. int32 [R]."""
    counts = plan.samples.copy()
    if plan.drafts is None:
        return counts
    for row, drafts in enumerate(plan.drafts):
        drafts = drafts[drafts >= 0]
        mine = tokens[rows.cu_s[row] : rows.cu_s[row + 1]]
        wrong = np.flatnonzero(drafts[: len(mine)] != mine[: len(drafts)])
        if len(wrong):
            counts[row] = wrong[0] + 1
    return counts


def score_columns(scores: Sampled | Scored) -> list[Tensor]:
    """Log-probabilities, ranks, best tokens and their log-probabilities; empty where they were not asked for."""
    columns = (scores.logprob_S, scores.rank_S, scores.top_ids_SK, scores.top_logprobs_SK)
    return [column for column in columns if column is not None]


def token_logprobs(tokens: np.ndarray, scores: Sequence[np.ndarray], wanted: np.ndarray) -> dict[int, TokenLogprob]:
    """Log-probabilities by sampled position, for those where `wanted` ≥ 0 alternatives are asked for; `scores` are the
    columns that `score_columns` names."""
    columns = [column.tolist() for column in scores]
    return {
        int(at): TokenLogprob(
            token=int(tokens[at]),
            logprob=columns[0][at],
            rank=columns[1][at],
            top=tuple(zip(columns[2][at][: wanted[at]], columns[3][at][: wanted[at]], strict=True)),
        )
        for at in np.flatnonzero(wanted >= 0)
    }
