"""Hands a model its parameters, one by one, and notices what is missing, left over or of the wrong shape.

A parameter is allocated once at its final place and filled there, fused projections row range by row range, so that a
model is never in memory twice. Files are filled in by threads. Knows names and shapes; the container is a `Source`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from inference_stack.core.errors import unsupported_model
from inference_stack.models.api import Progress
from inference_stack.ops.api import Linear

MAX_THREADS = 8


class Source(Protocol):
    """A container of tensors under Hugging Face's names. `norms_hold_one`: Gemma's norm weights w are stored as 1 +
    w.
    """

    norms_hold_one: bool

    def names(self) -> Iterable[str]:
        """Every tensor."""
        ...

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Its shape; None where there is no such tensor."""
        ...

    def nbytes(self, name: str) -> int:
        """Its size in the file."""
        ...

    def read(self, name: str, out: Tensor) -> None:
        """Fill `out`, which has the tensor's shape. Called from several threads."""
        ...


class Weights:
    """A model's parameters in `dtype`, in the order the model asks. Values are there only after `finish`."""

    def __init__(self, source: Source, dtype: torch.dtype, threads: int = 0) -> None:
        self.norm_offset = 0.0 if source.norms_hold_one else 1.0
        self.dtype = dtype
        self.loaded_bytes = 0
        self.linears: list[Linear] = []
        self._source = source
        self._used: set[str] = set()
        self._jobs: list[tuple[str, Future[None]]] = []
        self._pool = ThreadPoolExecutor(threads or min(MAX_THREADS, len(os.sched_getaffinity(0))), "weights")

    def tensor(self, name: str, *shape: int) -> Tensor:
        """One parameter of this shape."""
        out = self._empty(shape)
        self._fill(name, out)
        return out

    def norm(self, name: str, size: int) -> Tensor:
        """A norm weight of the (1 + w) kind, with the 1 added."""
        out = self._empty((size,))
        self._fill(name, out, self.norm_offset)
        return out

    def rows(self, names: Sequence[str], sizes: Sequence[int], *tail: int) -> Tensor:
        """Several parameters, one below the other: fused projections and their biases."""
        out = self._empty((sum(sizes), *tail))
        for name, part in zip(names, out.split(list(sizes)), strict=True):
            self._fill(name, part)
        return out

    def linear(self, names: Sequence[str], sizes: Sequence[int], inputs: int, bias: bool = False) -> Linear:
        """A projection fused of several, each `name`.weight [size, inputs] and, with `bias`, `name`.bias [size]."""
        weight_NK = self.rows([f"{name}.weight" for name in names], sizes, inputs)
        bias_N = self.rows([f"{name}.bias" for name in names], sizes) if bias else None
        self.linears.append(Linear(weight_NK=weight_NK, bias_N=bias_N))
        return self.linears[-1]

    def finish(self, ignored: Iterable[str], progress: Progress) -> None:
        """Wait until every parameter is filled. Raises for tensors that nobody asked for, or what a read raised."""
        try:
            unexpected = sorted(set(self._source.names()) - self._used - set(ignored))
            if unexpected:
                raise unsupported_model(
                    f"Unexpected tensors, which this architecture does not have: {_some(unexpected)}."
                )
            total, done = sum(self._source.nbytes(name) for name, _ in self._jobs), 0
            for name, job in self._jobs:
                job.result()
                done += self._source.nbytes(name)
                progress("weights", done, total)
        finally:
            self._pool.shutdown(cancel_futures=True)

    def abandon(self) -> None:
        """Stop reading; for when the model could not be built."""
        self._pool.shutdown(cancel_futures=True)

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        out = torch.empty(shape, dtype=self.dtype)
        self.loaded_bytes += out.nbytes
        return out

    def _read(self, name: str, out: Tensor, offset: float) -> None:
        self._source.read(name, out)
        if offset:
            out += offset

    def _fill(self, name: str, out: Tensor, offset: float = 0.0) -> None:
        shape = self._source.shape(name)
        if shape is None:
            raise unsupported_model(f"The checkpoint has no tensor {name!r}.")
        if shape != tuple(out.shape):
            raise unsupported_model(
                f"Tensor {name!r} has shape {list(shape)}; the configuration asks for {list(out.shape)}."
            )
        self._used.add(name)
        self._jobs.append((name, self._pool.submit(self._read, name, out, offset)))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
