"""Our server beside llama.cpp's on the same file, machine and threads, by the same client; rounds of the two alternate.

    python bench/peers.py [--rounds 3] [--threads 2] [--model FILE.gguf] [--only ours|llama.cpp] [--output FILE]

The peer is the `xllamacpp` wheel in an environment of its own under a temporary folder, or the interpreter given as
--peer-python. Writes medians and every round as JSON into bench/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from inference_stack.artifacts.catalogue import default_cache_dir
from inference_stack.artifacts.resolve import resolve
from inference_stack.cli.background import free_port
from inference_stack.cli.bench.measure import run
from inference_stack.cli.bench.spec import Load
from inference_stack.core.seams import SystemClock

HERE = Path(__file__).parent
PEER = "xllamacpp==2026.10.11549"
START_SECONDS = 120.0

SCENARIOS = {
    "single decode": Load(concurrency=1, num_requests=2, input_len=16, output_len=128, ignore_eos=True),
    "TTFT of 1000 tokens": Load(concurrency=1, num_requests=2, input_len=1000, output_len=1, ignore_eos=True),
    "8 at once": Load(concurrency=8, num_requests=8, input_len=128, output_len=64, ignore_eos=True),
    "32 at once": Load(concurrency=32, num_requests=32, input_len=128, output_len=64, ignore_eos=True),
}


def peer_python(folder: Path) -> Path:
    """An interpreter that has the peer, in a new environment under `folder`."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", PEER], check=True)
    return python


def wait(url: str, child: subprocess.Popen[bytes]) -> None:
    """Until the server answers its health check with 200."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if child.poll() is not None:
            raise RuntimeError(f"the server at {url} ended with status {child.returncode}")
        try:
            with urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{url} did not become ready")


@contextmanager
def running(command: list[str], url: str) -> Iterator[None]:
    """A server process, from the moment it is ready until the end of the block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "ISTACK_"))}
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
        try:
            wait(url, child)
            yield
        finally:
            child.terminate()
            child.wait(60)


@contextmanager
def ours(model: Path, threads: int) -> Iterator[str]:
    """Our server; yields its URL."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "inference_stack.cli.main", "serve", str(model)]
    with running([*command, "--port", str(port), "--threads", str(threads)], f"{url}/ready"):
        yield url


@contextmanager
def peer(python: Path, model: Path, threads: int) -> Iterator[str]:
    """llama.cpp's server; yields its URL."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    with running([str(python), str(HERE / "llama_server.py"), str(model), str(port), str(threads)], f"{url}/health"):
        yield url


def one_round(url: str, number: int) -> dict[str, dict[str, float]]:
    """The numbers of each scenario once. Prompts differ from round to round, so that no cache helps."""
    row: dict[str, dict[str, float]] = {}
    for name, load in SCENARIOS.items():
        settings = {**vars(load), "url": url, "seed": 1000 * number, "warmup": 1}
        result, _ = run(Load(**settings), SystemClock(), lambda outcome: None)
        if result["errors"]:
            raise RuntimeError(f"{name} against {url}: {result['errors']}")
        decode = 1000 / result["tpot_ms"]["p50"] if result["tpot_ms"] else 0.0
        row[name] = {
            "output_tokens_per_s": round(result["output_tokens_per_s"], 2),
            "decode_tokens_per_s_per_stream": round(decode, 2),
            "ttft_ms_p50": round(result["ttft_ms"]["p50"], 2),
            "itl_ms_p99": round(result["itl_ms"]["p99"], 2) if result["itl_ms"] else 0.0,
        }
        print(f"  {name}: {row[name]}", flush=True)
    return row


def medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The median of every number over the rounds."""
    return {
        name: {key: median(row[name][key] for row in rounds) for key in numbers} for name, numbers in rounds[0].items()
    }


def machine() -> dict[str, Any]:
    """What this was measured on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "system": platform.platform()}


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--only", choices=("ours", "llama.cpp"))
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--output", type=Path, default=HERE / "results" / f"peers-{date.today()}.json")
    return parser.parse_args()


def measure(chosen: argparse.Namespace, model: Path) -> dict[str, list[dict[str, dict[str, float]]]]:
    """Every round of every server; both run all the time, one of them idle."""
    with ExitStack() as stack:
        urls: dict[str, str] = {}
        if chosen.only != "ours":
            python = chosen.peer_python or peer_python(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            urls["llama.cpp"] = stack.enter_context(peer(python, model, chosen.threads))
        if chosen.only != "llama.cpp":
            urls["ours"] = stack.enter_context(ours(model, chosen.threads))
        rounds: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in urls}
        for number in range(chosen.rounds):
            for name, url in urls.items():
                print(f"round {number + 1}, {name}", flush=True)
                rounds[name].append(one_round(url, number))
        return rounds


def main() -> None:
    """Measure, write, print the medians."""
    chosen = arguments()
    model = chosen.model or resolve("smollm2", default_cache_dir()).weights[0]
    rounds = measure(chosen, model)
    result = {
        "date": str(date.today()),
        "machine": machine(),
        "model": model.name,
        "threads": chosen.threads,
        "versions": {"ours": version("inference-stack"), "torch": version("torch"), "llama.cpp": PEER},
        "medians": {name: medians(rows) for name, rows in rounds.items()},
        "rounds": rounds,
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["medians"], indent=2))


if __name__ == "__main__":
    main()
