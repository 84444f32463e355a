"""`python -m bench.gpu peer`: ours beside whatever other engine can run here, on the same card, in the same run.

Transformers' continuous batching and vLLM are tried where they can be imported; where none can, that is the result. All get the
same random weights' shape, the same prompts, and as many tokens to make; a process each, one after the other.
"""

from __future__ import annotations

import importlib
import inspect
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bench.gpu.house import open_house, request, words, write_config
from bench.gpu.place import Place, apart, missing
from bench.gpu.report import Budget, Report
from bench.gpu.shapes import measured

NEEDS = {"ours": (), "transformers": ("transformers",), "vllm": ("vllm",)}
Generate = Callable[[list[list[int]], int], list[list[int]]]
"""Prompts and how many tokens to make after each; greedy, ends of text ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """So many requests at once, with prompts and answers of these lengths."""

    requests: int
    prompt: int
    answer: int

    @property
    def title(self) -> str:
        """Such as "32 × 512 + 128"."""
        return f"{self.requests} × {self.prompt} + {self.answer}"


SCENARIOS = (
    Scenario(requests=1, prompt=512, answer=128),
    Scenario(requests=32, prompt=512, answer=128),
    Scenario(requests=128, prompt=512, answer=128),
    Scenario(requests=8, prompt=4096, answer=16),
)
TINY = (Scenario(requests=2, prompt=20, answer=4),)


def compare(place: Place, report: Report, budget: Budget, name: str, ours: list[str]) -> None:
    """Every engine that can run, then ratios. `ours` are options of our own."""
    able = {engine: missing(*modules) for engine, modules in NEEDS.items()}
    for engine, why in able.items():
        if why is not None:
            report.skip(engine, why)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for engine in [engine for engine, why in able.items() if why is None]:
            if not budget.fits(report, engine, 0.0 if place.tiny else 60.0):
                continue
            out = Path(folder) / f"{engine}.json"
            arguments = [
                "peer-engine",
                "--engine",
                engine,
                "--name",
                name,
                "--device",
                str(place.device),
                "--out",
                str(out),
            ]
            arguments += (["--tiny"] if place.tiny else []) + (ours if engine == "ours" else [])
            apart(arguments, budget.left, lambda line: print(line, flush=True))
            found[engine] = json.loads(out.read_text()) if out.is_file() else {"error": "the process died"}
            report.put("engines", found)
    _ratios(report, found)


def _ratios(report: Report, found: dict[str, Any]) -> None:
    """Ours over theirs, where both have a number."""
    ratios: dict[str, dict[str, float]] = {}
    mine = found.get("ours", {}).get("scenarios", {})
    for engine, result in found.items():
        if "error" in result:
            report.row(engine, "", "", "", result["error"])
        for title, one in result.get("scenarios", {}).items():
            ratio = one["seconds"] and mine.get(title, {}).get("seconds") and one["seconds"] / mine[title]["seconds"]
            if ratio and engine != "ours":
                ratios.setdefault(engine, {})[title] = ratio
            report.row(engine, title, one["tokens_per_s"], ratio if ratio and engine != "ours" else "", "")
    report.put("ratios", ratios)
    if len(found) < 2:
        report.row("no peer", "can run on this machine", "", "", "nothing to compare with")


def run_engine(place: Place, engine: str, name: str, ours: dict[str, Any]) -> dict[str, Any]:
    """All scenarios on one engine, in this process: once to warm up, then twice, of which the better counts."""
    raw = measured(name).raw(place.tiny) | {"dtype": "bfloat16" if place.on_card else "float32"}
    with tempfile.TemporaryDirectory() as folder:
        path = write_config(raw, Path(folder) / name)
        generate = OPENERS[engine](place, path, raw, ours)
        results: dict[str, Any] = {}
        for scenario in TINY if place.tiny else SCENARIOS:
            seconds = [_run(generate, scenario, int(raw["vocab_size"]), turn) for turn in range(3)]
            made = scenario.requests * scenario.answer
            results[scenario.title] = asdict(scenario) | {
                "seconds": min(seconds[1:]), "all": seconds, "tokens_per_s": made / min(seconds[1:]),
            }  # fmt: skip
    return {"engine": engine, "scenarios": results}


def _run(generate: Generate, scenario: Scenario, vocabulary: int, turn: int) -> float:
    """Seconds of a scenario with prompts that nobody has seen. Raises RuntimeError when tokens are missing."""
    numbers = range(turn * 1000, turn * 1000 + scenario.requests)
    prompts = [words(scenario.prompt, vocabulary, number) for number in numbers]
    began = time.perf_counter()
    made = generate(prompts, scenario.answer)
    seconds = time.perf_counter() - began
    if any(len(tokens) != scenario.answer for tokens in made) or len(made) != scenario.requests:
        raise RuntimeError(f"{[len(tokens) for tokens in made]} tokens instead of {scenario.answer} each")
    return seconds


def _ours(place: Place, path: Path, raw: dict[str, Any], options: dict[str, Any]) -> Generate:
    kernels = options.pop("kernels", "auto")
    small = {"max_model_len": 256, "kv_memory": "16MiB"} if place.tiny else {"max_model_len": 8192}
    house = open_house(place, path, kernels, None, **(small | options))

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        asked = [request(house, prompt, f"r{at}", max_tokens=count) for at, prompt in enumerate(prompts)]
        return [answer.tokens for answer in house.run(asked)]

    return generate


def _transformers(place: Place, path: Path, raw: dict[str, Any], options: dict[str, Any]) -> Generate:
    """`generate_batch` of transformers 5, greedy, with what it chooses by itself; it may keep what it made from run to run."""
    transformers: Any = importlib.import_module("transformers")

    config = transformers.AutoConfig.from_pretrained(path)
    with torch.device(place.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=place.dtype).eval()
    able = inspect.signature(model.generate_batch).parameters
    kept: dict[str, Any] = {"persistent_manager": True} if "persistent_manager" in able else {}
    if place.tiny:  # by itself it takes all memory there is, which on CPUs takes minutes
        kept["continuous_batching_config"] = transformers.ContinuousBatchingConfig(num_blocks=4, max_batch_tokens=64)
    sized: list[tuple[int, int, int]] = []

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        size = len(prompts), len(prompts[0]), count
        if sized[-1:] != [size] and hasattr(model, "destroy_cached_continuous_batching_manager"):
            model.destroy_cached_continuous_batching_manager()  # it was made for other requests
        sized.append(size)
        wanted = transformers.GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0)
        outputs = model.generate_batch(inputs=prompts, generation_config=wanted, **kept)
        return [output.generated_tokens for output in outputs.values()]

    return generate


def _vllm(place: Place, path: Path, raw: dict[str, Any], options: dict[str, Any]) -> Generate:
    """vLLM's offline engine with its own random weights."""
    vllm: Any = importlib.import_module("vllm")

    llm = vllm.LLM(
        model=str(path), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", max_model_len=8192,
        enable_prefix_caching=False, disable_log_stats=True,
    )  # fmt: skip

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        params = vllm.SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate


OPENERS: dict[str, Callable[[Place, Path, dict[str, Any], dict[str, Any]], Generate]] = {
    "ours": _ours,
    "transformers": _transformers,
    "vllm": _vllm,
}
