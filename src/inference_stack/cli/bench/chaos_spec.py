"""What a run of chaos is made of: the fleet, its traffic, its faults, and what is written down of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from inference_stack.cli.bench.chaos_requests import Case
from inference_stack.config.schema import knob

SILENT_SECONDS = 0.5
"""A stream without news for this long has been struck by something."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a fleet is built and broken: each field is an option of `istack bench chaos`."""

    model: str = knob("smollm2", "The model to serve.")
    engine: str = knob("simulated", "What nodes compute with.", choices=("native", "simulated"))
    preset: str = knob("a100-80", "Device whose times the simulated engine takes.")
    preset_model: str = knob("llama-3.1-8b", "Model whose times the simulated engine takes.")
    gateways: int = knob(2, "Gateways.", low=1)
    nodes: int = knob(3, "Nodes.", low=2)
    tls: bool = knob(False, "Certificates on both sides of every link.")
    faults: int = knob(100, "Faults that must hit live streams before the run ends.", low=0)
    every: float = knob(3.0, "Seconds between the beginnings of two faults.", low=0.1)
    kinds: str = knob("", "Only these kinds of faults, such as worker/kill,link/cut; empty takes all.")
    streams: int = knob(24, "Requests in flight.", low=1)
    resuming: float = knob(0.67, "Share of them sent by clients that resume broken streams.", low=0, high=1)
    cases: int = knob(55, "Different requests, each with an answer known from before.", low=11)
    shortest: int = knob(20, "Shortest answer in tokens.", low=4)
    longest: int = knob(250, "Longest answer in tokens.", low=4)
    hold: float = knob(2.5, "Seconds that a stopped, slow or cut off part stays so.", low=0.1)
    silence_seconds: float = knob(1.5, "The gateways' gateway.silence_seconds.", low=0.2)
    heartbeat_seconds: float = knob(1.5, "The nodes' node.heartbeat_seconds.", low=1.0)
    seed: int = knob(0, "Of requests, faults and victims.")
    logs: str = knob("", "Folder for the logs of all processes; empty deletes them.")
    out: str = knob("", "Write the account to this file as JSON.")


@dataclass(kw_only=True)
class Record:
    """One request as its client saw it. Times are seconds of one clock; `times` starts with `begin`, then has every event's.

    A resuming client has `sent` it more than once where a gateway failed it, `resumes` times with the id of what it had already.
    """

    number: int
    case: Case
    resuming: bool
    gateway: str
    begin: float
    times: list[float] = field(default_factory=list)
    end: float = 0.0
    id: str = ""
    sent: int = 0
    resumes: int = 0
    error: str = ""
    wrong: str = ""

    def gap(self, begin: float, end: float) -> float:
        """The longest time without news that overlaps with these times; 0 where there is none.

        A silence that was long already at `begin` is not counted: something earlier caused it.
        """
        times = [*self.times, self.end] if self.end else self.times
        around = (pair for pair in pairwise(times) if begin - SILENT_SECONDS <= pair[0] <= end and pair[1] >= begin)
        return max((later - earlier for earlier, later in around), default=0.0)


@dataclass(kw_only=True)
class Fault:
    """One fault: what was done to whom, from when until when, and which streams were there."""

    number: int
    kind: str
    victim: str
    begin: float
    end: float = 0.0
    again: float = float("inf")
    """When the victim could be used again."""
    hit: list[Record] = field(default_factory=list)
    note: str = ""

    @property
    def role(self) -> str:
        """Who was struck: worker, node, gateway or link."""
        return self.kind.partition("/")[0]
