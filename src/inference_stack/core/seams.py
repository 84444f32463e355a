"""The seams: time, transport, device, and the parts that later work plugs in.

Everything else is written against these protocols; nothing reads a clock, opens a socket or touches an accelerator
outside an implementation of one of them. The simulator implements `Clock`, `Link` and `Runner` on virtual time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from inference_stack.core.step import IntArray, StepPlan, StepResult

Out = TypeVar("Out", contravariant=True)
In = TypeVar("In", covariant=True)


class Clock(Protocol):
    """Where time comes from. Seconds."""

    def now(self) -> float:
        """Monotonic seconds; comparable within one machine."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch, for timestamps shown to people."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let this much of the clock's time pass."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class LinkClosed(Exception):
    """The other end of a link is gone; nothing more will arrive or be delivered."""


class Link(Protocol[Out, In]):
    """An ordered, reliable, two-way stream of typed messages between two parties."""

    async def send(self, message: Out) -> None:
        """Deliver in order. Waits while the other side is slow. Raises `LinkClosed`."""
        ...

    async def receive(self) -> In:
        """The next message. Raises `LinkClosed`."""
        ...

    async def close(self) -> None:
        """Both ends see `LinkClosed` from now on. Idempotent."""
        ...


class InFlightStep(Protocol):
    """A step that was launched."""

    def wait(self) -> StepResult:
        """Block until the step has retired, and return its result. Called once, in launch order."""
        ...


class Runner(Protocol):
    """Executes plans of one model instance in order. Tokens in, tokens out."""

    def launch(self, plan: StepPlan) -> InFlightStep:
        """Start a step without waiting for it. Rows may refer to tokens that an earlier step in flight will sample."""
        ...


class Event(Protocol):
    """A point in a stream of device work."""

    def wait(self) -> None:
        """Block the host until the device has passed this point."""
        ...


class Fetch(Protocol):
    """Results on their way from the device to the host."""

    def wait(self) -> Sequence[Any]:
        """Block until they are there: numpy arrays, in the order they were asked for."""
        ...

    @property
    def seconds(self) -> float | None:
        """After `wait`: how long the device worked on the step; None where the host's clock tells."""
        ...


class Device(Protocol):
    """One accelerator or one set of CPU cores: memory and ordered execution. Tensors are torch's (`Any` keeps core light)."""

    name: str
    torch_device: Any
    shares_memory: bool
    """Whether its memory is the host's: then a tensor may be read and written as an array."""

    def total_bytes(self) -> int:
        """Memory of the device in bytes."""
        ...

    def free_bytes(self) -> int:
        """Memory now free, in bytes."""
        ...

    def allocate(self, nbytes: int) -> Any:
        """A committed, zeroed uint8 tensor [nbytes] aligned to 64 bytes. Raises `InferenceError` when it does not fit."""
        ...

    def begin(self) -> None:
        """A step begins: its uploads are gathered until `send`, and last until its results have been fetched."""
        ...

    def upload(self, column: Any) -> Any:
        """A host array as a tensor on the device, whose values are there for all work queued after `send`."""
        ...

    def send(self) -> None:
        """Copy what was uploaded since the last time."""
        ...

    def keep(self, tensor: Any) -> Any:
        """An upload as a tensor that outlives its step."""
        ...

    def fetch(self, tensors: Sequence[Any]) -> Fetch:
        """Copy tensors to the host, behind all work queued so far, without waiting. The step ends here."""
        ...

    def isa(self) -> str:
        """What the kernels were chosen for; part of `numerics_id`."""
        ...


class Proposer(Protocol):
    """Guesses tokens ahead for speculation. A wrong guess costs time, never changes the output."""

    def propose(self, known: Sequence[Sequence[int]], k: IntArray) -> IntArray:
        """Drafts int32 [R, max k] padded with -1, given each row's known tokens and how many to guess for it."""
        ...


class KvTransfer(Protocol):
    """Moves whole KV blocks between places (host tier, other node): plan items with completion, behind the same fences."""

    def start(self, source: IntArray, target: IntArray) -> Event:
        """Copy logical blocks `source[i]` to `target[i]`; the event fires when the targets may be read."""
        ...
