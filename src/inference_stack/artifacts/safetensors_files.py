"""Which tensors a directory of safetensors files holds, and in which file each one is.

Headers are checked by the safetensors library; here they are joined over shards and checked against the index, and tensors
are views of the mapped files. Knows names, shapes and types; what a tensor means is its reader's business.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from inference_stack.artifacts.canonical import FloatView
from inference_stack.artifacts.files import read_json
from inference_stack.artifacts.mapped import release_pages
from inference_stack.core.errors import unsupported_model

INDEX = "model.safetensors.index.json"
FLOATS = ("F32", "F16", "BF16")
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
"""How numpy sees each type; it has no bfloat16, whose bits it is given. Integers occur in quantised checkpoints."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file; `dtype` is a key of `DTYPES`, `offset` in bytes from the file's start."""

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def weight_files(root: Path) -> tuple[Path, ...]:
    """The safetensors files of a directory: those its index names, else `model.safetensors`, else all of them.

    Raises `unsupported_model` naming a file that the index promises and that is not there. Empty where there are none.
    """
    if (root / INDEX).is_file():
        return tuple(root / name for name in _indexed(root))
    if (root / "model.safetensors").is_file():
        return (root / "model.safetensors",)
    return tuple(sorted(path for path in root.glob("*.safetensors") if path.is_file()))


def _indexed(root: Path) -> list[str]:
    mapping = read_json(root / INDEX).get("weight_map")
    if not isinstance(mapping, dict):
        raise unsupported_model(f"{root / INDEX} has no weight_map.")
    names = sorted({str(name) for name in mapping.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise unsupported_model(f"{root / INDEX} names {name!r}, which is not a safetensors file beside it.")
        if not (root / name).is_file():
            raise unsupported_model(f"{root / INDEX} names {name}, which is missing. Is the download complete?")
    return names


def stored_tensors(paths: Sequence[Path]) -> dict[str, StoredTensor]:
    """Every tensor of these files by name. Raises `unsupported_model` for corrupt files, duplicates and other types."""
    found: dict[str, StoredTensor] = {}
    for path in paths:
        for tensor in _header(path):
            if tensor.name in found:
                raise unsupported_model(f"Tensor {tensor.name!r} is in both {found[tensor.name].path} and {path}.")
            if tensor.dtype not in DTYPES:
                raise unsupported_model(
                    f"{path}: tensor {tensor.name!r} has type {tensor.dtype}, which is not supported. Supported types: "
                    f"{', '.join(DTYPES)}."
                )
            found[tensor.name] = tensor
    return found


def _header(path: Path) -> list[StoredTensor]:
    """The tensors of one file, after the library has checked that they lie in it."""
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
    except (SafetensorError, OSError) as error:
        raise unsupported_model(f"{path} is not a usable safetensors file: {error}") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return [
        StoredTensor(name, path, tuple(entry["shape"]), entry["dtype"], 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
        if name in names
    ]


class MappedTensors:
    """The tensors of several files, read by touching them. Raises as `stored_tensors`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.stored = stored_tensors(paths)
        self._maps = {path: _mapped(path) for path in paths}

    def array(self, name: str) -> npt.NDArray[Any]:
        """A tensor as a view of its file, of the type in `DTYPES`."""
        tensor = self.stored[name]
        count = math.prod(tensor.shape)
        if not count:
            return np.empty(tensor.shape, DTYPES[tensor.dtype])
        flat = np.frombuffer(self._maps[tensor.path], DTYPES[tensor.dtype], count, tensor.offset)
        return flat.reshape(tensor.shape)

    def floats(self, name: str) -> FloatView:
        """A tensor of a floating-point type. Raises `unsupported_model` for other types."""
        array, dtype = self.array(name), self.stored[name].dtype
        if dtype not in FLOATS:
            raise unsupported_model(f"Tensor {name!r} has type {dtype}, where numbers of a floating-point type belong.")
        return FloatView(array, dtype == "BF16")

    def release(self, name: str) -> None:
        """Take a tensor's pages out of this process's memory, once it has been read. Reading it again brings them back."""
        tensor = self.stored[name]
        release_pages(self._maps[tensor.path], tensor.offset, tensor.nbytes)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
