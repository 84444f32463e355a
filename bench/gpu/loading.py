"""How fast weights get from files in the page cache to the device, converted and laid out for the kernels."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench.gpu.bound import Bench, Kernels
from bench.gpu.house import tensor_shapes, write_config
from bench.gpu.place import Place
from bench.gpu.shapes import measured
from safetensors.torch import save_file

from inference_stack.artifacts.resolve import resolve
from inference_stack.models.loader import load_model

LAYERS = 10
"""Of an 8B model's layers that the file has: six gigabytes with its tables."""


def load_rate(place: Place, folder: Path, kernels: Kernels) -> dict[str, Any]:
    """Write a model of random weights, which leaves it in the page cache, and load it three times; the median counts."""
    raw = measured("llama-3.1-8b").raw(place.tiny) | ({} if place.tiny else {"num_hidden_layers": LAYERS})
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = write_config(raw, Path(name) / "model")
        nbytes = _write(place, raw, path)
        seconds = [_load(place, path, kernels) for _ in range(3)]
    ordered = sorted(seconds)
    return {
        "bytes": nbytes,
        "seconds": seconds,
        "gb_per_s": nbytes / ordered[1] / 1e9,
        "best": nbytes / ordered[0] / 1e9,
    }


def _load(place: Place, path: Path, kernels: Kernels) -> float:
    ops = Bench(place, kernels).ops(spoilt=False)
    place.wait()
    began = time.perf_counter()
    load_model(resolve(str(path), path, offline=True), device=place.device, prepare=ops.prepare)
    place.wait()
    seconds = time.perf_counter() - began
    if place.on_card:
        torch.cuda.empty_cache()
    return seconds


def _write(place: Place, raw: dict[str, Any], path: Path) -> int:
    """Random bf16 weights under the names that a checkpoint has. Their bytes."""
    tensors = {}
    for seed, (name, shape) in enumerate(tensor_shapes(raw)):
        tensors[name] = (place.random(*shape, seed=seed, dtype=torch.bfloat16) * 0.02).cpu()
    save_file(tensors, path / "model.safetensors")
    return sum(tensor.nbytes for tensor in tensors.values())
