"""Checks of whole models: every architecture on the device, against the CPU reference in fp32 from the same files.

Both walk through the same steps with the same tokens: chunks of prompts, decoding, several tokens at once. Logits of all
positions are compared, and the token that comes first among them wherever the runner-up is clearly behind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from bench.gpu.bound import Bench
from bench.gpu.check_rows import kv_types
from bench.gpu.findings import Findings
from bench.gpu.house import words, write_model
from bench.gpu.place import Place
from bench.gpu.shapes import EVERY_KIND, kind
from torch import Tensor

from inference_stack.artifacts.resolve import resolve
from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.engine.arena import ArenaLease
from inference_stack.engine.memory import arena_geometry
from inference_stack.models.api import LoadedModel
from inference_stack.models.loader import load_model
from inference_stack.ops.api import GroupTable, StepInputs
from inference_stack.ops.facade import BoundOps

LAYERS_BOUND = 2.0
"""Whole models may be off by so many times what one op may be: errors of layers add up, if slowly."""
DEMO_BOUND = 5.0
"""As above, for thirty layers of quantised weights."""
CLEAR = 6.0
"""The first token leads clearly where it does by more than so many times the bound, in logits of spread 1."""


class Walk:
    """A model on a device, stepped over rows that know their tokens; blocks are dealt in shuffled order, free memory is NaN."""

    def __init__(self, loaded: LoadedModel, ops: BoundOps, device: torch.device, kv: str, rows: int, most: int) -> None:
        self._model, self._ops, self._device = loaded.model, ops, device
        groups = loaded.model.kv_groups(kv)
        blocks = -(-most // BLOCK_TOKENS)
        wanted = sum(spec.block_bytes for spec in groups) * rows * blocks
        geometry, _ = arena_geometry(max(4 * wanted, 1 << 21), groups)
        arena = torch.full((geometry.arena_bytes,), 0xFF, dtype=torch.uint8, device=device)
        lease = ArenaLease(arena, geometry, groups)
        self._kv = lease.layers()
        self._entries = []
        for number, group in enumerate(lease.groups):
            start = number * (geometry.slab_count // len(groups)) * group.blocks_per_slab
            dealt = torch.randperm(rows * blocks, generator=torch.Generator().manual_seed(5)) + start
            self._entries.append(torch.from_numpy(group.entry_of(dealt.numpy())).view(rows, blocks))
        self._known = [0] * rows

    @torch.inference_mode()
    def step(self, queries: Sequence[Sequence[int]]) -> Tensor:
        """Compute these tokens of each row, which may be none; logits_TV of all of them, on the CPU."""
        inputs = self._inputs(queries)
        hidden_TD = self._model.forward(self._ops, inputs)
        logits_TV = self._model.logits(self._ops, self._ops.select(hidden_TD, inputs.sampled_S))
        for row, tokens in enumerate(queries):
            self._known[row] += len(tokens)
        return logits_TV.to("cpu", torch.float64, copy=True)

    def _inputs(self, queries: Sequence[Sequence[int]]) -> StepInputs:
        live = [row for row, tokens in enumerate(queries) if tokens]
        spans = [range(self._known[row], self._known[row] + len(queries[row])) for row in live]
        position_T = torch.tensor([position for span in spans for position in span])
        row_T = torch.tensor([index for index, span in enumerate(spans) for _ in span])
        ends = torch.tensor([0, *map(len, spans)]).cumsum(0)
        context = tuple(span.stop for span in spans)
        there = self._device
        return StepInputs(
            tokens_T=torch.tensor([token for row in live for token in queries[row]]).to(there),
            positions_T=position_T.to(there), row_T=row_T.to(there), context_R=torch.tensor(context).to(there),
            cu_q_X=ends.to(there), cu_q=tuple(ends.tolist()), context=context, kv=self._kv,
            tables=tuple(self._table(entries[live], row_T, position_T) for entries in self._entries),
            sampled_S=torch.arange(len(position_T)).to(there),
        )  # fmt: skip

    def _table(self, entry_RB: Tensor, row_T: Tensor, position_T: Tensor) -> GroupTable:
        entry_T = entry_RB[row_T, position_T // BLOCK_TOKENS]
        there = self._device
        return GroupTable(
            entry_RB=entry_RB.to(there), entry_T=entry_T.to(there), offset_T=(position_T % BLOCK_TOKENS).to(there)
        )


def check_models(bench: Bench, found: Findings) -> None:
    """A tiny model of every architecture, in both modes."""
    names = list(EVERY_KIND)[::3] if bench.place.tiny else list(EVERY_KIND)
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            with found.guard(f"model {name}"):
                path = write_model(kind(name), Path(folder) / str(number), number)
                _model(bench, found, f"model {name}", path)


def _model(bench: Bench, found: Findings, title: str, path: Path) -> None:
    lengths = (30, 17) if bench.place.tiny else (150, 33, 257)
    for deterministic in bench.modes("attend"):
        mine, theirs = _walk(bench, path, len(lengths), deterministic), _reference(path, len(lengths))
        mode = ", deterministic" if deterministic else ""
        bound = bench.bound * LAYERS_BOUND
        if not bench.graphs("linear"):
            bound = max(bound, 5e-2)  # what is quantised meets activations of eight bits there
        compare(found, f"{title}{mode}", mine, theirs, lengths, bound)


def _walk(bench: Bench, path: Path, rows: int, deterministic: bool) -> Walk:
    ops = bench.ops(deterministic)
    files = resolve(str(path), path, offline=True)
    loaded = load_model(files, device=bench.place.device, prepare=ops.prepare, max_positions=512)
    return Walk(loaded, ops, bench.place.device, kv_types(bench)[0], rows, 320)


def _reference(path: Path, rows: int) -> Walk:
    """On the CPU, in fp32 throughout."""
    cpu = Bench(Place(torch.device("cpu"), tiny=True), "reference")
    files = resolve(str(path), path, offline=True)
    ops = cpu.ops(spoilt=False)
    loaded = load_model(files, dtype=torch.float32, dequantise=True, prepare=ops.prepare, max_positions=512)
    return Walk(loaded, ops, torch.device("cpu"), "float32", rows, 320)


def compare(
    found: Findings, title: str, mine: Walk, theirs: Walk, lengths: Sequence[int], bound: float, decoded: int = 4
) -> None:
    """Both through chunks of prompts, decode steps with the reference's greedy tokens, and a step of three tokens a row."""
    prompts = [words(length, 300, row) for row, length in enumerate(lengths)]
    pairs, done = [], 0
    logits: Tensor = torch.empty(0)
    while done < max(lengths):
        queries = [prompt[done : done + 64] for prompt in prompts]
        pairs.append((mine.step(queries), logits := theirs.step(queries)))
        done += 64
    chosen = logits.new_zeros(len(lengths), dtype=torch.int64) + 5
    for _ in range(decoded):
        queries = [[int(token)] for token in chosen]
        pairs.append((mine.step(queries), logits := theirs.step(queries)))
        chosen = logits.argmax(-1)
    queries = [[int(token), 7, 11] for token in chosen]
    pairs.append((mine.step(queries), theirs.step(queries)))
    out, wanted = torch.cat([one for one, _ in pairs]), torch.cat([other for _, other in pairs])
    found.close(f"{title}: logits", out, wanted, bound)
    agree, clear = leaders(out, wanted, bound)
    found.say(f"{title}: first tokens", agree == clear > 0, f"{agree} of {clear} that lead clearly, of {len(out)}")


def leaders(out_TV: Tensor, wanted_TV: Tensor, bound: float) -> tuple[int, int]:
    """Positions at which the best token is the same, of those at which the reference's best leads clearly; and these."""
    best = wanted_TV.topk(2, dim=-1)
    clear = best.values[:, 0] - best.values[:, 1] > CLEAR * bound * wanted_TV.std(-1)
    same = out_TV.argmax(-1) == best.indices[:, 0]
    return int((same & clear).sum()), int(clear.sum())


def check_demo(bench: Bench, found: Findings, path: Path) -> None:
    """A real model's file: prompts and greedy decoding, beside the CPU reference."""
    with found.guard(f"demo model {path.name}"):
        lengths, bound = (40, 90), bench.bound * DEMO_BOUND
        if not bench.graphs("linear"):
            bound = 5e-2
        mine, theirs = _walk(bench, path, len(lengths), True), _reference(path, len(lengths))
        compare(found, f"demo model {path.name}", mine, theirs, lengths, bound, 8 if bench.place.tiny else 24)
