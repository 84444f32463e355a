"""`python -m bench.gpu ops`: single ops at the sizes that models have, each beside the least time that it can take.

The limit of an op is the larger of its bytes over the bandwidth and its operations over the rate of products, both measured in
the same run. Inputs take turns, so that nothing is read from a cache; where they are too small for that, the result says so. Short
ops are replayed as graphs, as decode steps are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch
from bench.gpu.bound import Bench, Kernels
from bench.gpu.check_linear import Sides, experts, quantised
from bench.gpu.check_rows import kv_types
from bench.gpu.check_sampler import inputs, moved
from bench.gpu.limits import ATTENTION_SHARE, Ceilings, Row, seen
from bench.gpu.paged import Cache, Part
from bench.gpu.place import Place
from bench.gpu.probe import probe
from bench.gpu.report import Budget, Report
from bench.gpu.timing import cached, replayed, sets_for, timed
from torch import Tensor

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.engine.arena import TORCH_DTYPES
from inference_stack.ops.api import Experts, HeadSpec, Linear, Quantised, Rope
from inference_stack.ops.facade import BoundOps
from inference_stack.ops.implementation import UnsuitableWeight
from inference_stack.ops.registry import NoImplementation

HEADS = (32, 8, 128)
DECODES = ((1, 1024), (8, 1024), (32, 1024), (128, 1024), (256, 1024), (1, 32768), (8, 8192))
VERIFIES = ((32, 1024, 5),)
PROMPTS = ((0, 512), (0, 2048), (0, 8192), (6144, 8192), (30720, 32768))
"""First position, and last one but one, of one row."""
PROJECTIONS = {
    "qkv": Sides(6144, 4096),
    "out": Sides(4096, 4096),
    "gate_up": Sides(28672, 4096),
    "down": Sides(4096, 14336),
}
HEAD = Sides(128256, 4096)
ROWS = (1, 8, 32, 128, 256, 2048)
TABLE = 34_000 // 16
"""Columns of recorded steps' block tables: of the longest sequence that `engine` measures."""
NAMED = {"attention": ("attend", "fa3"), "linear": ("linear", "humming")}
"""Of families, an op and the name of what is measured beside ours, on cards where it can run."""
SECONDS = 2.5
"""About what one measurement takes, compiling included."""


@dataclass(frozen=True, slots=True)
class Meter:
    """Where results go, and the ceilings they are measured against."""

    bench: Bench
    report: Report
    budget: Budget
    ceilings: Ceilings

    def time(
        self,
        name: str,
        work: Callable[[int], object],
        turns: int,
        nbytes: float,
        operations: float = 0.0,
        share: float = 1.0,
        graph: bool = True,
        *,
        inputs: float,
    ) -> None:
        """Time `work`, which moves so many bytes at least and does so many operations, these at a share of the rate.

        `graph`: it can be recorded; what cannot has launches from the host in its time. `inputs`: bytes of all that take turns.
        """
        place = self.bench.place
        if not self.budget.fits(self.report, name, 0.0 if place.tiny else SECONDS):
            return
        by_bytes, by_products = nbytes / self.ceilings.bandwidth, operations / (self.ceilings.products * share)
        limit = max(by_bytes, by_products)
        try:
            record = graph and limit < 1e-3
            found = replayed(work, place, turns) if record else timed(work, place, turns)
        except Exception as error:  # one op that cannot must not hide the others
            self.report.skip(name, f"{type(error).__name__}: {error}"[:300])
            return
        reached = f"{nbytes / found.seconds / 1e9:,.0f} GB/s"
        if by_products > by_bytes:
            reached = f"{operations / found.seconds / 1e12:,.1f} TFLOP/s"
        results = self.report.data.setdefault("ops", {})
        results[name] = found.plain() | {
            "limit": limit, "ratio": limit / found.seconds, "bytes": nbytes, "operations": operations,
            "cached": (near := cached(inputs, place)),
        }  # fmt: skip
        self.report.write()
        ratio = f"{limit / found.seconds:.0%}"
        self.report.row(name, found.seconds * 1e6, limit * 1e6, ratio, reached, "cached" if near else "")


def bench_ops(place: Place, report: Report, budget: Budget, kernels: Kernels, only: str) -> None:
    """All families of ops, or some, in both modes where these differ."""
    families: dict[str, Callable[[Meter, BoundOps, str], None]] = {
        "attention": _attention, "linear": _linear, "experts": _experts, "rows": _rows,
    }  # fmt: skip
    asked = only.split(",") if only else list(families)
    if unknown := set(asked) - set(families):
        raise SystemExit(f"no family {', '.join(unknown)}; there are {', '.join(families)}")
    meter = Meter(Bench(place, kernels), report, budget, probe(place, report, quick=True))
    report.put("kernels", meter.bench.ops(spoilt=False).explain())
    report.rows.clear()
    with torch.inference_mode():
        for family in asked:
            op = {"attention": "attend", "rows": "rmsnorm"}.get(family, family)
            for deterministic in meter.bench.modes(op) if family != "rows" else (False,):
                title = ", deterministic" if deterministic and meter.bench.graphs(op) else ""
                families[family](meter, meter.bench.ops(deterministic, spoilt=False), title)
            if family in NAMED and place.on_card and kernels != "reference":
                _named(meter, families[family], *NAMED[family])


def _named(meter: Meter, measure: Callable[[Meter, BoundOps, str], None], op: str, name: str) -> None:
    """The same measurements with what is taken only by name."""
    try:
        measure(meter, meter.bench.named(op, name), f", {name}")
    except (NoImplementation, UnsuitableWeight) as error:
        meter.report.skip(f"{op} by {name}", str(error)[:300])


def _attention(meter: Meter, ops: BoundOps, title: str) -> None:
    tiny = meter.bench.place.tiny
    heads = (4, 2, 32) if tiny else HEADS
    for name in (name for name in kv_types(meter.bench) if ops.refuses_kv(name) is None):
        decodes = ((2, 40),) if tiny else DECODES if name == kv_types(meter.bench)[0] else DECODES[2:4]
        for batch, context in decodes:
            _decode(
                meter, ops, f"attention, {batch} rows of {context}, KV {name}{title}", heads, name, (batch, context, 1)
            )
    own = kv_types(meter.bench)[0]
    for batch, context, queries in ((2, 40, 3),) if tiny else VERIFIES:
        label = f"attention, {batch} rows of {context}, {queries} queries each{title}"
        _decode(meter, ops, label, heads, own, (batch, context, queries))
    for start, stop in ((8, 104),) if tiny else PROMPTS:
        _prompt(meter, ops, f"attention, positions {start} to {stop} of a prompt{title}", heads, own, start, stop)


def _random_cache(meter: Meter, heads: tuple[int, int, int], name: str, rows: int, most: int, layers: int = 1) -> Cache:
    """Memory that is full of finite numbers."""
    spec = KvGroupSpec(name="kv", layers=(0,), kv_heads=heads[1], head_dim=heads[2], dtype=name)
    bench = meter.bench
    cache = Cache(spec, TORCH_DTYPES[name], rows, most, bench.place.device, layout=bench.layout, layers=layers)
    if cache.kv.dtype.itemsize == 1:  # bytes that are finite in fp8, and in the scales of int8
        cache.kv.arena.random_(0, 100, generator=meter.bench.place.generator(5))
    else:
        cache.kv.arena.view(cache.kv.dtype).normal_(generator=meter.bench.place.generator(5))
    return cache


def _decode(
    meter: Meter, ops: BoundOps, title: str, heads: tuple[int, int, int], name: str, size: tuple[int, int, int]
) -> None:
    """One step that all layers share, as in a model; layers take turns."""
    batch, context, queries = size
    place, graph = meter.bench.place, meter.bench.graphs("attend")
    spec = KvGroupSpec(name="kv", layers=(0,), kv_heads=heads[1], head_dim=heads[2], dtype=name)
    nbytes = batch * context * spec.unit_bytes // 16
    turns = sets_for(nbytes, place)
    cache = _random_cache(meter, heads, name, batch, context, turns)
    layers = [cache.layer(turn) for turn in range(turns)]
    parts = [Part(row, context - queries, context) for row in range(batch)]
    step = cache.step(parts, graph=graph and queries == 1, width=0 if place.tiny else TABLE)
    q = meter.bench.random(batch * queries, heads[0], heads[2], seed=6)
    operations = 4 * heads[0] * heads[2] * batch * seen(Row(queries, context), None)
    scale = heads[2] ** -0.5
    work = lambda turn: ops.attend(q, layers[turn], step, scale)  # noqa: E731
    meter.time(title, work, turns, nbytes + 2 * q.nbytes, operations, graph=graph, inputs=turns * nbytes)


def _prompt(
    meter: Meter, ops: BoundOps, title: str, heads: tuple[int, int, int], name: str, start: int, stop: int
) -> None:
    """Always the same step: what the op plans for one, it uploads, which cannot be recorded."""
    cache = _random_cache(meter, heads, name, 1, stop)
    step = cache.step([Part(0, start, stop)])
    q = meter.bench.random(stop - start, heads[0], heads[2], seed=6)
    operations = 4 * heads[0] * heads[2] * seen(Row(stop - start, stop), None)
    nbytes = stop * cache.kv.unit_bytes / 16 + q.nbytes
    scale, graph = heads[2] ** -0.5, meter.bench.graphs("attend")
    work = lambda _: ops.attend(q, cache.kv, step, scale)  # noqa: E731
    meter.time(title, work, 1, nbytes + q.nbytes, operations, ATTENTION_SHARE, graph, inputs=nbytes)


def _linear(meter: Meter, ops: BoundOps, title: str) -> None:
    bench = meter.bench
    projections = {"out": Sides(48, 64)} if bench.place.tiny else PROJECTIONS
    named = ops.explain()["linear"].startswith("humming:")
    for name, sides in projections.items():
        for form in ("dense", "w4") if not named else ("w4",):
            _projection(meter, ops, f"{name} {sides.outputs}×{sides.inputs}, {form}{title}", sides, form)
    if not bench.place.tiny and not named:
        _projection(meter, ops, f"head {HEAD.outputs}×{HEAD.inputs}, dense{title}", HEAD, "dense")


def _projection(meter: Meter, ops: BoundOps, title: str, sides: Sides, form: str) -> None:
    bench, place = meter.bench, meter.bench.place
    weight: Tensor | Quantised
    if form == "dense":
        weight = bench.random(sides.outputs, sides.inputs, seed=0) * 0.02
    else:
        weight = quantised(bench, sides, 4, 32 if place.tiny else 128)
        weight = replace(weight, zero_NG=-4 * weight.scale_NG)  # whole codes, as quantisers make zeros
    nbytes = weight.nbytes
    turns = sets_for(nbytes, place)
    linears = [Linear(weight=_copied(weight)) for _ in range(turns)]
    for linear in linears:
        ops.prepare(linear)
    for rows in (1, 3) if place.tiny else ROWS:
        x = bench.random(rows, sides.inputs, seed=50 + rows)
        moved_bytes = nbytes + x.nbytes + rows * sides.outputs * x.element_size()
        operations = 2 * rows * sides.outputs * sides.inputs
        work = _applied(ops, x, linears)
        meter.time(f"{title}, {rows} rows", work, turns, moved_bytes, operations, inputs=turns * nbytes)


def _copied(weight: Tensor | Quantised) -> Tensor | Quantised:
    """The same numbers elsewhere: drawing them anew would take longer than what is measured."""
    if isinstance(weight, Tensor):
        return weight.clone()
    zero = None if weight.zero_NG is None else weight.zero_NG.clone()
    return replace(weight, codes=weight.codes.clone(), scale_NG=weight.scale_NG.clone(), zero_NG=zero)


def _applied(ops: BoundOps, x: Tensor, linears: Sequence[Linear]) -> Callable[[int], object]:
    return lambda turn: ops.linear(x, linears[turn])


def _experts(meter: Meter, ops: BoundOps, title: str) -> None:
    """Qwen3-30B-A3B's, tokens spread evenly; sets of tokens take turns, each with experts of its own choice."""
    bench, tiny = meter.bench, meter.bench.place.tiny
    count, width, inner, top_k = (4, 64, 32, 2) if tiny else (128, 2048, 768, 8)
    given: Experts = experts(bench, (count, width, inner), "dense", True, top_k)
    one = 3 * width * inner * bench.type.itemsize
    ops.prepare(given)
    for rows in (1, 3) if tiny else ROWS:
        x = bench.random(rows, width, seed=71)
        turns = sets_for(min(top_k * rows, count) * one, bench.place)
        logits = [
            bench.place.random(rows, count, seed=72 + rows + 10_000 * turn, dtype=torch.float32)
            for turn in range(turns)
        ]
        chosen = [set(one_set.topk(top_k, dim=-1).indices.flatten().tolist()) for one_set in logits]
        nbytes = mean(map(len, chosen)) * one + 2 * x.nbytes
        operations = 2 * 3 * width * inner * top_k * rows
        name, work = f"experts {count}×{inner}, {rows} tokens{title}", _routed(ops, x, logits, given)
        meter.time(name, work, turns, nbytes, operations, inputs=len(set().union(*chosen)) * one)


def _routed(ops: BoundOps, x: Tensor, logits: Sequence[Tensor], given: Experts) -> Callable[[int], object]:
    return lambda turn: ops.experts(x, logits[turn], given)


def _rows(meter: Meter, ops: BoundOps, title: str) -> None:
    """What is only bytes: norms, activations, rotary positions with the store of KV, sampling."""
    bench, place = meter.bench, meter.bench.place
    width, inner, vocabulary = (64, 96, 331) if place.tiny else (4096, 14336, 128256)
    heads = (4, 2, 32) if place.tiny else HEADS
    weight = place.random(width, seed=1, dtype=torch.float32)
    for rows in (1, 3) if place.tiny else (1, 32, 256, 2048):
        xs, both = _sets(bench, rows, width), _sets(bench, rows, 2 * inner)
        turns, size = len(xs), xs[0].nbytes
        normed = _with(lambda x: ops.rmsnorm(x, weight, 1e-5), xs)
        meter.time(f"rmsnorm, {rows} rows", normed, turns, 2 * size, inputs=turns * size)
        added = lambda turn, xs=xs: ops.add_rmsnorm(xs[turn], xs[turn - 1], weight, 1e-5)  # noqa: E731
        meter.time(f"add_rmsnorm, {rows} rows", added, turns, 4 * size, inputs=turns * size)
        gated = _with(lambda x: ops.act_mul(x, "silu"), both)
        together = len(both) * both[0].nbytes
        meter.time(f"act_mul, {rows} rows", gated, len(both), 1.5 * both[0].nbytes, inputs=together)
        _rope(meter, ops, rows, heads)
        if rows <= 256:
            _sample(meter, ops, rows, vocabulary)


def _sets(bench: Bench, rows: int, width: int) -> list[Tensor]:
    """Inputs that take turns."""
    turns = sets_for(rows * width * bench.type.itemsize, bench.place)
    return [bench.random(rows, width, seed=turn) for turn in range(turns)]


def _with(work: Callable[[Tensor], object], given: Sequence[Tensor]) -> Callable[[int], object]:
    return lambda turn: work(given[turn])


def _rope(meter: Meter, ops: BoundOps, rows: int, heads: tuple[int, int, int]) -> None:
    device, name = meter.bench.place.device, kv_types(meter.bench)[0]
    cache = _random_cache(meter, heads, name, rows, 32)
    angle = torch.randn(64, heads[2]).to(device)
    rope = Rope(cos_PE=angle.cos(), sin_PE=angle.sin())
    spec = HeadSpec(q_heads=heads[0], kv_heads=heads[1], head_dim=heads[2], rope=rope)
    step = cache.step([Part(row, 17, 18) for row in range(rows)], graph=meter.bench.graphs("rope_store"))
    sets = _sets(meter.bench, rows, (heads[0] + 2 * heads[1]) * heads[2])
    work = _with(lambda qkv: ops.rope_store(qkv, spec, cache.kv, step), sets)
    size = sets[0].nbytes
    meter.time(f"rope_store, {rows} rows", work, len(sets), 2 * size, inputs=len(sets) * size)


def _sample(meter: Meter, ops: BoundOps, rows: int, vocabulary: int) -> None:
    place = meter.bench.place
    sets = _sets(meter.bench, rows, vocabulary)
    warm = torch.full((rows,), 0.8)
    kinds = {
        "greedy": inputs(rows), "random": inputs(rows, temperature_S=warm),
        "top-p": inputs(rows, temperature_S=warm, top_p_S=warm + 0.1), "logprobs": inputs(rows, top_S=torch.full((rows,), 5)),
    }  # fmt: skip
    for name, given in kinds.items():
        there = moved(given, place.device)
        work = _with(lambda logits, there=there: ops.sample(logits, there), sets)  # type: ignore[misc]
        size = sets[0].nbytes
        meter.time(f"sample {name}, {rows} rows", work, len(sets), size, graph=False, inputs=len(sets) * size)
