"""`python -m bench.limits [--peers RESULT]`: bounds for the demo model on this machine.

    g++ peak.cpp ─▶ ceilings (int8 blocks, fp32, memory) ─▶ the least time of each scenario ─▶ a table

A bound counts what cannot be left out, at the full rate of the instruction that does it: a projection's integer products with
their scales, attention in fp32, and one read of all weights and of the KV for each decode step. Nothing else takes time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from bench.peers.machine import describe
from bench.peers.ratios import RATES, TARGETS
from bench.peers.scenarios import FULL

from inference_stack.artifacts.gguf import GgufFile
from inference_stack.artifacts.resolve import resolve
from inference_stack.models.config import ModelConfig
from inference_stack.models.gguf_config import config_from_gguf

SOURCE = Path(__file__).with_name("peak.cpp")
RESULTS = Path(__file__).parents[1] / "results"
GIGA = 1e9
KV_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Of all threads together: 10⁹ operations a second (a product and its sum are two), and GB/s."""

    float_gops: float
    int8_gops: float
    w4_block_gops: float
    read_gb_per_s: float


def ceilings(threads: int) -> Ceilings:
    """Measure them. Raises `RuntimeError` without a working g++."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        command = ["g++", "-O3", "-march=native", "-std=c++20", "-pthread", "-Wno-uninitialized", SOURCE, "-o", program]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        printed = subprocess.check_output([program, str(threads)], text=True)
    return Ceilings(**{name: float(value) for name, value in (line.split() for line in printed.splitlines())})


@dataclass(frozen=True)
class Bounds:
    """The least seconds that a model's steps can take. `weight_bytes` are read once by every step."""

    config: ModelConfig
    weight_bytes: int
    most: Ceilings

    def prefill(self, tokens: int) -> float:
        """A prompt that sees nothing before it: products of all projections but the head, and causal attention."""
        one = self.config
        heads = one.heads * one.head_dim
        rows = one.hidden_size * (2 * heads + 2 * one.kv_heads * one.head_dim + 3 * one.intermediate_size)
        seen = tokens * (tokens + 1) // 2
        products = 2 * one.layers * rows * tokens / (self.most.w4_block_gops * GIGA)
        return products + 4 * one.layers * heads * seen / (self.most.float_gops * GIGA)

    def decode(self, rows: int, context: float) -> float:
        """One step of so many requests with so much context: weights and KV read once."""
        one = self.config
        kv = 2 * one.layers * one.kv_heads * one.head_dim * KV_BYTES * rows * context
        return (self.weight_bytes + kv) / (self.most.read_gb_per_s * GIGA)

    def at_once(self, count: int) -> float:
        """Tokens per second of `count` prompts and their answers."""
        steps, middle = FULL.many - 1, FULL.short + FULL.many / 2
        seconds = count * self.prefill(FULL.short) + steps * self.decode(count, middle)
        return count * FULL.many / seconds

    def metrics(self) -> dict[str, float]:
        """By the names of the comparison with peers."""
        return {
            "decode_tokens_per_s": 1 / self.decode(1, FULL.short + FULL.decode / 2),
            "ttft_ms": 1000 * self.prefill(FULL.long),
            "tokens_per_s_8": self.at_once(8),
            "tokens_per_s_32": self.at_once(32),
        }


def wanted(peers: Mapping[str, Any], family: str, name: str) -> dict[str, float]:
    """What each target against a peer comes to on the machine of a comparison."""
    found = peers["servers"][name]["summary"]
    return {metric: bound * found[metric]["median"] for metric, bound in TARGETS[family].items()}


def table(bounds: Mapping[str, float], peers: Mapping[str, Any] | None) -> str:
    """Bounds as Markdown; with a comparison, what was reached and what the targets against OpenVINO would need."""
    rows = [["metric", "bound"], ["---", "---"]]
    ours: Mapping[str, Any] = {}
    need: Mapping[str, float] = {}
    if peers is not None:
        ours, need = peers["servers"]["ours"]["summary"], wanted(peers, "OpenVINO", "openvino-gguf")
        rows = [[*rows[0], "reached", "of the bound", "target against OpenVINO needs"], ["---"] * 5]
    for metric, bound in bounds.items():
        row = [metric, f"{bound:.0f}"]
        if peers is not None:
            reached = ours[metric]["median"]
            share = reached / bound if metric in RATES else bound / reached
            possible = need[metric] <= bound if metric in RATES else need[metric] >= bound
            row += [
                f"{reached:.0f}",
                f"{share:.0%}",
                f"{need[metric]:.0f}" + ("" if possible else " (beyond the bound)"),
            ]
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.limits", description=__doc__)
    parser.add_argument("--peers", type=Path, help="a result of `python -m bench.peers run` on the same machine")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--weight-bytes", type=int, default=96_570_000, help="read by a step, as `istack bench profile` says"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / f"limits-{date.today()}.json")
    asked = parser.parse_args()
    with GgufFile(resolve("smollm2").weights[0]) as gguf:
        config = config_from_gguf(gguf)
    most = ceilings(asked.threads)
    bounds = Bounds(config, asked.weight_bytes, most).metrics()
    print(json.dumps(asdict(most)))
    print(table(bounds, json.loads(asked.peers.read_text()) if asked.peers else None))
    asked.out.write_text(
        json.dumps({"machine": describe(), "ceilings": asdict(most), "bounds": bounds}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
