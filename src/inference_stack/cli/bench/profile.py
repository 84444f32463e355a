"""`istack bench profile`: where the time of a decode step goes, against what reading the weights alone would cost.

Runs an engine in this process as a worker does: plainly for the step's time, then once more with every part and operation timed.
"""

from __future__ import annotations

import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from inference_stack.config.tree import Config
from inference_stack.core.request import Continuation, Request, SamplingParams
from inference_stack.core.seams import Clock, SystemClock
from inference_stack.engine.core import EngineCore
from inference_stack.engine.runner import ModelRunner
from inference_stack.engine.startup import Startup
from inference_stack.engine.steps import RecordedStep
from inference_stack.engine.worker import tune_collector
from inference_stack.ops.cpu.native import Native, extension
from inference_stack.telemetry.laps import LapTimes, NoLaps
from inference_stack.telemetry.startup import Account
from inference_stack.wire.channel import Channel
from inference_stack.wire.messages import Ready, StepReport

MICRO = 1e6
NATIVE = ("op: ", "sampling: kernel")
"""Parts that are native code; the rest is what Python and torch cost."""
IDLE = "waits for the loop"


@dataclass(frozen=True)
class Profile:
    """Decode steps of one batch size, in microseconds a step. `step_us` is the mean of undisturbed steps.

    `device_us` are the parts of steps whose parts were timed, which takes a little longer: what lies on the device's path, waiting
    included. `loop_us` are the loop's own parts; with a pipeline they run beside the device. `weight_bytes` are read once a step.
    """

    batch: int
    context: int
    step_us: float
    device_us: dict[str, float]
    loop_us: dict[str, float]
    weight_bytes: int
    read_bytes_per_s: float

    @property
    def bandwidth_share(self) -> float:
        """Weight bytes per second of the whole step, as a share of what the memory can be read at."""
        return self.weight_bytes / (self.step_us / MICRO) / self.read_bytes_per_s if self.read_bytes_per_s else 0.0

    @property
    def glue_share(self) -> float:
        """The part of the step in which the device does not run native code."""
        native = sum(value for name, value in self.device_us.items() if name.startswith(NATIVE))
        return 1 - native / sum(self.device_us.values())


class Bench:
    """An engine with one model, stepped by hand."""

    def __init__(self, core: EngineCore, ready: Ready, clock: Clock) -> None:
        self._core = core
        self._clock = clock
        self._random = random.Random(1)
        self._info = ready.models[0]
        self._weights = sum(size for name, size in ready.ledger.memory if "weights" in name)
        (instance,) = core.instances
        assert isinstance(instance.runner, ModelRunner)
        self._runner = instance.runner
        mine, theirs = socket.socketpair()
        self._channel = Channel(mine)
        threading.Thread(target=_swallow, args=(theirs,), daemon=True).start()

    def profile(self, batch: int, context: int, steps: int, read_bytes_per_s: float) -> Profile:
        """Time `steps` decode steps of `batch` completions, twice."""
        for number in range(batch):
            self._core.add(self._request(number, context, 2 * steps))
        started: set[str] = set()
        while len(started) < batch:
            started |= {delta.request_id for delta in self._core.step() if delta.tokens}
        seconds = self._steps(steps, LapTimes(self._clock))
        loop, device, timed = self._parts(steps)
        while self._core.has_work:
            self._core.step()
        device[IDLE] = timed - sum(device.values())
        return Profile(batch, context, seconds, device, loop, self._weights, read_bytes_per_s)

    def _steps(self, steps: int, laps: LapTimes) -> float:
        """Microseconds of one of so many steps, whose parts in the loop go to `laps`."""
        began = self._clock.now()
        for _ in range(steps):
            laps.start()
            deltas = self._core.step()
            laps.lap("scheduler: advance")
            self._channel.send(StepReport(deltas=deltas, stats=self._core.stats()))
            laps.lap("IPC: encode and send")
        return (self._clock.now() - began) / steps * MICRO

    def _parts(self, steps: int) -> tuple[dict[str, float], dict[str, float], float]:
        """(loop, device, whole) microseconds of a step, the model's step split into its operations where it is recorded."""
        loop, device = LapTimes(self._clock), LapTimes(self._clock)
        recorded = self._runner.step if isinstance(self._runner.step, RecordedStep) else None
        self._core.laps, self._runner.laps = loop, device
        if recorded is not None:
            recorded.recording.start_profile()
        whole = self._steps(steps, loop)
        self._core.laps = self._runner.laps = NoLaps()
        parts = Counter(device.seconds)
        if recorded is not None:
            operations: Counter[str] = Counter()
            for timing in recorded.recording.stop_profile():
                operations[f"op: {timing.name}"] += timing.seconds  # type: ignore[assignment]
            parts["model: call"] = parts.pop("model") - sum(operations.values())
            parts.update(operations)
        loop.seconds.pop("waits for the device", None)
        each = MICRO / steps
        return (
            {name: value * each for name, value in sorted(loop.seconds.items())},
            {name: value * each for name, value in sorted(parts.items())},
            whole,
        )

    def _request(self, number: int, context: int, tokens: int) -> Request:
        prompt = tuple(self._random.randrange(self._info.vocab_size) for _ in range(context))
        params = SamplingParams(max_tokens=tokens + 64, temperature=0.0, ignore_eos=True)
        known = Continuation(prompt=prompt, params=params, seed=number)
        return Request(id=f"profile-{number}", model=self._info.name, continuation=known)


def _swallow(peer: socket.socket) -> None:
    """The node's end of the line."""
    while peer.recv(1 << 16):
        pass


def _read_bandwidth(threads: int, clock: Clock) -> float:
    module = extension()
    if isinstance(module, str) or not threads:
        return 0.0
    return Native(module, threads, "portable").read_bandwidth(clock.now)


def profile_engine(config: Config, batches: Sequence[int], context: int, steps: int, output: Path | None) -> None:
    """Profile each batch size, print a table each, and write JSON when asked."""
    clock, console = SystemClock(), Console()
    startup = Startup(config, clock, Account(clock, clock.now()))
    core, ready = startup.run()
    tune_collector()
    bandwidth = _read_bandwidth(startup.threads, clock)
    bench = Bench(core, ready, clock)
    profiles = [bench.profile(batch, context, steps, bandwidth) for batch in batches]
    for profile in profiles:
        console.print(_table(profile))
    if output is not None:
        rows = [
            asdict(one) | {"bandwidth_share": one.bandwidth_share, "glue_share": one.glue_share} for one in profiles
        ]
        output.write_text(json.dumps(rows, indent=1) + "\n")


def _table(profile: Profile) -> Table:
    title = (
        f"{profile.batch} at once, {profile.context} tokens of context: {profile.step_us:.0f} µs a step, "
        f"{profile.batch / profile.step_us * MICRO:.0f} tokens/s"
    )
    table = Table(title=title, box=None, title_justify="left", title_style="bold")
    for column in ("part", "µs", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    total = sum(profile.device_us.values())
    for name, value in sorted(profile.device_us.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{value:.1f}", f"{value / total:.1%}")
    table.add_row("the device's path, timed", f"{total:.1f}", "100.0%", style="bold")
    table.add_row("of it not native code", f"{total * profile.glue_share:.1f}", f"{profile.glue_share:.1%}")
    for name, value in sorted(profile.loop_us.items(), key=lambda item: -item[1]):
        table.add_row(f"[dim]in the loop: {name}[/dim]", f"[dim]{value:.1f}[/dim]", "")
    if profile.read_bytes_per_s:
        limit = profile.weight_bytes / profile.read_bytes_per_s * MICRO
        table.add_row(
            f"reading {profile.weight_bytes / 1e6:.0f} MB at {profile.read_bytes_per_s / 1e9:.1f} GB/s alone",
            f"{limit:.0f}",
            f"{profile.bandwidth_share:.0%} of the bandwidth",
        )
    return table
