"""Writes any model that can be read as a quantised safetensors directory, in compressed-tensors' pack-quantized layout.

    projections              module.weight_packed   int32 [N, K·bits/32], the first column lowest
                             module.weight_scale    fp16 or bf16 [N, K/group]
                             module.weight_zero_point   int32 [N/8, K/group], packed along N (4 bits)
                             module.weight_shape    int64 [2]
    tables, norms, biases    as they are; matrices of quantised files in 16 bits

One tensor is in memory at a time. Knows layouts and names; which codes are good ones is `quantise`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference_stack.artifacts.files import ModelFiles, Progress, silent
from inference_stack.core.errors import unsupported_model
from inference_stack.models.config import ModelConfig
from inference_stack.models.fusing import Part, read_dense
from inference_stack.models.hf_config import hf_config
from inference_stack.models.layers import TABLE
from inference_stack.models.loader import NOT_WEIGHTS, opened
from inference_stack.models.outline import HEAD, Outline, outline_of
from inference_stack.models.quantise import Codes, Curvature, Target, quantise
from inference_stack.models.safetensors_writer import Declared, Item, write_safetensors
from inference_stack.models.stored import DTYPE_NAMES, Layout, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written: tensor bytes, how many matrices were quantised, the type of the others, and the directory's config.json.

    `dequantised` names the formats of matrices that were quantised already and lost that form.
    """

    nbytes: int
    matrices: int
    dtype: str
    dequantised: tuple[str, ...]
    config: dict[str, Any]


def export(
    files: ModelFiles,
    target: Target,
    folder: Path,
    curvatures: Mapping[str, Curvature] | None = None,
    progress: Progress = silent,
    threads: int = 1,
) -> Exported:
    """Quantise a model's projections and write its tensors into `folder`, working in `threads` threads.

    `curvatures`, by module, say what inputs weights are for. Raises `unsupported_model` naming what cannot be written.
    """
    with opened(files) as (config, source), _workers(threads) as pool:
        outline = outline_of(config)
        made = _Exporter(source, config, target, curvatures or {}, progress, pool)
        nbytes = write_safetensors(folder, made.items(outline))
        return Exported(
            nbytes=nbytes,
            matrices=len(outline.quantisable),
            dtype=DTYPE_NAMES[made.dtype],
            dequantised=tuple(sorted(made.dequantised)),
            config=_config(files, config, target, made.dtype),
        )


@contextmanager
def _workers(threads: int) -> Iterator[Executor]:
    """Threads that work on parts of a matrix. Operations are small: torch's own threads would mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, "quantise") as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


class _Exporter:
    """Turns a source's tensors into items to be written. `dtype` is what matrices of 16 bits are written in."""

    def __init__(
        self,
        source: Source,
        config: ModelConfig,
        target: Target,
        curvatures: Mapping[str, Curvature],
        progress: Progress,
        pool: Executor,
    ) -> None:
        self.dtype = _half(source, config)
        self.dequantised: set[str] = set()
        self._source, self._target = source, target
        self._curvatures, self._progress, self._pool = curvatures, progress, pool
        self._done = self._total = 0

    def items(self, outline: Outline) -> list[Item]:
        """Every parameter of the outline, then biases of quantised checkpoints that the architecture does not have."""
        modules = outline.quantisable
        surplus = [f"{module}.bias" for module in modules if f"{module}.bias" not in outline.names]
        names = [*outline.names, *(name for name in surplus if self._source.layout(name))]
        self._refuse_others(names)
        found = []
        for name in names:
            part = self._part(name)
            self._total += part.layout.nbytes
            module = name.removesuffix(".weight")
            found.append(self._quantised(module, part) if module in modules else self._kept(part))
        return found

    def _refuse_others(self, names: Sequence[str]) -> None:
        """Tensors that would be lost, except those that follow from others."""
        follows = ("rotary_emb.inv_freq", *NOT_WEIGHTS, f"{HEAD}.weight")
        lost = [name for name in self._source.names() if name not in names and not name.endswith(follows)]
        if lost:
            raise unsupported_model(
                f"Unexpected tensors, which this architecture does not have: {', '.join(lost[:8])}."
            )

    def _part(self, name: str) -> Part:
        layout = self._source.layout(name)
        if layout is None:
            raise unsupported_model(f"The checkpoint has no tensor {name!r}.")
        if layout.form is not None:
            self.dequantised.add(layout.label)
        return Part(name, layout)

    def _kept(self, part: Part) -> Item:
        dtype = part.layout.dtype or self.dtype
        if dtype == torch.float32 and len(part.layout.shape) > 1:
            dtype = self.dtype
        return Item({part.name: Declared(dtype, part.layout.shape)}, partial(self._keep, part, dtype))

    def _keep(self, part: Part, dtype: torch.dtype) -> dict[str, Tensor]:
        tensor = self._read(part, part.layout.dtype or torch.float32)
        if self._source.norms_hold_one and part.name.endswith("norm.weight"):
            tensor -= 1.0
        if not torch.isfinite(narrow := tensor.to(dtype)).all():
            raise unsupported_model(f"{part.name} has numbers that {DTYPE_NAMES[dtype]} cannot hold.")
        return {part.name: narrow}

    def _quantised(self, module: str, part: Part) -> Item:
        rows, columns = part.layout.shape
        group = self._target.group_of(module, columns)
        declared = {
            "weight_packed": Declared(torch.int32, (rows, columns * self._target.bits // 32)),
            "weight_scale": Declared(self.dtype, (rows, columns // group)),
            "weight_shape": Declared(torch.int64, (2,)),
        }
        if self._target.zeros:
            declared["weight_zero_point"] = Declared(torch.int32, (-(-rows // 8), columns // group))
        named = {f"{module}.{name}": tensor for name, tensor in declared.items()}
        return Item(named, partial(self._quantise, module, part, group))

    def _quantise(self, module: str, part: Part, group: int) -> dict[str, Tensor]:
        w_NK = self._read(part, torch.float32)
        if not torch.isfinite(w_NK).all():
            raise unsupported_model(f"{part.name} has numbers that are not finite.")
        codes = quantise(w_NK, self._target, group, self._curvatures.get(module), self._pool)
        return {f"{module}.{name}": tensor for name, tensor in packed(codes, self.dtype, self._target.zeros).items()}

    def _read(self, part: Part, dtype: torch.dtype) -> Tensor:
        out = torch.empty(part.layout.shape, dtype=dtype)
        read_dense(self._source, part, out)
        self._done += part.layout.nbytes
        self._progress("quantising", self._done, self._total)
        return out


def packed(codes: Codes, dtype: torch.dtype, zeros: bool) -> dict[str, Tensor]:
    """A quantised matrix's tensors by the names of their parts, scales in `dtype`."""
    found = {
        "weight_packed": _words(codes.code_NK, codes.bits),
        "weight_scale": codes.scale_NG.to(dtype),
        "weight_shape": torch.tensor(codes.code_NK.shape),
    }
    if zeros:
        found["weight_zero_point"] = _words(codes.zero_NG.T, codes.bits).T.contiguous()
    return found


def _words(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [A, B] in int32 words [A, B·bits/32], the first lowest; the last word is filled up with zeros."""
    each = 32 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % each))
    octets = padded if bits == 8 else padded[:, 0::2] | padded[:, 1::2] << 4
    return octets.flatten().view(torch.int32).view(codes.shape[0], -1)


def _half(source: Source, config: ModelConfig) -> torch.dtype:
    """bf16 where the model was made in it, else fp16, which keeps more of what a quantised file holds."""
    layout: Layout | None = source.layout(TABLE)
    made_in_bf16 = layout is not None and layout.dtype == torch.bfloat16
    # Gemma's activations leave the range of fp16, in which others would run a checkpoint that says fp16.
    return torch.bfloat16 if made_in_bf16 or config.architecture == "gemma3" else torch.float16


def _config(files: ModelFiles, config: ModelConfig, target: Target, dtype: torch.dtype) -> dict[str, Any]:
    """The directory's config.json."""
    raw = files.json("config.json") or hf_config(config)
    name = str(dtype).removeprefix("torch.")
    return raw | {"dtype": name, "torch_dtype": name, "quantization_config": quantization_config(target)}


def quantization_config(target: Target) -> dict[str, Any]:
    """How the directory is quantised, in compressed-tensors' words."""
    weights = {
        "num_bits": target.bits,
        "type": "int",
        "symmetric": not target.zeros,
        "strategy": "group" if target.group else "channel",
        "group_size": target.group or None,
        "dynamic": False,
        "actorder": None,
        "observer": "mse",
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [HEAD],
        "kv_cache_scheme": None,
    }
