"""Checks of the deterministic mode: a row's bits are the same alone, in any batch, and however its prompt was cut.

Bit for bit: nothing here has a bound.
"""

from __future__ import annotations

import itertools

import torch
from bench.gpu.bound import Bench
from bench.gpu.check_attention import Case, filled
from bench.gpu.check_linear import Sides, experts, quantised
from bench.gpu.check_rows import kv_types
from bench.gpu.check_sampler import cases, moved
from bench.gpu.findings import Findings
from bench.gpu.paged import Cache, Part

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.engine.arena import TORCH_DTYPES
from inference_stack.ops.api import Linear, Quantised


def check_invariance(bench: Bench, found: Findings) -> None:
    """Every op whose order of sums could depend on the batch."""
    for check in (_rows, _linears, _experts, _batched_attention, _cut_attention, _sampler):
        with found.guard(f"invariance: {check.__name__.strip('_')}"):
            check(bench, found)


def _counts(bench: Bench) -> tuple[int, ...]:
    return (2, 7) if bench.place.tiny else (2, 3, 8, 17, 32, 64, 65, 128, 200, 257, 700)


def _rows(bench: Bench, found: Findings) -> None:
    ops, width = bench.ops(True), 48 if bench.place.tiny else 4096
    weight = bench.place.random(width, seed=81, dtype=torch.float32) + 1
    for count in _counts(bench):
        x, both = bench.random(count, width, seed=82), bench.random(count, 2 * width, seed=83)
        last = slice(count - 1, count)
        found.same(
            f"rmsnorm, row of {count}", ops.rmsnorm(x, weight, 1e-6)[last], ops.rmsnorm(x[last].clone(), weight, 1e-6)
        )
        found.same(f"act_mul, row of {count}", ops.act_mul(both, "silu")[last], ops.act_mul(both[last].clone(), "silu"))


def _linears(bench: Bench, found: Findings) -> None:
    sides = Sides(40, 64) if bench.place.tiny else Sides(4608, 3584)
    dense = bench.random(sides.outputs, sides.inputs, seed=84) * 0.05
    weights: dict[str, torch.Tensor | Quantised] = {"dense": dense}
    weights |= {f"w{bits}": quantised(bench, sides, bits, 32 if bench.place.tiny else 128) for bits in (4, 8)}
    ops = bench.ops(True)
    for name, weight in weights.items():
        linear = Linear(weight=weight)
        ops.prepare(linear)
        x = bench.random(max(_counts(bench)), sides.inputs, seed=85)
        alone = ops.linear(x[:1].clone(), linear)
        for count in _counts(bench):
            found.same(f"linear {name}, first of {count}", ops.linear(x[:count].clone(), linear)[:1], alone)
            turned = x[:count].flip(0).contiguous()
            found.same(f"linear {name}, last of {count}", ops.linear(turned, linear)[-1:], alone)


def _experts(bench: Bench, found: Findings) -> None:
    sizes = (4, 64, 32) if bench.place.tiny else (32, 512, 256)
    ops = bench.ops(True)
    for form in ("dense", "mxfp4, clamped"):
        given = experts(bench, sizes, form, True)
        most = max(_counts(bench))
        x, logits = (
            bench.random(most, sizes[1], seed=86),
            bench.place.random(most, sizes[0], seed=87, dtype=torch.float32),
        )
        ops.prepare(given)
        alone = ops.experts(x[:1].clone(), logits[:1].clone(), given)
        for count in _counts(bench):
            both = ops.experts(x[:count].clone(), logits[:count].clone(), given)
            found.same(f"experts {form}, token of {count}", both[:1], alone)


def _batched_attention(bench: Bench, found: Findings) -> None:
    """Decode steps: each row beside all others, and by itself; recorded steps, filled up, too."""
    heads = (4, 2, 32) if bench.place.tiny else (32, 8, 128)
    lengths = (1, 17, 45) if bench.place.tiny else (1, 16, 129, 1000, 2049, 257, 4096, 33)
    parts = [Part(row, length - 1, length) for row, length in enumerate(lengths)]
    case = Case(title="", heads=heads, dtype=kv_types(bench)[0])
    cache, ops = filled(bench, case, parts), bench.ops(True)
    q, scale = bench.random(len(parts), heads[0], heads[2], seed=88), heads[2] ** -0.5
    together = ops.attend(q, cache.kv, cache.step(parts), scale)
    for at, part in enumerate(parts):
        alone = ops.attend(q[at : at + 1].clone(), cache.kv, cache.step([part]), scale)
        found.same(f"attend, a row of {part.stop} beside others", together[at : at + 1], alone)
    if bench.graphs("attend"):
        wide = torch.cat([q, bench.random(5, heads[0], heads[2], seed=89)])
        recorded = ops.attend(wide, cache.kv, cache.step(parts, padding=5, graph=True, width=cache.blocks + 40), scale)
        found.same("attend, recorded beside eager", recorded[: len(parts)], together)


def _cut_attention(bench: Bench, found: Findings) -> None:
    """The same queries as a whole prompt, as chunks, as a verification of several, and one by one."""
    heads = (4, 2, 32) if bench.place.tiny else (32, 8, 128)
    length, cuts = (45, (16, 21, 40)) if bench.place.tiny else (1100, (64, 333, 1024, 1090))
    for window in (None, 20 if bench.place.tiny else 200):
        cache = _one(bench, heads, length, window)
        ops, scale = bench.ops(True), heads[2] ** -0.5
        q = bench.random(length, heads[0], heads[2], seed=90)
        whole = ops.attend(q, cache.kv, cache.step([Part(0, 0, length)]), scale)
        bounds = (0, *cuts, length)
        for start, stop in itertools.pairwise(bounds):
            chunk = ops.attend(q[start:stop].clone(), cache.kv, cache.step([Part(0, start, stop)]), scale)
            found.same(f"attend, window {window}: chunk {start}–{stop}", chunk, whole[start:stop])
        for start, stop in ((length - 5, length), (length - 1, length), (15, 16), (0, 1)):
            few = ops.attend(q[start:stop].clone(), cache.kv, cache.step([Part(0, start, stop)]), scale)
            found.same(f"attend, window {window}: queries {start}–{stop}", few, whole[start:stop])


def _one(bench: Bench, heads: tuple[int, int, int], length: int, window: int | None) -> Cache:
    """One sequence, all of which is known."""
    name = kv_types(bench)[0]
    spec = KvGroupSpec(name="kv", layers=(0,), kv_heads=heads[1], head_dim=heads[2], dtype=name, window=window)
    cache = Cache(spec, TORCH_DTYPES[name], 1, length, bench.place.device, layout=bench.layout)
    draw = torch.Generator().manual_seed(91)
    cache.store(0, *(torch.randn(length, heads[1], heads[2], generator=draw) for _ in "kv"))
    return cache


def _sampler(bench: Bench, found: Findings) -> None:
    """A row's token in a batch, and alone."""
    vocabulary = 331 if bench.place.tiny else 128256
    logits = bench.place.random(6, vocabulary, seed=92, dtype=torch.float32) * 4
    ops, device = bench.ops(True), bench.place.device
    six, one = cases(6, vocabulary), cases(1, vocabulary)
    for name in ("greedy", "random"):
        together = ops.sample(logits, moved(six[name], device)).tokens_S[:1]
        found.same(
            f"sample {name}, a row of 6", together, ops.sample(logits[:1].clone(), moved(one[name], device)).tokens_S
        )
