"""Checks of attention: every kind of step, shapes of heads, types of KV, windows, soft caps, sinks, and blocks far away.

Queries get K and V that this package stored itself. All memory that nobody may see is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from bench.gpu import oracle
from bench.gpu.bound import Bench
from bench.gpu.check_rows import kv_types
from bench.gpu.findings import Findings
from bench.gpu.paged import Cache, Part

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.engine.arena import TORCH_DTYPES

FAR_BYTES = 9 << 30
"""Beyond what 32 bits count, in bytes and in numbers of two bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call of attention."""

    title: str
    kind: str = "mixed"
    heads: tuple[int, int, int] = (32, 8, 128)
    dtype: str = "bfloat16"
    window: int | None = None
    softcap: float = 0.0
    sinks: bool = False
    spare: int = 0


def check_attention(bench: Bench, found: Findings) -> None:
    """Every case, in the default and in the deterministic mode."""
    for case in cases(bench):
        for deterministic in bench.modes("attend"):
            title = f"attend {case.title}{', deterministic' if deterministic else ''}"
            with found.guard(title):
                _attend(bench, found, title, case, deterministic)


def cases(bench: Bench) -> list[Case]:
    """What is checked, fewer and smaller where the place is tiny."""
    tiny, own = bench.place.tiny, kv_types(bench)[0]
    shapes = [(4, 2, 32)] if tiny else [(32, 8, 128), (28, 4, 128), (9, 3, 64), (32, 4, 128), (64, 8, 64), (8, 4, 256)]
    kinds = ["decode", "recorded", "verify", "prompt", "chunk", "mixed"]
    kinds = [kind for kind in kinds if kind != "recorded" or bench.graphs("attend")]
    made = [
        Case(title=f"{kind}, {_shape(shape)}", kind=kind, heads=shape, dtype=own) for shape in shapes for kind in kinds
    ]
    first = shapes[0]
    for name in kv_types(bench)[1:]:
        made += [
            Case(title=f"{kind}, KV in {name}", kind=kind, heads=first, dtype=name) for kind in ("decode", "chunk")
        ]
    for kind in kinds:
        made.append(Case(title=f"{kind}, window", kind=kind, heads=first, dtype=own, window=20 if tiny else 128))
        made.append(Case(title=f"{kind}, softcap", kind=kind, heads=first, dtype=own, softcap=2.5))
        made.append(Case(title=f"{kind}, sinks", kind=kind, heads=first, dtype=own, sinks=True))
        made.append(Case(title=f"{kind}, window and sinks", kind=kind, heads=first, dtype=own, window=33, sinks=True))
    if bench.place.on_card and bench.place.free() > 3 * FAR_BYTES:
        made += [
            Case(title=f"{kind}, far blocks", kind=kind, dtype=own, spare=FAR_BYTES // 2)
            for kind in ("decode", "chunk")
        ]
    return made


def _shape(heads: tuple[int, int, int]) -> str:
    return f"{heads[0]}/{heads[1]} heads of {heads[2]}"


def parts_of(kind: str, tiny: bool) -> list[Part]:
    """Rows of a step whose contexts lie on, before and behind the bounds of blocks and tiles."""
    lengths = (1, 16, 17, 45) if tiny else (1, 15, 16, 17, 127, 128, 129, 1000, 2049)
    if kind in ("decode", "recorded"):
        return [Part(row, length - 1, length) for row, length in enumerate(lengths)]
    if kind == "verify":
        return [Part(row, max(length - 5, 0), length) for row, length in enumerate(lengths)]
    if kind == "prompt":
        return [Part(row, 0, length) for row, length in enumerate((7, 40) if tiny else (3, 129, 300, 1025))]
    if kind == "chunk":
        return [Part(0, 16, 45)] if tiny else [Part(0, 100, 357), Part(1, 1024, 1153), Part(2, 2000, 2049)]
    mixed = [Part(0, 16, 17), Part(1, 5, 40), Part(2, 0, 9)]
    return mixed if tiny else [Part(0, 999, 1000), Part(1, 77, 333), Part(2, 0, 65), Part(3, 2044, 2049), Part(4, 0, 1)]


def _attend(bench: Bench, found: Findings, title: str, case: Case, deterministic: bool) -> None:
    q_heads, _, width = case.heads
    parts = parts_of(case.kind, bench.place.tiny)
    cache = filled(bench, case, parts)
    graph = case.kind == "recorded"
    step = cache.step(parts, padding=3 if graph else 0, graph=graph, width=cache.blocks + 9)
    q = bench.random(len(step.tokens_T), q_heads, width, seed=21)
    sinks = bench.place.random(q_heads, seed=22, dtype=torch.float32) if case.sinks else None
    scale = width**-0.5
    out = bench.ops(deterministic).attend(q, cache.kv, step, scale, case.softcap, sinks)
    wanted, at = [], 0
    for part in parts:
        k, v = cache.load(part.row, part.stop)
        mine = q[at : (at := at + part.stop - part.start)]
        wanted.append(oracle.attention(mine, k, v, scale, window=case.window, softcap=case.softcap, sinks_H=sinks))
    found.close(title, out[:at], torch.cat(wanted), bench.bound)
    if graph:
        found.say(f"{title}: rows that fill it up", bool(torch.isfinite(out[at:]).all()), "must stay finite")


def filled(bench: Bench, case: Case, parts: Sequence[Part]) -> Cache:
    """Memory in which the rows of these parts know all their positions."""
    _, kv_heads, width = case.heads
    spec = KvGroupSpec(
        name="kv", layers=(0,), kv_heads=kv_heads, head_dim=width, dtype=case.dtype, window=case.window
    )  # fmt: skip
    rows, most = max(part.row for part in parts) + 1, max(part.stop for part in parts)
    cache = Cache(spec, TORCH_DTYPES[case.dtype], rows, most, bench.place.device, case.spare, bench.layout)
    draw = torch.Generator().manual_seed(20)
    for part in parts:
        k, v = (torch.randn(part.stop, kv_heads, width, generator=draw) for _ in "kv")
        cache.store(part.row, k, v)
        if case.window is not None:
            _hide(cache, part, case.window)
    return cache


def _hide(cache: Cache, part: Part, window: int) -> None:
    """What the window hides from all queries of a part may be anything: whole blocks of it become NaN."""
    gone = max(part.start - window + 1, 0) // 16
    if not gone:
        return
    kv = cache.kv
    first = cache.entries[part.row, :gone] + kv.offset_bytes // kv.granule_bytes
    granules = (first[:, None] + torch.arange(kv.unit_bytes // kv.granule_bytes)).reshape(-1)
    kv.arena.view(-1, kv.granule_bytes)[granules.to(kv.arena.device)] = 0xFF
