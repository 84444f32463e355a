"""Writes safetensors files as a stream: names, types and shapes are declared first, tensors are made one after another.

    length of header (8 bytes) | header: JSON, padded to 8 bytes | tensors, in the header's order

Several files and an index once they would be larger than `SHARD_BYTES`. Knows the container; what is in it is the caller's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import torch
from torch import Tensor

from inference_stack.artifacts.safetensors_files import INDEX

SHARD_BYTES: Final = 4 << 30
TYPE_NAMES: Final = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}


@dataclass(frozen=True, slots=True)
class Declared:
    """A tensor that will be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Item:
    """Tensors that are made together, by name, when their turn comes."""

    tensors: Mapping[str, Declared]
    make: Callable[[], Mapping[str, Tensor]]

    @property
    def nbytes(self) -> int:
        """Size of all of them."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def write_safetensors(folder: Path, items: Sequence[Item], shard_bytes: int = SHARD_BYTES) -> int:
    """Write the items into `folder`; the bytes of all tensors. Raises `ValueError` if a tensor is not what was declared."""
    shards = _shards(items, shard_bytes)
    names = [_name(number, len(shards)) for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            _write(file, shard)
    total = sum(item.nbytes for item in items)
    if len(shards) > 1:
        placed = {
            tensor: name for name, shard in zip(names, shards, strict=True) for one in shard for tensor in one.tensors
        }
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return total


def _name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"


def _shards(items: Sequence[Item], most: int) -> list[list[Item]]:
    shards: list[list[Item]] = [[]]
    size = 0
    for item in items:
        if shards[-1] and size + item.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += item.nbytes
    return shards


def _write(file: BinaryIO, items: Iterable[Item]) -> None:
    items = list(items)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in items:
        for name, tensor in item.tensors.items():
            offsets = [end, end := end + tensor.nbytes]
            header[name] = {"dtype": TYPE_NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for item in items:
        made = item.make()
        for name, declared in item.tensors.items():
            _append(file, name, declared, made[name])


def _append(file: BinaryIO, name: str, declared: Declared, tensor: Tensor) -> None:
    if (tensor.dtype, tuple(tensor.shape)) != (declared.dtype, declared.shape):
        raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, declared as {declared}")
    file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
