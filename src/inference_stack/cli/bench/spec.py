"""What a measurement is made of: whom to ask, what to ask, and what came of each request."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from inference_stack.config.schema import knob


@dataclass(frozen=True, kw_only=True)
class Load:
    """How to load a server: each field is an option of `istack bench serve`."""

    url: str = knob("http://127.0.0.1:8000", "The server.")
    model: str = knob("", "Model to ask for; the first that the server lists if this is not given.")
    api: str = knob("completions", "Which endpoint to ask.", choices=("completions", "chat"))
    concurrency: int = knob(
        1, "Requests in flight; with arrivals from --rate or --trace a cap, where 0 is none.", low=0
    )
    rate: float = knob(0.0, "Arrivals per second; 0 keeps --concurrency in flight instead.", low=0)
    burstiness: float = knob(1.0, "Shape of the gaps: 1 is Poisson, less is burstier, more is steadier.", low=0.01)
    num_requests: int = knob(100, "Requests to send.", low=1)
    input_len: int = knob(128, "Prompt length in tokens.", low=1)
    output_len: int = knob(64, "Longest answer in tokens.", low=1)
    prefix_len: int = knob(0, "Tokens at the start of the prompts that all share.", low=0)
    dataset: str = knob("", "JSON lines with `prompt` or `messages`, and perhaps `output_len`.")
    trace: str = knob("", "CSV of recorded traffic: arrivals and lengths.")
    trace_speed: float = knob(1.0, "How much faster than recorded.", low=0.001)
    text_prompts: bool = knob(False, "Send text rather than token ids.")
    ignore_eos: bool = knob(False, "Answers have exactly --output-len tokens.")
    temperature: float = knob(0.0, "0 is greedy.", low=0)
    seed: int = knob(0, "Of prompts and arrivals.")
    warmup: int = knob(1, "Requests sent before, and not counted.", low=0)
    slo: str = knob("", "Objectives in milliseconds for goodput, such as ttft:500,tpot:50,e2e:9000.")
    timeout: float = knob(600.0, "Seconds after which a request has failed.", low=0.1)
    api_key: str = knob("", "Sent as a bearer token.")
    output: str = knob("", "Write the numbers to this file as JSON.")
    details: bool = knob(False, "Put every request's times into the JSON too.")

    @property
    def target(self) -> str:
        """The server's address without a trailing `/v1`."""
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def chat(self) -> bool:
        """Whether the chat endpoint is asked."""
        return self.api == "chat"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request: a prompt as token ids, text or messages, how much to answer, and when it arrives (seconds from the start)."""

    prompt: list[int] | str | list[dict[str, Any]]
    output_len: int
    arrival: float = 0.0


@dataclass(kw_only=True)
class Outcome:
    """What came of a request. Times are in seconds of one clock; `events` are when text arrived; `error` is its kind."""

    begin: float
    events: list[float] = field(default_factory=list)
    end: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    error: str = ""

    @property
    def ttft(self) -> float:
        """Seconds to the first text."""
        return self.events[0] - self.begin

    @property
    def latency(self) -> float:
        """Seconds to the end."""
        return self.end - self.begin

    @property
    def tpot(self) -> float:
        """Seconds per output token after the first."""
        return (self.events[-1] - self.events[0]) / (self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Seconds between one text event and the next."""
        return [later - earlier for earlier, later in pairwise(self.events)]
