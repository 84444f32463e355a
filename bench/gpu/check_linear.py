"""Checks of projections, dense and in every quantised form, and of mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from bench.gpu import oracle
from bench.gpu.bound import Bench
from bench.gpu.findings import Findings
from torch import Tensor

from inference_stack.ops.api import Experts, Linear, Mxfp4, Quantised

ROUNDED_BOUND = 3e-2
"""Where activations are rounded to eight bits before they meet quantised weights, as CPUs do."""
FLOAT8_BOUND = 6e-2
"""Both factors have three bits of mantissa, which is off by 2.6 % in the mean, each."""


def _bound(bench: Bench) -> float:
    return bench.bound if bench.graphs("linear") else max(bench.bound, ROUNDED_BOUND)


@dataclass(frozen=True, slots=True)
class Sides:
    """A projection's size. `groups` of quantised forms divide `inputs`."""

    outputs: int
    inputs: int


def check_linear(bench: Bench, found: Findings) -> None:
    """Every form at numbers of rows from one to beyond all thresholds between kernels."""
    tiny = bench.place.tiny
    rows = (1, 3, 9) if tiny else (1, 2, 5, 8, 16, 17, 33, 64, 65, 128, 200, 600)
    for sides in (Sides(40, 64),) if tiny else (Sides(331, 576), Sides(6144, 4096), Sides(3584, 18944)):
        for bias in (False, True):
            title = f"linear {sides.outputs}×{sides.inputs}{', bias' if bias else ''}"
            with found.guard(title):
                weight = bench.random(sides.outputs, sides.inputs, seed=31) * 0.05
                _linear(bench, found, title, weight, rows, bias, bench.bound)
    for bits, group in ((4, 32), (8, 32)) if tiny else ((4, 32), (4, 64), (4, 128), (8, 32), (8, 128)):
        for sides in (Sides(40, 64),) if tiny else (Sides(336, 640), Sides(4608, 3584)):
            for ordered in (False, True):
                title = f"linear w{bits}g{group} {sides.outputs}×{sides.inputs}{', act-order' if ordered else ''}"
                with found.guard(title):
                    made = quantised(bench, sides, bits, group, ordered)
                    _linear(bench, found, title, made, rows, True, _bound(bench))
    if bench.graphs("linear"):
        with found.guard("linear float8"):
            _float8(bench, found, rows)


def _float8(bench: Bench, found: Findings, rows: tuple[int, ...]) -> None:
    """Weights and activations rounded to e4m3, beside products of the numbers as they were."""
    sides = Sides(48, 64) if bench.place.tiny else Sides(6144, 4096)
    weight = bench.random(sides.outputs, sides.inputs, seed=34) * 0.05
    bias_N = bench.place.random(sides.outputs, seed=35, dtype=torch.float32) * 0.01
    linear, numbers = Linear(weight=weight, bias_N=bias_N), oracle.dense(weight)
    ops = bench.ops(weights="float8")
    ops.prepare(linear)
    for count in rows:
        x = bench.random(count, sides.inputs, seed=36 + count)
        wanted = oracle.linear(x, numbers, bias_N)
        found.close(f"linear float8, {count} rows", ops.linear(x, linear), wanted, FLOAT8_BOUND)


def _linear(
    bench: Bench,
    found: Findings,
    title: str,
    weight: Tensor | Quantised,
    rows: tuple[int, ...],
    bias: bool,
    bound: float,
) -> None:
    numbers = oracle.dense(weight)
    bias_N = bench.place.random(numbers.shape[0], seed=32, dtype=torch.float32) if bias else None
    for deterministic in bench.modes("linear"):
        ops, linear = bench.ops(deterministic), Linear(weight=weight, bias_N=bias_N)
        ops.prepare(linear)
        for count in rows:
            x = bench.random(count, numbers.shape[1], seed=33 + count)
            mode = ", deterministic" if deterministic else ""
            wanted = oracle.linear(x, numbers, bias_N)
            found.close(f"{title}, {count} rows{mode}", ops.linear(x, linear), wanted, bound)


def quantised(bench: Bench, sides: Sides, bits: int, group: int, ordered: bool = False) -> Quantised:
    """Random codes, scales and zeros, on the place's device."""
    draw = torch.Generator().manual_seed(41)
    shape = (sides.outputs, sides.inputs // 2 if bits == 4 else sides.inputs)
    low, high, dtype = (0, 256, torch.uint8) if bits == 4 else (-127, 128, torch.int8)
    codes = torch.randint(low, high, shape, generator=draw, dtype=torch.int32).to(dtype)
    scale = torch.rand((sides.outputs, sides.inputs // group), generator=draw) * 0.01 + 0.005
    scale = scale.to(torch.float16)
    zero = (scale.float() * -7.5).to(torch.float16) if bits == 4 else None
    order = torch.randperm(sides.inputs, generator=draw).to(torch.int32) if ordered else None
    device = bench.place.device
    return Quantised(
        bits=bits, codes=codes.to(device), scale_NG=scale.to(device), group=group,
        zero_NG=None if zero is None else zero.to(device), order_K=None if order is None else order.to(device),
    )  # fmt: skip


def check_experts(bench: Bench, found: Findings) -> None:
    """Mixtures dense and in MXFP4, from one token to more than all experts have rows for."""
    sizes = (4, 64, 32) if bench.place.tiny else (32, 512, 256)
    counts = (1, 6) if bench.place.tiny else (1, 5, 64, 300)
    for form in ("dense", "mxfp4, clamped"):
        for normalised in (True, False):
            title = f"experts {form}{', normalised' if normalised else ''}"
            with found.guard(title):
                _experts(bench, found, title, experts(bench, sizes, form, normalised), counts)
    if not bench.place.tiny:
        with found.guard("experts 128×768"):
            _experts(bench, found, "experts 128×768", experts(bench, (128, 2048, 768), "dense", True, 8), (1, 9))


def _experts(bench: Bench, found: Findings, title: str, given: Experts, counts: tuple[int, ...]) -> None:
    count, width = given.gate_up.shape[0], given.gate_up.shape[-1]  # type: ignore[union-attr]
    ops, cases = bench.ops(), []
    for tokens in counts:
        x = bench.random(tokens, width, seed=51 + tokens)
        logits = bench.place.random(tokens, count, seed=52 + tokens, dtype=torch.float32)
        cases.append((x, logits, oracle.experts(x, logits, given)))
    ops.prepare(given)
    for x, logits, wanted in cases:
        found.close(f"{title}, {len(x)} tokens", ops.experts(x, logits, given), wanted, _bound(bench))
    x, logits, wanted = cases[-1]
    spoilt = logits.clone()
    spoilt[0, -1] = torch.nan
    out = ops.experts(x, spoilt, given)
    found.say(f"{title}: a token without finite logits", bool(torch.isnan(out[0]).all()), "must become NaN")
    found.close(f"{title}: its neighbours", out[1:], wanted[1:], _bound(bench))


def experts(bench: Bench, sizes: tuple[int, int, int], form: str, normalised: bool, top_k: int = 2) -> Experts:
    """Random experts: X of inner width I on D numbers."""
    count, width, inner = sizes
    random = bench.place.random
    if form == "dense":
        gate_up = bench.random(count, 2 * inner, width, seed=61) * width**-0.5
        down = bench.random(count, width, inner, seed=62) * inner**-0.5
        return Experts(gate_up=gate_up, down=down, top_k=top_k, normalised=normalised)
    return Experts(
        gate_up=_fp4(bench, count, 2 * inner, width), down=_fp4(bench, count, width, inner), top_k=top_k,
        normalised=normalised, activation="clamped_swiglu",
        gate_up_bias_XN=random(count, 2 * inner, seed=63, dtype=torch.float32) * 0.1,
        down_bias_XD=random(count, width, seed=64, dtype=torch.float32) * 0.1,
    )  # fmt: skip


def _fp4(bench: Bench, count: int, rows: int, depth: int) -> Mxfp4:
    draw = torch.Generator().manual_seed(65)
    blocks = torch.randint(0, 256, (count, rows, depth // 2), generator=draw).to(torch.uint8)
    scales = torch.randint(120, 124, (count, rows, depth // 32), generator=draw).to(torch.uint8)
    return Mxfp4(blocks=blocks.to(bench.place.device), scales=scales.to(bench.place.device))
