"""Hands a model its parameters, one by one, and notices what is missing, left over or of the wrong shape.

A parameter is made once at its final place, fused projections row range by row range, and laid out for the kernels by the
thread that read it, so that a model is never in memory twice. Knows names and shapes; the container is a `Source`, the
device's memory a `Placer`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from inference_stack.core.errors import unsupported_model
from inference_stack.models import fusing
from inference_stack.models.api import Progress
from inference_stack.models.fusing import HOST, Part, Plan
from inference_stack.models.placing import Placer
from inference_stack.models.stacked import Stacks, Wanted
from inference_stack.models.stored import Source
from inference_stack.ops.api import Experts, Linear

MAX_THREADS = 8
Prepare = Callable[[Linear | Experts], None]


class Weights:
    """A model's parameters, in the order the model asks. Values are there only after `finish`.

    Matrices keep the form they are stored in; `dtype` is for dense ones (None: as stored), `dense` asks for quantised ones in
    fp32. Norms and biases are fp32. `prepare` is given every projection, table and layer's experts once, as soon as it is read,
    in the thread that read it. All of them are in the memory of `device`, the placer's.
    """

    def __init__(
        self,
        source: Source,
        dtype: torch.dtype | None = None,
        dense: bool = False,
        prepare: Prepare | None = None,
        threads: int = 0,
        placer: Placer = HOST,
    ) -> None:
        self.norm_offset = 0.0 if source.norms_hold_one else 1.0
        self.linears: list[Linear] = []
        self.mixtures: list[Experts] = []
        self._stacks: list[Stacks] = []
        self.device = placer.device
        self._dtype, self._dense, self._prepare = dtype, dense, prepare
        self._wanted = Wanted(dtype, dense)
        self._source, self._placer = source, placer
        self._small: list[Tensor] = []
        self._plans: list[Plan] = []
        self._used: set[str] = set()
        self._jobs: list[tuple[int, Future[None]]] = []
        workers = threads or min(MAX_THREADS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(workers, "weights", initializer=placer.enter_thread)

    def tensor(self, name: str, *shape: int) -> Tensor:
        """One norm or bias of this shape, fp32."""
        return self._vector(name, shape, 0.0)

    def norm(self, name: str, size: int) -> Tensor:
        """A norm weight of the (1 + w) kind, with the 1 added."""
        return self._vector(name, (size,), self.norm_offset)

    def linear(self, names: Sequence[str], sizes: Sequence[int], inputs: int, bias: bool = False) -> Linear:
        """A projection fused of several, each `name`.weight [size, inputs] and, with `bias`, `name`.bias [size].

        Quantised checkpoints may have biases that the architecture does not: they are added too.
        """
        parts = [self._part(f"{name}.weight", (size, inputs)) for name, size in zip(names, sizes, strict=True)]
        biases: list[Part | None] = [None] * len(names)
        for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
            surplus = parts[index].layout.form is not None and self._source.layout(f"{name}.bias") is not None
            biases[index] = self._part(f"{name}.bias", (size,)) if bias or surplus else None
        return self._submit(Linear(weight=torch.empty(0)), parts, biases)

    def table(self, name: str, rows: int, width: int) -> Linear:
        """An embedding table [rows, width], which may serve as a projection too."""
        return self._submit(Linear(weight=torch.empty(0), looked_up=True), [self._part(name, (rows, width))], [None])

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return self._source.layout(name) is not None

    def part(self, name: str, *shape: int) -> Part:
        """A tensor of this shape that `experts` is going to read."""
        return self._part(name, shape)

    def experts(self, experts: Experts, stacks: Stacks) -> Experts:
        """A layer's experts, whose weights and biases are to be filled."""
        self.mixtures.append(experts)
        self._stacks.append(stacks)
        self._queue(stacks.parts, self._read_experts, experts, stacks)
        return experts

    def dtype_of(self, name: str) -> torch.dtype:
        """The type in which a dense matrix is kept; fp32 for a quantised one."""
        layout = self._source.layout(name)
        stored = layout.dtype if layout else None
        return torch.float32 if stored is None else self._dtype or stored

    def finish(self, ignored: Iterable[str], progress: Progress) -> None:
        """Wait until every parameter is filled. Raises for tensors that nobody asked for, or what a read raised."""
        try:
            unexpected = sorted(set(self._source.names()) - self._used - set(ignored))
            if unexpected:
                raise unsupported_model(
                    f"Unexpected tensors, which this architecture does not have: {_some(unexpected)}."
                )
            total, done = sum(nbytes for nbytes, _ in self._jobs), 0
            for nbytes, job in self._jobs:
                job.result()
                done += nbytes
                progress("weights", done, total)
        finally:
            self._pool.shutdown(cancel_futures=True)

    def abandon(self) -> None:
        """Stop reading; for when the model could not be built."""
        self._pool.shutdown(cancel_futures=True)

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters, as they are now."""
        biases = [linear.bias_N for linear in self.linears if linear.bias_N is not None]
        stacked = sum(experts.nbytes for experts in self.mixtures)
        return (
            stacked + sum(linear.weight.nbytes for linear in self.linears) + sum(t.nbytes for t in self._small + biases)
        )

    def describe(self) -> str:
        """The forms that matrices are executed in and what they were: quantised ones first, then those of most bytes."""
        sizes: Counter[tuple[bool, str]] = Counter()
        spoilt: Counter[str] = Counter()
        for plan in self._plans:
            kind = plan.describe()
            sizes[plan.form is None, kind] += sum(part.layout.nbytes for part in plan.parts)
            spoilt[kind] += plan.spoilt and not self._dense
        for side in (side for stacks in self._stacks for side in (stacks.gate_up, stacks.down)):
            sizes[side.describe(self._wanted)] += sum(part.layout.nbytes for part in side.parts)
        ranked = sorted(sizes, key=lambda key: (key[0], -sizes[key], key[1]))
        return ", ".join(
            f"{kind} in {spoilt[kind]} of {len(self._plans)}" if spoilt[kind] else kind for _, kind in ranked
        )

    def _part(self, name: str, shape: tuple[int, ...]) -> Part:
        layout = self._source.layout(name)
        if layout is None:
            raise unsupported_model(f"The checkpoint has no tensor {name!r}.")
        if layout.shape != shape:
            raise unsupported_model(
                f"Tensor {name!r} has shape {list(layout.shape)}; the configuration asks for {list(shape)}."
            )
        self._used.add(name)
        return Part(name, layout)

    def _vector(self, name: str, shape: tuple[int, ...], offset: float) -> Tensor:
        part, out = self._part(name, shape), self._placer.empty(shape, torch.float32)
        self._small.append(out)
        self._queue([part], self._read_vector, part, out, offset)
        return out

    def _read_vector(self, part: Part, out: Tensor, offset: float) -> None:
        fusing.read_dense(self._source, part, out, self._placer)
        self._placer.ready(out)
        if offset:
            out += offset

    def _submit(self, linear: Linear, parts: Sequence[Part], biases: Sequence[Part | None]) -> Linear:
        self.linears.append(linear)
        self._plans.append(fusing.plan(parts, self._dtype, self._dense))
        self._queue(parts, self._read_linear, linear, self._plans[-1], biases)
        return linear

    def _queue(self, parts: Sequence[Part], job: Callable[..., None], *arguments: object) -> None:
        nbytes = sum(part.layout.nbytes for part in parts)
        self._jobs.append((nbytes, self._pool.submit(job, *arguments)))

    def _read_linear(self, linear: Linear, plan: Plan, biases: Sequence[Part | None]) -> None:
        linear.weight = fusing.make(self._source, plan, self._placer)
        self._placer.ready(*fusing.tensors_of(linear.weight))
        if any(biases):
            linear.bias_N = self._bias([part.layout.shape[0] for part in plan.parts], biases)
        if self._prepare:
            self._prepare(linear)

    def _read_experts(self, experts: Experts, stacks: Stacks) -> None:
        stacks.fill(experts, self._source, self._placer, self._wanted)
        if self._prepare:
            self._prepare(experts)

    def _bias(self, sizes: Sequence[int], biases: Sequence[Part | None]) -> Tensor | None:
        """One bias of several; None where it would add nothing."""
        bias_N = self._placer.put(torch.zeros(sum(sizes)))
        for part, rows in zip(biases, bias_N.split(list(sizes)), strict=True):
            if part:
                fusing.read_dense(self._source, part, rows, self._placer)
        self._placer.ready(bias_N)
        return bias_N if bias_N.any() else None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
