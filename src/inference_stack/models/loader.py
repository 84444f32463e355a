"""From files to a model with weights: read the configuration, build the model, stream its parameters in.

    ModelFiles ── config ──▶ ModelConfig ──▶ architecture asks `Weights` for each parameter ──▶ LoadedModel
                 source ─────────────────────────┘

Knows which reader goes with which container; it knows no device and no request.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import torch
from torch import Tensor

from inference_stack.artifacts.files import ModelFiles, silent
from inference_stack.artifacts.gguf import GgufFile
from inference_stack.artifacts.revision import revision
from inference_stack.core.errors import unsupported_model
from inference_stack.models.api import LoadedModel, Progress
from inference_stack.models.config import ModelConfig, config_from_hf
from inference_stack.models.cuda_lane import placer_for
from inference_stack.models.fusing import Part, read_dense
from inference_stack.models.gguf_config import config_from_gguf
from inference_stack.models.gguf_source import GgufSource
from inference_stack.models.placing import Placer
from inference_stack.models.random_weights import load_random
from inference_stack.models.registry import ARCHITECTURES
from inference_stack.models.safetensors_source import SafetensorsSource
from inference_stack.models.schemes import read_scheme
from inference_stack.models.stored import DTYPE_NAMES, Source
from inference_stack.models.weights import Prepare, Weights

NOT_WEIGHTS = ("rope_freqs.weight",)
NAMED_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_model(
    files: ModelFiles,
    dtype: torch.dtype | None = None,
    progress: Progress = silent,
    max_positions: int = 0,
    dequantise: bool = False,
    prepare: Prepare | None = None,
    device: torch.device | str = "cpu",
    placer: Placer | None = None,
) -> LoadedModel:
    """The model in `files`, on `device`, its matrices in the form that the files have: group-quantised, fp32, fp16 or bf16.

    `dtype` converts dense matrices; `dequantise` makes quantised ones dense fp32. `max_positions` shortens the rotary tables
    (0: as long as the model's context). `prepare` is called once for every projection, table and layer's experts when it has
    been read, from the loader's threads, several at a time, and computes on the device's current stream of those threads; on
    return all of it has been done. `placer` takes the place of the device's own; it is closed here.

    Raises `unsupported_model` naming what cannot be honoured: an architecture, an option, a layout, a tensor, a device.
    """
    if dtype not in (None, *DTYPE_NAMES):
        raise unsupported_model(f"Parameters cannot be kept as {dtype}.")
    if not files.weights:
        return _drawn(files, dtype, device, max_positions, prepare)
    with (
        closing(placer or placer_for(device)) as place,
        ThreadPoolExecutor(1, "revision") as aside,
        opened(files) as (config, source),
    ):
        name = aside.submit(revision, files)
        weights = Weights(source, dtype, dequantise, prepare, placer=place)
        positions = min(max_positions or config.max_positions, config.max_positions)
        try:
            model = ARCHITECTURES[config.architecture](config, weights, positions)
        except BaseException:
            weights.abandon()
            raise
        weights.finish(_ignored(config, source), progress)
    return LoadedModel(
        model=model,
        architecture=config.architecture,
        revision=name.result(),
        quantisation=weights.describe(),
        weight_bytes=weights.nbytes,
        eos_tokens=config.eos_tokens,
        linears=tuple(weights.linears),
        experts=tuple(weights.mixtures),
    )


def _drawn(
    files: ModelFiles, dtype: torch.dtype | None, device: torch.device | str, positions: int, prepare: Prepare | None
) -> LoadedModel:
    """A model without weight files, its weights drawn in the type that its config.json names."""
    config, raw = read_config(files), files.json("config.json") or {}
    if raw.get("quantization_config"):
        raise unsupported_model("Random weights are not quantised: take quantization_config out of config.json.")
    named = str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16")
    if (stored := NAMED_DTYPES.get(named)) is None:
        raise unsupported_model(f"Weights of type {named!r} cannot be drawn; use {', '.join(NAMED_DTYPES)}.")
    return load_random(config, dtype or stored, device, max_positions=positions, prepare=prepare)


def read_config(files: ModelFiles) -> ModelConfig:
    """The model's configuration alone. Raises `unsupported_model` naming what cannot be run."""
    if files.kind == "gguf":
        with GgufFile(files.weights[0]) as gguf:
            return config_from_gguf(gguf)
    raw = files.json("config.json")
    if raw is None:
        raise unsupported_model(f"{files.root} has no config.json.")
    read_scheme(files)
    return config_from_hf(raw, files.json("generation_config.json"))


def state_dict(files: ModelFiles) -> dict[str, Tensor]:
    """Every weight as fp32 under Hugging Face's names and layout, to give the same weights to another
    implementation.
    """
    found = {}
    with opened(files) as (config, source):
        for name in source.names():
            layout = source.layout(name)
            if layout is None or name in NOT_WEIGHTS:
                continue
            found[name] = torch.empty(layout.shape)
            read_dense(source, Part(name, layout), found[name])
            if source.norms_hold_one and name.endswith("norm.weight"):
                found[name] -= 1.0
    if config.tied:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    return found


@contextmanager
def opened(files: ModelFiles) -> Iterator[tuple[ModelConfig, Source]]:
    """A model's configuration and its tensors, for as long as the block lasts."""
    if files.kind == "safetensors":
        yield read_config(files), SafetensorsSource(files.weights, read_scheme(files))
        return
    with GgufFile(files.weights[0]) as gguf:
        config = config_from_gguf(gguf)
        yield config, GgufSource(gguf, config)


def _ignored(config: ModelConfig, source: Source) -> list[str]:
    """Tensors that files carry although they follow from others: rotary tables, and a tied output matrix."""
    tables = [name for name in source.names() if name.endswith("rotary_emb.inv_freq")]
    return [*NOT_WEIGHTS, *tables, *(["lm_head.weight"] if config.tied else [])]
