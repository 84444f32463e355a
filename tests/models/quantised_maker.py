"""Writes tiny models as quantised safetensors checkpoints, in each layout that is read, and gives them the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import PreTrainedModel

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.resolve import resolve
from tests.artifacts import packers
from tests.artifacts.packers import Parts

Pack = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Parts]
"""From codes, zeros, scales and g_idx to a matrix's tensors."""


@dataclass(frozen=True)
class Format:
    """A layout: its configuration, and how a matrix is packed. `name` is what the loader shall call the result."""

    config: dict[str, Any]
    pack: Pack
    name: str
    bits: int = 4
    group: int = 32
    symmetric: bool = False
    ordered: bool = False


def _compressed(bits: int, form: str, strategy: str = "group", symmetric: bool = True) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "strategy": strategy, "symmetric": symmetric}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
V2 = GPTQ | {"checkpoint_format": "gptq_v2", "sym": False}
PACKED = "pack-quantized"


def _awq(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, g_idx: np.ndarray) -> Parts:
    return packers.awq(codes, zeros, scales)


def _gptq(bits: int, less_one: bool) -> Pack:
    return partial(packers.gptq, bits=bits, less_one=less_one)


def _packed(bits: int, symmetric: bool = True, ordered: bool = False) -> Pack:
    return lambda codes, zeros, scales, g_idx: packers.pack_quantized(
        codes, None if symmetric else zeros, scales, g_idx if ordered else None, bits
    )


def _int8(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, g_idx: np.ndarray) -> Parts:
    return packers.int_quantized(codes, None, scales)


CT = "compressed-tensors"
FORMATS = {
    "awq": Format(AWQ, _awq, "w4g32 from awq"),
    "awq-g16": Format(AWQ | {"group_size": 16}, _awq, "w4g16 from awq", group=16),
    "gptq-v1": Format(GPTQ, _gptq(4, True), "w4g32 from gptq", symmetric=True),
    "gptq-v1-asymmetric": Format(GPTQ | {"sym": False}, _gptq(4, True), "w4g32 from gptq"),
    "gptq-v2-act-order": Format(V2 | {"desc_act": True}, _gptq(4, False), "w4g32 from gptq", ordered=True),
    "gptq-8": Format(GPTQ | {"bits": 8}, _gptq(8, True), "w8g32 from gptq", bits=8, symmetric=True),
    "gptq-8-act-order": Format(V2 | {"bits": 8}, _gptq(8, False), "w8g32 from gptq", bits=8, ordered=True),
    "packed-4": Format(_compressed(4, PACKED), _packed(4), f"w4g32 from {CT}", symmetric=True),
    "packed-4-asymmetric": Format(_compressed(4, PACKED, symmetric=False), _packed(4, False), f"w4g32 from {CT}"),
    "packed-4-act-order": Format(
        _compressed(4, PACKED), _packed(4, ordered=True), f"w4g32 from {CT}", symmetric=True, ordered=True
    ),
    "packed-8": Format(_compressed(8, PACKED), _packed(8), f"w8g32 from {CT}", bits=8, symmetric=True),
    "int8-by-channel": Format(
        _compressed(8, "int-quantized", "channel"), _int8, f"w8g64 from {CT}", bits=8, group=-1, symmetric=True
    ),
    "int8-by-group": Format(_compressed(8, "int-quantized"), _int8, f"w8g32 from {CT}", bits=8, symmetric=True),
}


def write(
    model: PreTrainedModel, directory: Path, form: Format, dense: tuple[str, ...] = (), same_order: bool = True
) -> ModelFiles:
    """Quantise every projection but `dense` ones, to random codes; the model is given the same numbers.

    With `same_order` the projections of one input have the same order of columns, as quantisers make them.
    """
    kept = ("embed_tokens", "lm_head", "norm", *dense)
    tensors: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and not any(part in name for part in kept):
            numbers, parts = _quantised(form, parameter.shape, seed=len(tensors), same_order=same_order)
            parameter.data = torch.from_numpy(numbers)
            tensors |= {f"{module}.{part}": np.ascontiguousarray(value) for part, value in parts.items()}
        else:
            tensors[name] = parameter.detach().numpy()
    model.config.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {"architectures": [type(model).__name__], "quantization_config": form.config}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return resolve(str(directory), directory)


def _quantised(form: Format, shape: torch.Size, seed: int, same_order: bool) -> tuple[np.ndarray, Parts]:
    rows, columns = shape
    random = np.random.default_rng(seed)
    group = columns if form.group == -1 else form.group
    codes = random.integers(0, 1 << form.bits, (rows, columns))
    zeros = random.integers(1, 1 << form.bits, (rows, columns // group))
    if form.symmetric:
        zeros[:] = 1 << form.bits - 1
    scales = (random.uniform(0.5, 1.5, zeros.shape) / (4 << form.bits)).astype(np.float16)
    g_idx = np.arange(columns) // group
    if form.ordered:
        g_idx = np.random.default_rng(columns if same_order else seed).permutation(g_idx)
    return packers.plain(codes, zeros, scales, g_idx), form.pack(codes, zeros, scales, g_idx)
