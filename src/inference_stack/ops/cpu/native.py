"""The native extension as this process uses it: its threads, its kernels, and where operations go.

emit ──▶ a recording is open:  appended to it, to be replayed with other sizes at the same addresses
     └─▶ otherwise:            a tape of its own, run at once
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from inference_stack.ops.cpu import _native

BUILD_HINT: Final = "install gcc or clang, then install this package again"


def extension() -> ModuleType | str:
    """The compiled module, or why there is none."""
    try:
        from inference_stack.ops.cpu import _native
    except ImportError as error:
        return f"native kernels are not built ({error}); {BUILD_HINT}"
    return _native


@dataclass(frozen=True, slots=True)
class Timing:
    """One entry of a replayed tape, with its seconds."""

    name: str
    seconds: float


class Recorded:
    """A recorded step: replays every operation with one native call. `keep` holds what the recorded addresses point into."""

    def __init__(self, native: Native, tape: _native.Tape, keep: object) -> None:
        self._native = native
        self._tape = tape
        self._keep = keep

    def run(self, tokens: int, rows: int, samples: int) -> None:
        """Replay for T tokens in R rows with S samples, which must not exceed what was recorded."""
        self._native.pool.run(self._tape, tokens, rows, samples)

    def start_profile(self) -> None:
        """From now on, time each operation."""
        self._tape.start_profile()

    def stop_profile(self) -> Sequence[Timing]:
        """Each operation's seconds since `start_profile`, as the calling threads saw them."""
        names, seconds = self._tape.names(), self._tape.stop_profile()
        return [Timing(name, spent) for name, spent in zip(names, seconds, strict=True)]


class Native:
    """One device's threads and kernels. `kernels` names the kernel set; its results do not depend on it, nor on `threads`."""

    def __init__(self, module: ModuleType, threads: int, kernels: str) -> None:
        self.module = module
        self.kernels = kernels
        self.pool: _native.Pool = module.Pool(threads)
        self.store: _native.WeightStore = module.WeightStore()
        self.sampler: _native.Sampler = module.Sampler(self.pool, kernels)
        self._tape: _native.Tape | None = None
        self._kept: list[object] = []

    @property
    def recording(self) -> bool:
        """Whether operations are recorded instead of run."""
        return self._tape is not None

    def emit(self, add: Callable[[_native.Tape], None], *, tokens: int = 0, rows: int = 0, samples: int = 0) -> None:
        """Record or run one operation, which `add` appends to a tape, over this many tokens, rows and samples."""
        if self._tape is not None:
            add(self._tape)
            return
        tape = self.module.Tape(self.kernels, tokens, samples)
        add(tape)
        self.pool.run(tape, tokens, rows, samples)

    def keep(self, *objects: object) -> None:
        """What a recorded operation points into must live as long as the recording; run operations need nothing kept."""
        if self._tape is not None:
            self._kept += objects

    def read_bandwidth(self, clock: Callable[[], float], nbytes: int = 1 << 29) -> float:
        """Bytes a second that all threads together read from main memory, the best of five passes over `nbytes`."""
        memory = torch.ones(nbytes // 8, dtype=torch.int64)
        seconds = []
        for _ in range(5):
            began = clock()
            self.module.read_memory(self.pool, address(memory), nbytes)
            seconds.append(clock() - began)
        return nbytes / min(seconds)

    @contextmanager
    def record(self, most_tokens: int, most_samples: int) -> Iterator[Callable[[], Recorded]]:
        """Operations in this block are recorded; the value, called at the end of it, gives the recording.

        To be replayed it must be made over a sealed workspace: until then, addresses last as long as their tensors.
        """
        if self._tape is not None:
            raise RuntimeError("a recording is open already")
        tape: _native.Tape = self.module.Tape(self.kernels, most_tokens, most_samples)
        self._tape, self._kept = tape, []
        try:
            yield lambda: Recorded(self, tape, tuple(self._kept))
        finally:
            self._tape, self._kept = None, []


def address(tensor: Tensor | None) -> int:
    """Where a tensor's data begins; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
