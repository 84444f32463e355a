"""An engine core with tiny random models, built as a worker builds it, and driven in-process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference_stack.config.tree import Config, EngineConfig, ModelEntry, NodeConfig
from inference_stack.core.errors import ErrorInfo
from inference_stack.core.request import Continuation, FinishReason, Request, SamplingParams
from inference_stack.core.seams import SystemClock
from inference_stack.core.step import TokenDelta, TokenLogprob
from inference_stack.engine.core import EngineCore
from inference_stack.engine.devices import AnyDevice
from inference_stack.engine.startup import Startup
from inference_stack.telemetry.startup import Account
from inference_stack.wire.messages import Ready
from tests.models.tiny import VOCAB, make


@dataclass
class Answer:
    """All that came back for one request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    cached: int | None = None
    finish: FinishReason | None = None
    error: ErrorInfo | None = None

    def take(self, delta: TokenDelta) -> None:
        assert self.finish is None, "news after the end"
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        self.prompt_logprobs = delta.prompt_logprobs if self.prompt_logprobs is None else self.prompt_logprobs
        self.cached = delta.cached_tokens if self.cached is None else self.cached
        self.finish, self.error = delta.finish, delta.error


class Engine:
    """One device's engine; `answers` by request id."""

    def __init__(self, core: EngineCore, ready: Ready) -> None:
        self.core = core
        self.ready = ready
        self.answers: dict[str, Answer] = {}

    def add(self, request: Request) -> None:
        self.answers[request.id] = Answer()
        self.core.add(request)

    def step(self) -> None:
        for delta in self.core.step():
            self.answers[delta.request_id].take(delta)

    def run(self, requests: Iterable[Request], before_step: Callable[[int], None] = lambda step: None) -> list[Answer]:
        """Everything the requests got, run together; the engine is idle and intact afterwards."""
        requests = list(requests)
        for request in requests:
            self.add(request)
        steps = 0
        while self.core.has_work:
            before_step(steps)
            self.step()
            steps += 1
            assert steps < 10_000, "no end in sight"
        self.core.check()
        return [self.answers.pop(request.id) for request in requests]

    def alone(self, request: Request) -> Answer:
        (answer,) = self.run([request])
        return answer


def save_tiny(family: str, path: Path, **changes: Any) -> Path:
    """A tiny random model as a safetensors directory."""
    make(family, **changes).save_pretrained(path)
    return path


def engine(*models: Path, device: AnyDevice | None = None, **settings: Any) -> Engine:
    """An engine serving these directories under their names; settings are the engine section's."""
    chosen: dict[str, Any] = {"max_running": 16, "max_batch_tokens": 64, "kv_memory": "4MiB"}
    config = Config(
        models=tuple(ModelEntry(model=str(path), name=path.stem) for path in models),
        engine=EngineConfig(**(chosen | settings)),
        node=NodeConfig(threads=1),
    )
    clock = SystemClock()
    return Engine(*Startup(config, clock, Account(clock, clock.now()), device).run())


def request(
    prompt: Sequence[int],
    name: str = "r",
    model: str = "llama",
    seed: int = 11,
    emitted: Sequence[int] = (),
    **params: Any,
) -> Request:
    """A request that reports the whole distribution of every token, so that equal answers are equal bit for bit."""
    chosen = {"max_tokens": 12, "temperature": 1.0, "ignore_eos": True, "logprobs": VOCAB}
    known = Continuation(
        prompt=tuple(prompt), params=SamplingParams(**(chosen | params)), seed=seed, emitted=tuple(emitted)
    )
    return Request(id=name, model=model, continuation=known)


def prompt(length: int, salt: int = 0) -> list[int]:
    """Token ids that look arbitrary and repeat from run to run."""
    return [3 + (7919 * (number + 1) * (salt + 1) + number * number) % (VOCAB - 3) for number in range(length)]
