"""Checks of the ops that work on rows: embedding, norms, activations, selection, and rotary positions with the store of KV."""

from __future__ import annotations

import torch
from bench.gpu import oracle
from bench.gpu.bound import Bench
from bench.gpu.findings import Findings
from bench.gpu.paged import Cache, Part
from torch import Tensor

from inference_stack.core.kv_spec import DTYPE_BYTES, KvGroupSpec
from inference_stack.engine.arena import TORCH_DTYPES
from inference_stack.ops.api import HeadSpec, Linear, Rope

EPS = 1e-5
KV_BOUNDS = {"int8": 1.5e-2, "float8": 4e-2, "bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-3}
"""What storing alone may cost: eight bits with a scale for each token and head, or fp8's three of mantissa."""

TRUNCATED = 0.2
"""Of fp8 in Triton's interpreter, which does not round."""


def check_rows(bench: Bench, found: Findings) -> None:
    """Every op of rows, at widths and counts of rows that no tile divides."""
    widths = (48, 80) if bench.place.tiny else (576, 3584, 4096, 5120)
    counts = (1, 7) if bench.place.tiny else (1, 7, 333)
    for width in widths:
        for rows in counts:
            with found.guard(f"rows {rows}×{width}"):
                _norms(bench, found, rows, width)
                _rest(bench, found, rows, width)
    with found.guard("embed"):
        _embed(bench, found, 97 if bench.place.tiny else 49157, widths[0])


def _norms(bench: Bench, found: Findings, rows: int, width: int) -> None:
    ops, title = bench.ops(), f"{rows}×{width}"
    weight = bench.place.random(width, seed=3, dtype=torch.float32) * 0.5 + 1
    x, residual = bench.random(rows, width, seed=1), bench.random(rows, width, seed=2)
    whole = oracle.double(x) + oracle.double(residual)
    found.close(f"rmsnorm {title}", ops.rmsnorm(x, weight, EPS), oracle.rmsnorm(x, weight, EPS), bench.bound)
    normed, total = ops.add_rmsnorm(x, residual, weight, EPS)
    found.close(f"add_rmsnorm {title}: norm", normed, oracle.rmsnorm(whole, weight, EPS), bench.bound)
    found.close(f"add_rmsnorm {title}: sum", total, whole, bench.bound)
    wide = bench.random(rows, 2 * width, seed=5)[:, width:]
    found.close(
        f"rmsnorm {title}, part of wider rows",
        ops.rmsnorm(wide, weight, EPS),
        oracle.rmsnorm(wide, weight, EPS),
        bench.bound,
    )


def _rest(bench: Bench, found: Findings, rows: int, width: int) -> None:
    ops, title = bench.ops(), f"{rows}×{width}"
    both = bench.random(rows, 2 * width, seed=4)
    for kind in ("silu", "gelu_tanh"):
        found.close(f"act_mul {kind} {title}", ops.act_mul(both, kind), oracle.gated(both, kind), bench.bound)
    chosen = torch.arange(rows - 1, -1, -2, device=bench.place.device)
    found.same(f"select {title}", ops.select(both, chosen), both[chosen])


def _embed(bench: Bench, found: Findings, vocabulary: int, width: int) -> None:
    table = Linear(weight=bench.random(vocabulary, width, seed=6), looked_up=True)
    numbers = oracle.dense(table.weight)  # type: ignore[arg-type]
    ops = bench.ops()
    ops.prepare(table)
    tokens = torch.randint(vocabulary, (19,), generator=torch.Generator().manual_seed(1))
    tokens[0], tokens[1] = vocabulary - 1, 0
    for scale in (1.0, 8.5):
        out = ops.embed(tokens.to(bench.place.device), table, scale)
        found.close(f"embed, scale {scale}", out, numbers[tokens] * scale, bench.bound)


def kv_types(bench: Bench) -> list[str]:
    """The types in which KV can be stored, the activations' own first."""
    own = str(bench.type).removeprefix("torch.")
    known = [name for name in DTYPE_BYTES if name in TORCH_DTYPES and bench.ops().refuses_kv(name) is None]
    return sorted(known, key=lambda name: name != own)


def check_rope(bench: Bench, found: Findings) -> None:
    """q, and what is stored of k and v, for every type of KV; nothing else may be written."""
    shapes = [(4, 2, 32)] if bench.place.tiny else [(32, 8, 128), (9, 3, 64), (8, 4, 256)]
    for q_heads, kv_heads, width in shapes:
        for name in kv_types(bench):
            for normed in (False, True):
                title = f"rope_store {q_heads}/{kv_heads} heads of {width}, {name}{', normed' if normed else ''}"
                with found.guard(title):
                    _rope(bench, found, title, _heads(bench, q_heads, kv_heads, width, normed), name)


def _heads(bench: Bench, q_heads: int, kv_heads: int, width: int, normed: bool) -> HeadSpec:
    norms = [bench.place.random(width, seed=seed, dtype=torch.float32) * 0.3 + 1 for seed in (1, 2)]
    inverse = 1e4 ** -(torch.arange(0, width, 2).double() / width)
    angle = torch.cat([torch.arange(4096).double()[:, None] * inverse] * 2, dim=1)
    rope = Rope(cos_PE=angle.cos().float().to(bench.place.device), sin_PE=angle.sin().float().to(bench.place.device))
    return HeadSpec(
        q_heads=q_heads, kv_heads=kv_heads, head_dim=width, rope=rope,
        q_norm_E=norms[0] if normed else None, k_norm_E=norms[1] if normed else None,
    )  # fmt: skip


def _rope(bench: Bench, found: Findings, title: str, heads: HeadSpec, name: str) -> None:
    spec = KvGroupSpec(name="kv", layers=(0,), kv_heads=heads.kv_heads, head_dim=heads.head_dim, dtype=name)
    cache = Cache(spec, TORCH_DTYPES[name], 3, 70, bench.place.device, layout=bench.layout)
    parts = [Part(0, 0, 33), Part(1, 15, 16), Part(2, 30, 47)]
    step = cache.step(parts)
    qkv = bench.random(len(step.tokens_T), (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim, seed=9)
    before = cache.kv.arena.clone()
    q = bench.ops().rope_store(qkv, heads, cache.kv, step)
    wanted_q, wanted_k, wanted_v = oracle.rotated(qkv, heads, step.positions_T)
    found.close(f"{title}: q", q, wanted_q, bench.bound)
    at, bound = 0, max(KV_BOUNDS[name], bench.bound)
    if name == "float8" and not bench.place.on_card:
        bound = TRUNCATED
    for part in parts:
        here = slice(at, at := at + part.stop - part.start)
        k, v = cache.load(part.row, part.stop)
        found.close(f"{title}: k of row {part.row}", k[part.start :], wanted_k[here], bound)
        found.close(f"{title}: v of row {part.row}", v[part.start :], wanted_v[here], bound)
    most = len(step.tokens_T) * cache.kv.unit_bytes // 16
    _untouched(found, title, before, cache.kv.arena, most, name)


def _untouched(found: Findings, title: str, before: Tensor, after: Tensor, most: int, name: str) -> None:
    """No more bytes changed than the step's tokens take; of random numbers nearly all of those did."""
    changed = int((before != after).sum())
    found.say(f"{title}: writes its own bytes", 0.8 * most < changed <= most, f"{changed} of {most} bytes, {name}")
