"""What is measured: how each system starts, with every setting it is given, and what it is asked.

    serve     istack serve, one gateway process with its node          apart-NxM  istack gateway of N processes, M times istack node
    pump-*    the bare ASGI pump; -timed takes an engine's schedule    litellm, sglang-router  proxies before a bursting pump

Nothing here measures.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from bench.gateway.generator import MARK
from bench.peers.environments import installed, program, versions
from bench.peers.process import Process

from inference_stack.cli.background import free_port

MODEL = "smollm2"
TOKENS = 32
CAPACITY = ("--max-running", "2048", "--max-batch-tokens", "8192", "--max-queue", "4096")
"""An engine that is not the limit. Its times are those of the default preset."""

WORDS = ("the", "river", "and", "town", "road", "went", "on", "until", "light", "of", "morning", "came", "over", "hill")
ASKED_READY = 16
"""Answers in a row that make a system ready: processes that share a port become ready one after the other."""

FILLING = 90
"""Words beside the number, for a prompt of 128 tokens behind smollm2's template."""


def body(tokens: int = TOKENS, extra: Mapping[str, Any] | None = None, words: int = FILLING) -> str:
    """A request for `tokens` tokens after 128 of prompt, or less with fewer `words`."""
    prompt = " ".join([MARK, *(WORDS[i % len(WORDS)] for i in range(words))])
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **(extra or {}),
    }
    return json.dumps(asked)


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where things run: folder with environments, folder for logs, flags for our engine."""

    home: Path
    logs: Path
    engine: tuple[str, ...] = CAPACITY


@dataclass(kw_only=True)
class Running:
    """A started system: where it answers, its processes by role, what it is asked besides."""

    port: int
    processes: dict[str, Process] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    bearer: str = ""
    ours: bool = False

    def body(self, tokens: int = TOKENS, words: int = FILLING) -> str:
        """What to ask it."""
        return body(tokens, self.extra, words)

    def commands(self) -> dict[str, list[str]]:
        """How its processes were started."""
        return {role: process.command for role, process in self.processes.items()}


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _launch(
    stack: ExitStack, site: Site, name: str, command: list[str], ready: tuple[int, str] | None, env: Mapping[str, str]
) -> Process:
    process = Process(command, env, site.logs / f"gateway-{name}.log")
    stack.callback(process.stop)
    if ready is not None:
        port, path = ready
        process.wait(lambda: all(answers(port, path) for _ in range(ASKED_READY)))
    return process


ISTACK = [sys.executable, "-m", "inference_stack.cli.main"]
NONE: Mapping[str, str] = {}
KEY = "sk-of-a-benchmark-on-loopback"
"""LiteLLM's proxy does not start without a key."""


def _serve(stack: ExitStack, site: Site, _: str) -> Running:
    port = free_port()
    command = [*ISTACK, "serve", MODEL, "--engine", "simulated", *site.engine, "--port", str(port)]
    process = _launch(stack, site, "serve", command, (port, "/ready"), NONE)
    return Running(port=port, processes={"gateway": process}, extra={"ignore_eos": True}, ours=True)


def _apart(stack: ExitStack, site: Site, count: str) -> Running:
    gateways, _, nodes = count.partition("x")
    inner = [free_port() for _ in range(int(nodes or 1))]
    processes = {}
    for number, at in enumerate(inner, 1):
        node = [*ISTACK, "node", MODEL, "--engine", "simulated", *site.engine, "--listen", f"127.0.0.1:{at}"]
        name = f"node {number}" if len(inner) > 1 else "node"
        processes[name] = _launch(stack, site, name, [*node, "--name", f"n{number}"], None, NONE)
    port, addresses = free_port(), ",".join(f"127.0.0.1:{at}" for at in inner)
    gateway = [*ISTACK, "gateway", MODEL, "--gateway-nodes", addresses, "--port", str(port)]
    gateway += ["--gateway-processes", gateways or "1"]
    processes["gateway"] = _launch(stack, site, "gateway", gateway, (port, "/ready"), NONE)
    return Running(port=port, processes=processes, extra={"ignore_eos": True}, ours=True)


def _pump(stack: ExitStack, site: Site, mode: str, count: str = "1") -> Running:
    port = free_port()
    command = [sys.executable, "-m", "bench.gateway.pump", "--port", str(port), "--mode", mode, "--processes", count]
    process = _launch(stack, site, f"pump-{mode}", command, (port, "/health"), NONE)
    return Running(port=port, processes={"pump": process})


def _upstream(stack: ExitStack, site: Site) -> Running:
    return _pump(stack, site, "burst")


def _litellm(stack: ExitStack, site: Site, _: str) -> Running:
    upstream, port = _upstream(stack, site), free_port()
    target = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{upstream.port}/v1", "api_key": "none"}
    config = site.logs / "litellm.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": target}]}))
    command = [str(program(site.home, "litellm", "litellm")), "--config", str(config), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": KEY}
    proxy = _launch(stack, site, "litellm", command, (port, "/health/liveliness"), env)
    return Running(port=port, processes={"proxy": proxy, "upstream": upstream.processes["pump"]}, bearer=KEY)


def _sglang(stack: ExitStack, site: Site, _: str) -> Running:
    upstream, port = _upstream(stack, site), free_port()
    command = [str(program(site.home, "sglang-router")), "-m", "sglang_router.launch_router", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--worker-urls", f"http://127.0.0.1:{upstream.port}", "--policy", "round_robin"]
    command += ["--prometheus-port", str(free_port()), "--log-level", "warn"]
    command += ["--disable-circuit-breaker"]  # one overloaded trial would end all later ones
    proxy = _launch(stack, site, "sglang-router", command, (port, "/health"), NONE)
    return Running(port=port, processes={"proxy": proxy, "upstream": upstream.processes["pump"]})


@dataclass(frozen=True)
class System:
    """A way to start something. `environment` names what has to be installed first."""

    start: Callable[[ExitStack, Site, str], Running]
    environment: str = ""
    guess: float = 200.0


SYSTEMS = {
    "serve": System(_serve),
    "apart": System(_apart),
    "pump-stepped": System(lambda stack, site, count: _pump(stack, site, "stepped", count or "1"), guess=400.0),
    "pump-timed": System(lambda stack, site, count: _pump(stack, site, "timed", count or "1"), guess=400.0),
    "pump-burst": System(lambda stack, site, count: _pump(stack, site, "burst", count or "1"), guess=800.0),
    "litellm": System(_litellm, "litellm", guess=15.0),
    "sglang-router": System(_sglang, "sglang-router", guess=200.0),
}
DEFAULT = ("serve", "apart-2", "pump-stepped", "pump-stepped-2", "litellm", "sglang-router")


def find(name: str) -> tuple[System, str]:
    """A system by its name, which may end in a number of processes. Raises `ValueError` for an unknown one."""
    base, count = name, ""
    if match := re.fullmatch(r"(.+?)-(\d+(?:x\d+)?)", name):
        base, count = match.groups()
    many = base == "apart" or (base.startswith("pump") and "x" not in count)
    if base not in SYSTEMS or (count and not many):
        raise ValueError(
            f"no system is called {name}; there are {', '.join(SYSTEMS)}; apart and pumps take -N, apart -NxM"
        )
    return SYSTEMS[base], count


@contextmanager
def running(name: str, site: Site) -> Iterator[Running]:
    """Start a system; it is stopped at the end of the block. Raises `RuntimeError` if it does not come up."""
    system, count = find(name)
    if system.environment and not installed(site.home, system.environment):
        raise RuntimeError("not installed: python -m bench.gateway install")
    site.logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        yield system.start(stack, site, count)


def packages(name: str, site: Site) -> dict[str, str]:
    """What a peer's environment holds; empty for what runs in ours."""
    environment = find(name)[0].environment
    return versions(site.home, environment) if environment else {}
