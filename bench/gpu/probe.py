"""What a card can do at most: the ceilings that everything else is a ratio of.

Copies count bytes read and bytes written; reads go through a sum. Products are square, on random data. All with torch, so that
no kernel of ours has a part in it.
"""

from __future__ import annotations

from typing import Any

import torch
from bench.gpu.limits import Ceilings
from bench.gpu.place import Place
from bench.gpu.report import Report
from bench.gpu.timing import Timing, replayed, sets_for, timed
from torch import Tensor

GIB = 1 << 30
SIZES = (1024, 2048, 4096, 8192, 16384)
SKINNY = ((1, 4096, 14336), (32, 4096, 14336), (256, 4096, 14336), (2048, 4096, 14336))
"""(M, N, K): down projections of an 8B model, from one token to a chunk of a prompt."""


def probe(place: Place, report: Report | None = None, quick: bool = False) -> Ceilings:
    """Measure; `quick` takes what limits are made of and no more."""
    found: dict[str, Any] = {}

    def note(name: str, value: float, unit: str, timing: Timing) -> None:
        found[name] = {"value": value, "unit": unit, **timing.plain()}
        if report is not None:
            report.row(name, value, unit, f"± {timing.spread / 2:.1%}")
            report.put("probe", found)

    nbytes = 1 << 20 if place.tiny else 2 * GIB
    bandwidth = _bandwidths(place, nbytes, note)
    products = max(_product(place, size, note) for size in _sizes(place, quick))
    if not quick:
        for shape in ((2, 16, 32),) if place.tiny else SKINNY:
            _skinny(place, shape, note)
        _fp8(place, note, report)
        _transfers(place, note)
        _launches(place, note)
    ceilings = Ceilings(bandwidth=bandwidth, products=products)
    if report is not None:
        report.put("ceilings", {"bandwidth": bandwidth, "products": products})
    return ceilings


def _sizes(place: Place, quick: bool) -> tuple[int, ...]:
    if place.tiny:
        return (64,)
    return (8192,) if quick else SIZES


def _bandwidths(place: Place, nbytes: int, note: Any) -> float:
    """The larger of the copy's and the read's rate, in bytes a second."""
    sources = [place.random(nbytes // 4, seed=turn, dtype=torch.float32) for turn in range(2)]
    target = torch.empty_like(sources[0])
    copied = timed(lambda turn: target.copy_(sources[turn]), place, 2)
    copy = 2 * nbytes / copied.seconds
    note("copy (read and written)", copy / 1e9, "GB/s", copied)
    total = [torch.empty((), device=place.device) for _ in sources]
    read = timed(lambda turn: torch.sum(sources[turn], dim=0, out=total[turn]), place, 2)
    note("read (sum)", nbytes / read.seconds / 1e9, "GB/s", read)
    return max(copy, nbytes / read.seconds)


def _product(place: Place, size: int, note: Any) -> float:
    """Operations a second of a square product."""
    turns = sets_for(4 * size * size, place)
    left = [place.random(size, size, seed=turn) for turn in range(turns)]
    right = [place.random(size, size, seed=100 + turn) for turn in range(turns)]
    out = torch.empty(size, size, dtype=left[0].dtype, device=place.device)
    found = timed(lambda turn: torch.mm(left[turn], right[turn].T, out=out), place, turns)
    rate = 2 * size**3 / found.seconds
    note(f"{_name(left[0].dtype)} product, {size}²", rate / 1e12, "TFLOP/s", found)
    return rate


def _skinny(place: Place, shape: tuple[int, int, int], note: Any) -> None:
    """The rate at which few rows go through a large weight, by torch's library: bytes of the weight."""
    rows, outputs, inputs = shape
    turns = sets_for(2 * outputs * inputs, place)
    weights = [place.random(outputs, inputs, seed=turn) for turn in range(turns)]
    x = place.random(rows, inputs, seed=7)
    out = torch.empty(rows, outputs, dtype=x.dtype, device=place.device)
    found = replayed(lambda turn: torch.mm(x, weights[turn].T, out=out), place, turns)
    read = weights[0].nbytes / found.seconds / 1e9
    note(f"product of {rows} rows, {outputs}×{inputs}: weights", read, "GB/s", found)


def _fp8(place: Place, note: Any, report: Report | None) -> None:
    """Products of fp8, where the card and torch have them."""
    size = 64 if place.tiny else 8192
    dtype = getattr(torch, "float8_e4m3fn", None)
    if not place.on_card or dtype is None or torch.cuda.get_device_capability(place.device) < (8, 9):
        if report is not None:
            report.skip("fp8 product", "this device has none")
        return
    left, right = (place.random(size, size, seed=seed).to(dtype) for seed in (1, 2))
    one = torch.ones((), device=place.device)

    def work(_: int) -> Tensor:
        made: Tensor = torch._scaled_mm(left, right.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
        return made

    found = timed(work, place)
    note(f"fp8 product, {size}²", 2 * size**3 / found.seconds / 1e12, "TFLOP/s", found)


def _transfers(place: Place, note: Any) -> None:
    """Between page-locked host memory and the device, and of a step's few kilobytes."""
    for nbytes, title in ((1 << 16 if place.tiny else 1 << 28, "large"), (1 << 12, "4 KiB")):
        host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=place.on_card).random_()
        there = torch.empty(nbytes, dtype=torch.uint8, device=place.device)
        up = timed(lambda _, a=there, b=host: a.copy_(b, non_blocking=True), place)  # type: ignore[misc]
        down = timed(lambda _, a=there, b=host: b.copy_(a, non_blocking=True), place)  # type: ignore[misc]
        for direction, found in (("to the device", up), ("to the host", down)):
            value, unit = (nbytes / found.seconds / 1e9, "GB/s") if title == "large" else (found.seconds * 1e6, "µs")
            note(f"{title} {direction}", value, unit, found)


def _launches(place: Place, note: Any) -> None:
    """The time of one of many tiny kernels: queued one by one, and replayed as a graph."""
    many = 10 if place.tiny else 200
    x = place.random(64, seed=1, dtype=torch.float32)

    def chain(_: int) -> None:
        for _step in range(many):
            x.mul_(1.0)

    found = timed(chain, place)
    note("one small kernel, queued by torch", found.seconds / many * 1e6, "µs", found)
    if place.on_card:
        replay = replayed(chain, place)
        note("one small kernel, in a graph", replay.seconds / many * 1e6, "µs", replay)


def _name(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16"}[dtype]
