"""Engine cores as workers build them, in this process, and small models on disk whose every number matters."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from bench.gpu.bound import Kernels
from bench.gpu.place import Place
from safetensors.torch import save_file

from inference_stack.artifacts.files import ModelFiles
from inference_stack.config.tree import Config, EngineConfig, ModelEntry, NodeConfig
from inference_stack.core.errors import ErrorInfo
from inference_stack.core.request import Continuation, FinishReason, Request, SamplingParams
from inference_stack.core.seams import SystemClock
from inference_stack.core.step import TokenDelta, TokenLogprob
from inference_stack.engine import startup
from inference_stack.engine.core import EngineCore
from inference_stack.models.api import LoadedModel
from inference_stack.models.config import config_from_hf
from inference_stack.models.fusing import Part
from inference_stack.models.loader import read_config
from inference_stack.models.placing import HostPlacer
from inference_stack.models.random_weights import RandomSource, RandomWeights, load_random
from inference_stack.models.registry import ARCHITECTURES
from inference_stack.telemetry.startup import Account, process_start
from inference_stack.wire.messages import Ready

KERNELS: dict[Kernels, str] = {"auto": "auto", "reference": "torch", "triton": "triton"}
SPREAD = 0.15
"""Of matrices of small models: activations keep their size from layer to layer, so that every layer matters to the last."""


@dataclass(slots=True)
class Answer:
    """All that came back for one request; `times` are when its tokens came, `time.monotonic` seconds."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    cached: int = 0
    finish: FinishReason | None = None
    error: ErrorInfo | None = None
    times: list[float] = field(default_factory=list)

    def take(self, delta: TokenDelta, now: float) -> None:
        """One more piece of news."""
        self.tokens += delta.tokens
        self.logprobs += delta.logprobs
        self.times += [now] * len(delta.tokens)
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
        self.cached = delta.cached_tokens or self.cached
        self.finish, self.error = delta.finish, delta.error

    def same_as(self, other: Answer) -> bool:
        """Equal bit for bit: tokens, and every log-probability."""
        mine, theirs = ((one.tokens, one.logprobs, one.prompt_logprobs, one.finish) for one in (self, other))
        return mine == theirs


class House:
    """One engine core, stepped by hand."""

    def __init__(self, core: EngineCore, ready: Ready) -> None:
        self.core = core
        self.ready = ready
        self.answers: dict[str, Answer] = {}

    @property
    def name(self) -> str:
        """Of the one model."""
        return self.ready.models[0].name

    def add(self, request: Request) -> Answer:
        """Queue a request; its answer grows from step to step."""
        answer = self.answers[request.id] = Answer()
        self.core.add(request)
        return answer

    def step(self) -> int:
        """One step; how many tokens came."""
        deltas = self.core.step()
        now = time.monotonic()
        for delta in deltas:
            self.answers[delta.request_id].take(delta, now)
        return sum(len(delta.tokens) for delta in deltas)

    def run(self, requests: Iterable[Request], before_step: Callable[[int], None] = lambda step: None) -> list[Answer]:
        """All of these together, to the end; the engine's books are in order afterwards."""
        mine = [self.add(request) for request in requests]
        steps = 0
        while self.core.has_work:
            before_step(steps)
            self.step()
            steps += 1
            if steps > 100_000:
                raise RuntimeError("the engine finds no end")
        self.core.check()
        self.answers.clear()
        return mine

    def drain(self) -> None:
        """Stop all requests, and forget them."""
        for name in list(self.answers):
            self.core.abort(name)
        while self.core.has_work:
            self.core.step()
        self.answers.clear()


def open_house(
    place: Place, model: Path, kernels: Kernels = "auto", quantise: str | None = None, **settings: Any
) -> House:
    """An engine on the place with the model in a directory; with a config.json alone, its weights are drawn in this form.

    Settings are the engine section's. Raises what starting raises.
    """
    drawn = not list(model.glob("*.safetensors"))
    chosen: dict[str, Any] = {"device": str(place.device), "kernels": KERNELS[kernels]}
    config = Config(
        models=(ModelEntry(model=str(model), name=model.name),),
        engine=EngineConfig(**(chosen | {"load_format": "random" if drawn else "auto"} | settings)),
        node=NodeConfig(threads=0 if place.on_card else 1),
    )
    clock = SystemClock()
    account = Account(clock, clock.now())
    if quantise is None:
        return House(*startup.Startup(config, clock, account).run())
    with mock.patch.object(startup, "load_model", drawer(quantise)):  # the product draws dense weights only
        return House(*startup.Startup(config, clock, account).run())


def drawer(quantise: str) -> Callable[..., LoadedModel]:
    """In place of `load_model`: draws quantised weights."""

    def draw(files: ModelFiles, **asked: Any) -> LoadedModel:
        return load_random(
            read_config(files), device=asked["device"], quantise=quantise, max_positions=asked["max_positions"],
            prepare=asked["prepare"],
        )  # fmt: skip

    return draw


def since_start() -> float:
    """Seconds since this process began."""
    clock = SystemClock()
    return clock.now() - process_start(clock, os.getpid())


def write_config(raw: dict[str, Any], folder: Path) -> Path:
    """A directory with a config.json alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


class Asked(RandomWeights):
    """Notes which tensors a model asks for, and makes none."""

    def _queue(self, parts: Sequence[Part], job: Callable[..., None], *arguments: object) -> None:
        """Nothing is read."""


def tensor_shapes(raw: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of what a checkpoint of this configuration holds."""
    config = config_from_hf(raw)
    source = RandomSource(torch.bfloat16, 0, None)
    with closing(HostPlacer()) as placer:
        weights = Asked(source, placer, None)
        ARCHITECTURES[config.architecture](config, weights, 16)
        weights.finish((), lambda what, done, total: None)
    layouts = {name: source.layout(name) for name in sorted(source.names())}
    return [(name, layout.shape) for name, layout in layouts.items() if layout is not None]


def write_model(raw: dict[str, Any], folder: Path, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A directory with a model of this configuration: random, but with attention, norms and biases that all tell."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tensor_shapes(raw):
        shift = 1.0 if name.endswith("norm.weight") else 0.0
        spread = SPREAD if len(shape) > 1 else 0.4
        tensors[name] = (torch.randn(shape, generator=draw) * spread + shift).to(dtype)
    write_config(raw, folder)
    save_file(tensors, folder / "model.safetensors")
    return folder


def request(house: House | str, prompt: Sequence[int], name: str, seed: int = 11, **params: Any) -> Request:
    """A request that does not end before its length; greedy unless asked otherwise."""
    chosen: dict[str, Any] = {"max_tokens": 16, "temperature": 0.0, "ignore_eos": True}
    known = Continuation(prompt=tuple(prompt), params=SamplingParams(**(chosen | params)), seed=seed)
    return Request(id=name, model=house if isinstance(house, str) else house.name, continuation=known)


def words(length: int, vocabulary: int, salt: int = 0) -> list[int]:
    """Random token ids, the same ones every time."""
    draw = torch.Generator().manual_seed(1000 + salt)
    found: list[int] = torch.randint(3, vocabulary, (length,), generator=draw).tolist()
    return found
