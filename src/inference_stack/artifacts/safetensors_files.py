"""Which tensors a directory of safetensors files holds, and in which file each one is.

Headers are parsed by the safetensors library; here they are joined over shards and checked against the index. Knows
names, shapes and types; it never reads a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from inference_stack.artifacts.files import read_json
from inference_stack.core.errors import unsupported_model

INDEX = "model.safetensors.index.json"
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file; `dtype` is F32, F16 or BF16."""

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        size = DTYPE_BYTES[self.dtype]
        for extent in self.shape:
            size *= extent
        return size


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
            if tensor.dtype not in DTYPE_BYTES:
                raise unsupported_model(
                    f"{path}: tensor {tensor.name!r} has type {tensor.dtype}, which is not supported. Supported types: "
                    f"{', '.join(DTYPE_BYTES)}."
                )
            found[tensor.name] = tensor
    return found


def _header(path: Path) -> list[StoredTensor]:
    try:
        with safe_open(path, framework="numpy") as file:
            slices = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118 (not a mapping)
            return [StoredTensor(name, path, tuple(part.get_shape()), part.get_dtype()) for name, part in slices]
    except (SafetensorError, OSError) as error:
        raise unsupported_model(f"{path} is not a usable safetensors file: {error}") from error
