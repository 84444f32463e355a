"""Runs a model on real paged KV without an engine: an arena, block tables with shuffled blocks, and one step at a
time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.models.api import Model
from inference_stack.ops.api import GroupTable, KvLayer, StepInputs
from inference_stack.ops.facade import BoundOps
from inference_stack.ops.purity import only_ops

GRANULE = 512


class PagedModel:
    """A model and the KV memory of `rows` sequences. Blocks are dealt in shuffled order; unused memory is NaN."""

    def __init__(self, model: Model, ops: BoundOps, rows: int, max_tokens: int) -> None:
        self.model, self.ops = model, ops
        self.blocks = -(-max_tokens // BLOCK_TOKENS)
        self.known = [0] * rows
        shuffle = torch.Generator().manual_seed(7)
        kv: dict[int, KvLayer] = {}
        self.entries: list[Tensor] = []
        for index, spec in enumerate(model.kv_groups("float32")):
            arena = _arena(spec, rows * self.blocks)
            for place, layer in enumerate(spec.layers):
                kv[layer] = _layer(spec, arena, index, place, rows * self.blocks)
            order = torch.randperm(rows * self.blocks, generator=shuffle).view(rows, self.blocks)
            self.entries.append(order * (spec.unit_bytes // GRANULE))
        self.kv = tuple(kv[layer] for layer in sorted(kv))

    @torch.inference_mode()
    def step(self, queries: Sequence[Sequence[int]]) -> Tensor:
        """Compute these tokens of each row (which may be none) in one step; logits_TV of all of them."""
        inputs = self._inputs(queries)
        with only_ops(self.ops):
            hidden_TD = self.model.forward(self.ops, inputs)
            logits_TV = self.model.logits(self.ops, self.ops.select(hidden_TD, inputs.sampled_S))
        for row, tokens in enumerate(queries):
            self.known[row] += len(tokens)
        return logits_TV.clone()

    def greedy(self, prompts: Sequence[Sequence[int]], count: int, chunk: int) -> list[list[int]]:
        """Prefill in chunks, all rows together, then decode `count` tokens each."""
        last: dict[int, int] = {}
        while any(self.known[row] < len(prompt) for row, prompt in enumerate(prompts)):
            queries = [prompt[self.known[row] : self.known[row] + chunk] for row, prompt in enumerate(prompts)]
            last |= _last_choices(self.step(queries), queries)
        emitted = [[last[row]] for row in range(len(prompts))]
        for _ in range(count - 1):
            queries = [[tokens[-1]] for tokens in emitted]
            for row, token in _last_choices(self.step(queries), queries).items():
                emitted[row].append(token)
        return emitted

    def _inputs(self, queries: Sequence[Sequence[int]]) -> StepInputs:
        live = [row for row, tokens in enumerate(queries) if tokens]
        positions = [range(self.known[row], self.known[row] + len(queries[row])) for row in live]
        position_T = torch.tensor([p for span in positions for p in span])
        row_T = torch.tensor([index for index, span in enumerate(positions) for _ in span])
        context = tuple(span.stop for span in positions)
        ends = torch.tensor([0, *(len(span) for span in positions)]).cumsum(0)
        return StepInputs(
            tokens_T=torch.tensor([token for row in live for token in queries[row]]),
            positions_T=position_T,
            row_T=row_T,
            context_R=torch.tensor(context),
            cu_q_X=ends,
            cu_q=tuple(ends.tolist()),
            context=context,
            kv=self.kv,
            tables=tuple(_table(entries[live], row_T, position_T) for entries in self.entries),
            sampled_S=torch.arange(len(position_T)),
        )


def _arena(spec: KvGroupSpec, blocks: int) -> Tensor:
    size = blocks * spec.block_bytes
    return torch.full((size // 4,), torch.nan).view(torch.uint8)


def _layer(spec: KvGroupSpec, arena: Tensor, group: int, place: int, blocks: int) -> KvLayer:
    return KvLayer(
        arena=arena,
        group=group,
        offset_bytes=place * blocks * spec.unit_bytes,
        granule_bytes=GRANULE,
        unit_bytes=spec.unit_bytes,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        dtype=torch.float32,
        window=spec.window,
    )


def _table(entry_RB: Tensor, row_T: Tensor, position_T: Tensor) -> GroupTable:
    return GroupTable(
        entry_RB=entry_RB,
        entry_T=entry_RB[row_T, position_T // BLOCK_TOKENS],
        offset_T=position_T % BLOCK_TOKENS,
    )


def _last_choices(logits_TV: Tensor, queries: Sequence[Sequence[int]]) -> dict[int, int]:
    """The greedy token after each row's last query."""
    chosen, end = {}, 0
    for row, tokens in enumerate(queries):
        end += len(tokens)
        if tokens:
            chosen[row] = int(logits_TV[end - 1].argmax())
    return chosen
