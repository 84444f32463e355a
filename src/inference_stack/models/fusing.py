"""Makes one weight of the parts of a fused projection (q, k and v; gate and up), reading each part once into its rows.

    all parts quantised alike                    ▸ codes and scales one below the other
    of different widths, groups, zeros           ▸ the narrowest form that holds all of them exactly
    quantised beside dense, or ordered otherwise ▸ dense fp32
    all parts dense                              ▸ their own type

Knows layouts and forms; what the projection is for is the model's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference_stack.artifacts import canonical
from inference_stack.artifacts.canonical import Form, Grouped, Order
from inference_stack.models.placing import HostPlacer, Placer
from inference_stack.models.stored import DTYPE_NAMES, Layout, Source
from inference_stack.ops.api import Quantised
from inference_stack.ops.reference.quantised import dequantise

Arrays = tuple[Tensor, Tensor, Tensor | None]
"""Codes, scales and zeros."""

HOST = HostPlacer()
CHUNK_ELEMENTS = 1 << 20
"""How many weights are made dense at a time."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stored matrix that is to be some rows of a weight."""

    name: str
    layout: Layout


@dataclass(frozen=True, slots=True)
class Plan:
    """What a weight will be: quantised in `form` with columns in `order_K`, or dense in `dtype`."""

    parts: tuple[Part, ...]
    form: Form | None
    dtype: torch.dtype = torch.float32
    order_K: Order | None = None

    @property
    def spoilt(self) -> bool:
        """Whether quantised parts are made dense because they do not fit together."""
        return self.form is None and any(part.layout.form for part in self.parts)

    def describe(self) -> str:
        """The executed form and what it was made of: "w4g32 from Q4_1"."""
        executed = DTYPE_NAMES[self.dtype] if self.form is None else self.form.name
        stored = "+".join(sorted({part.layout.label for part in self.parts}))
        return executed if stored == executed else f"{executed} from {stored}"


def plan(parts: Sequence[Part], dtype: torch.dtype | None, dense: bool) -> Plan:
    """How to make one weight of these parts. `dtype` is for dense weights (None: as stored); `dense` asks for no codes at all."""
    layouts = [part.layout for part in parts]
    forms = [layout.form for layout in layouts if layout.form is not None]
    if not dense and len(forms) == len(layouts) and _same_order([layout.order_K for layout in layouts]):
        return Plan(tuple(parts), canonical.common_form(forms), order_K=layouts[0].order_K)
    kept = {layout.dtype for layout in layouts if layout.dtype is not None}
    own = kept.pop() if not forms and len(kept) == 1 else torch.float32
    return Plan(tuple(parts), None, own if forms else dtype or own)


def make(source: Source, plan: Plan, placer: Placer = HOST) -> Tensor | Quantised:
    """Read the parts. Runs in one of the loader's threads."""
    return _dense(source, plan, placer) if plan.form is None else _quantised(source, plan, plan.form, placer)


def tensors_of(weight: Tensor | Quantised) -> list[Tensor]:
    """What a weight consists of."""
    if isinstance(weight, Tensor):
        return [weight]
    parts = (weight.codes, weight.scale_NG, weight.zero_NG, weight.order_K)
    return [part for part in parts if part is not None]


def read_dense(source: Source, part: Part, out: Tensor, placer: Placer = HOST) -> None:
    """Fill `out`, of the placer's device, with a part's numbers, whatever it is stored as."""
    form = part.layout.form
    if form is None:
        return placer.read(source, part.name, out)
    matrix = out.view(-1, out.shape[-1])
    rows, columns = matrix.shape
    host = _tensors(form, rows, columns)
    source.read_grouped(part.name, _arrays(form, *host))
    tensors = _placed(placer, *host)
    order_K = _placed_order(placer, part.layout.order_K)
    placer.ready(*(tensor for tensor in (out, *tensors, order_K) if tensor is not None))
    step = max(CHUNK_ELEMENTS // columns, 1)
    for start in range(0, rows, step):
        stop = start + step
        matrix[start:stop] = dequantise(_weight(form, *_sliced(tensors, start, stop), order_K))
    return None


def _same_order(orders: Sequence[Order | None]) -> bool:
    first = orders[0]
    if first is None:
        return all(order is None for order in orders)
    return all(order is not None and np.array_equal(order, first) for order in orders)


def _tensors(form: Form, rows: int, columns: int) -> Arrays:
    """Memory for codes, scales and zeros; torch's, because it is aligned to cache lines."""
    codes = torch.empty((rows, columns // 2), dtype=torch.uint8)
    if form.bits == 8:
        codes = torch.empty((rows, columns), dtype=torch.int8)
    dtype = torch.float16 if form.half else torch.float32
    shape = (rows, columns // form.group)
    return codes, torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype) if form.zeros else None


def _arrays(form: Form, codes: Tensor, scale_NG: Tensor, zero_NG: Tensor | None) -> Grouped:
    return Grouped(form, codes.numpy(), scale_NG.numpy(), None if zero_NG is None else zero_NG.numpy())


def _weight(form: Form, codes: Tensor, scale_NG: Tensor, zero_NG: Tensor | None, order_K: Tensor | None) -> Quantised:
    return Quantised(bits=form.bits, codes=codes, scale_NG=scale_NG, zero_NG=zero_NG, group=form.group, order_K=order_K)


def _placed(placer: Placer, codes: Tensor, scale_NG: Tensor, zero_NG: Tensor | None) -> Arrays:
    return placer.put(codes), placer.put(scale_NG), None if zero_NG is None else placer.put(zero_NG)


def _placed_order(placer: Placer, order_K: Order | None) -> Tensor | None:
    return None if order_K is None else placer.put(torch.from_numpy(order_K))


def _sliced(tensors: Arrays, start: int, stop: int) -> Arrays:
    codes, scale_NG, zero_NG = tensors
    return codes[start:stop], scale_NG[start:stop], None if zero_NG is None else zero_NG[start:stop]


def _quantised(source: Source, plan: Plan, form: Form, placer: Placer) -> Quantised:
    rows = sum(part.layout.shape[0] for part in plan.parts)
    codes, scale_NG, zero_NG = _tensors(form, rows, plan.parts[0].layout.shape[1])
    whole, start = _arrays(form, codes, scale_NG, zero_NG), 0
    for part in plan.parts:
        stop = start + part.layout.shape[0]
        _read_rows(source, part, whole.rows(start, stop))
        start = stop
    if zero_NG is not None and not zero_NG.any():
        zero_NG = None
    tensors = _placed(placer, codes, *_narrowed(scale_NG, zero_NG))
    return _weight(form, *tensors, _placed_order(placer, plan.order_K))


def _read_rows(source: Source, part: Part, out: Grouped) -> None:
    form = part.layout.form
    if form is None or form == out.form:
        return source.read_grouped(part.name, out)
    own = canonical.empty(form, *part.layout.shape)
    source.read_grouped(part.name, own)
    return canonical.widen(own, out)


def _narrowed(scale_NG: Tensor, zero_NG: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Scales and zeros in fp16 where every one of them keeps its value."""
    wide = [tensor for tensor in (scale_NG, zero_NG) if tensor is not None]
    narrow = [tensor.to(torch.float16) for tensor in wide]
    if not all(
        torch.equal(half.to(torch.float32), full.to(torch.float32)) for half, full in zip(narrow, wide, strict=True)
    ):
        return scale_NG, zero_NG
    return narrow[0], narrow[1] if zero_NG is not None else None


def _dense(source: Source, plan: Plan, placer: Placer) -> Tensor:
    sizes = [part.layout.shape[0] for part in plan.parts]
    out = placer.empty((sum(sizes), plan.parts[0].layout.shape[1]), plan.dtype)
    for part, rows in zip(plan.parts, out.split(sizes), strict=True):
        read_dense(source, part, rows, placer)
    return out
