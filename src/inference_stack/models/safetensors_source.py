"""Safetensors files, quantised or not. The tensors that a quantised matrix consists of appear as one, `module.weight`.

    awq, gptq             module.{qweight, qzeros, scales, g_idx}
    compressed-tensors    module.{weight_packed or weight, weight_scale, weight_zero_point, weight_g_idx, weight_shape}
    mxfp4                 bytes under names of their own: {module}_blocks, {module}_scales

Knows which tensors belong together; their bits are the business of `artifacts.packed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inference_stack.artifacts.canonical import Grouped
from inference_stack.artifacts.packed import (
    AwqMatrix,
    CompressedArrays,
    CompressedMatrix,
    GptqArrays,
    GptqMatrix,
    PackedMatrix,
)
from inference_stack.artifacts.safetensors_files import MappedTensors
from inference_stack.core.errors import unsupported_model
from inference_stack.models.schemes import Scheme
from inference_stack.models.stored import DTYPE_NAMES, TORCH_DTYPES, Extent, Layout

PARTS = {
    "awq": ("qweight", "qzeros", "scales"),
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"),
    "mxfp4": (),
}


class SafetensorsSource:
    """A `Source`. Raises `unsupported_model` for corrupt files and for types and layouts that cannot be read."""

    norms_hold_one = False

    def __init__(self, paths: Sequence[Path], scheme: Scheme | None = None) -> None:
        self._tensors = MappedTensors(paths)
        self._scheme = scheme
        self._parts: dict[str, list[str]] = {}
        self._matrices: dict[str, PackedMatrix] = {}
        for name in self._tensors.stored:
            self._parts.setdefault(self._whole(name), []).append(name)

    def names(self) -> Iterable[str]:
        """Every tensor."""
        return self._parts

    def layout(self, name: str) -> Layout | None:
        """How a tensor is stored; None where there is no such tensor."""
        if name not in self._parts:
            return None
        nbytes = sum(self._tensors.stored[part].nbytes for part in self._parts[name])
        if self._parts[name] != [name]:
            matrix = self._matrices.setdefault(name, self._matrix(name))
            label = self._scheme.method if self._scheme else ""
            return Layout(label=label, shape=matrix.shape, nbytes=nbytes, form=matrix.form, order_K=matrix.order_K)
        tensor = self._tensors.stored[name]
        if self._is_fp4(name):
            return Layout(label="mxfp4", shape=tensor.shape, nbytes=nbytes, dtype=torch.uint8)
        if (dtype := TORCH_DTYPES.get(tensor.dtype)) is None:
            raise unsupported_model(f"Tensor {name!r} has type {tensor.dtype}, but nothing says how to read it.")
        return Layout(label=DTYPE_NAMES[dtype], shape=tensor.shape, nbytes=nbytes, dtype=dtype)

    def extent(self, name: str) -> Extent:
        """Dense tensors lie in their files as they are."""
        tensor = self._tensors.stored[name]
        return Extent(tensor.path, tensor.offset, self._dtype(name))

    def read(self, name: str, out: Tensor) -> None:
        """Fill `out` with a dense tensor, converting to its type."""
        array, dtype = self._tensors.array(name), self._dtype(name)
        same = out if out.dtype == dtype and out.is_contiguous() else torch.empty(out.shape, dtype=dtype)
        same.view(-1).view(torch.uint8).numpy()[:] = array.reshape(-1).view(np.uint8)
        if same is not out:
            out.copy_(same)
        self._tensors.release(name)

    def read_grouped(self, name: str, out: Grouped) -> None:
        """Fill `out` with a quantised tensor."""
        self._matrices[name].read(out)
        for part in self._parts[name]:
            self._tensors.release(part)

    def _is_fp4(self, name: str) -> bool:
        fp4 = self._scheme is not None and self._scheme.method == "mxfp4" and name.endswith(("_blocks", "_scales"))
        return fp4 and self._tensors.stored[name].dtype == "U8"

    def _dtype(self, name: str) -> torch.dtype:
        return torch.uint8 if self._is_fp4(name) else TORCH_DTYPES[self._tensors.stored[name].dtype]

    def _whole(self, name: str) -> str:
        """The tensor that this one is a part of; itself where it stands alone."""
        module, _, part = name.rpartition(".")
        return f"{module}.weight" if self._scheme and part in PARTS[self._scheme.method] else name

    def _matrix(self, name: str) -> PackedMatrix:
        module = name.removesuffix(".weight")
        if self._scheme is None or self._scheme.method == "compressed-tensors":
            return self._compressed(module)
        qweight, qzeros = (self._codes(f"{module}.{part}", "I32") for part in ("qweight", "qzeros"))
        scales = self._tensors.floats(self._required(f"{module}.scales"))
        if self._scheme.method == "awq":
            return AwqMatrix(module, qweight, qzeros, scales)
        g_idx = self._integers(f"{module}.g_idx", "I32") if f"{module}.g_idx" in self._tensors.stored else None
        arrays = GptqArrays(qweight=qweight, qzeros=qzeros, scales=scales, g_idx=g_idx)
        return GptqMatrix(module, arrays, self._scheme.bits, self._scheme.zeros_less_one)

    def _compressed(self, module: str) -> PackedMatrix:
        stored = self._tensors.stored
        if f"{module}.weight_packed" in stored:
            codes = self._codes(f"{module}.weight_packed", "I32")
            shape = tuple(self._integers(f"{module}.weight_shape", "I64", "I32").tolist())
        else:
            codes = self._codes(f"{module}.weight", "I8")
            shape = codes.shape
        if len(shape) != 2 or min(shape) < 1:
            raise unsupported_model(f"{module}: a quantised matrix has shape {list(shape)}.")
        zero, g_idx = f"{module}.weight_zero_point", f"{module}.weight_g_idx"
        arrays = CompressedArrays(
            codes=codes,
            scale=self._tensors.floats(self._required(f"{module}.weight_scale")),
            zero=self._integers(zero, "I32", "I8") if zero in stored else None,
            g_idx=self._integers(g_idx, "I32") if g_idx in stored else None,
        )
        return CompressedMatrix(module, arrays, (int(shape[0]), int(shape[1])))

    def _required(self, name: str) -> str:
        if name not in self._tensors.stored:
            raise unsupported_model(f"The checkpoint has no tensor {name!r}.")
        return name

    def _integers(self, name: str, *types: str) -> npt.NDArray[Any]:
        dtype = self._tensors.stored[self._required(name)].dtype
        if dtype not in types:
            raise unsupported_model(f"Tensor {name!r} has type {dtype}; {' or '.join(types)} belongs there.")
        return self._tensors.array(name)

    def _codes(self, name: str, dtype: str) -> npt.NDArray[Any]:
        array = self._integers(name, dtype)
        if array.ndim != 2 or not array.size:
            raise unsupported_model(f"Tensor {name!r} has shape {list(array.shape)}; it must be a matrix.")
        return array
