"""Reads GGUF files, versions 2 and 3: metadata, and where each tensor's bytes lie.

    header │ key-value metadata │ tensor infos │ padding │ tensor data

The file is mapped, never copied; every count and length in it is checked against the bytes that are really there before
anything is allocated. Knows the container; what the keys mean is the business of `models` and `frontend`.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np
import numpy.typing as npt

from inference_stack.artifacts.canonical import Bytes, FloatView
from inference_stack.artifacts.mapped import release_pages
from inference_stack.core.errors import unsupported_model

MAGIC = b"GGUF"
MAX_DIMS = 4
MAX_NESTING = 4


class Quantisation(NamedTuple):
    """How a tensor type packs numbers: `elements` of them in `nbytes` bytes."""

    name: str
    elements: int
    nbytes: int


SUPPORTED: dict[int, Quantisation] = {
    0: Quantisation("F32", 1, 4),
    1: Quantisation("F16", 1, 2),
    2: Quantisation("Q4_0", 32, 18),
    3: Quantisation("Q4_1", 32, 20),
    6: Quantisation("Q5_0", 32, 22),
    7: Quantisation("Q5_1", 32, 24),
    8: Quantisation("Q8_0", 32, 34),
    12: Quantisation("Q4_K", 256, 144),
    13: Quantisation("Q5_K", 256, 176),
    14: Quantisation("Q6_K", 256, 210),
    30: Quantisation("BF16", 1, 2),
}

OTHER_TYPES: dict[int, str] = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Types that exist but cannot be read here, so that an error can call them by their name."""

FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
STRING, ARRAY = 8, 9
SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `shape` outermost dimension first (as numpy and torch have it), `offset` in bytes from the file's
    start.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int

    @property
    def type_name(self) -> str:
        """The type as GGML calls it."""
        known = SUPPORTED.get(self.type_id)
        return known.name if known else OTHER_TYPES.get(self.type_id, f"number {self.type_id}")

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class GgufFile:
    """An open GGUF file. `metadata` maps keys to Python scalars, strings, lists of strings, or numpy arrays of numbers.

    Raises `unsupported_model` from the constructor for files that are not GGUF, truncated or inconsistent, and from
    `raw` for tensor types that cannot be read. A context manager; arrays from `raw` are views and must not outlive it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < 24:
                raise unsupported_model(f"{path} is not a GGUF file: it has only {size} bytes.")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._parse(_Cursor(self._map, path))
        except BaseException:
            self.close()
            raise

    def _parse(self, cursor: _Cursor) -> None:
        tensor_count, pair_count = cursor.header()
        self.metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = cursor.string()
            if key in self.metadata:
                cursor.fail(f"metadata key {key!r} occurs twice")
            self.metadata[key] = cursor.value(cursor.u32())
        infos = [cursor.tensor_info() for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            cursor.fail(f"general.alignment is {alignment!r}, not a power of two")
        start = -(-cursor.position // alignment) * alignment
        self.tensors: dict[str, TensorInfo] = {}
        for info in infos:
            if info.name in self.tensors:
                cursor.fail(f"tensor {info.name!r} occurs twice")
            self.tensors[info.name] = cursor.placed(info, start, alignment)

    def raw(self, name: str) -> Bytes:
        """The packed bytes of a tensor, uint8 [rows, bytes of a row], a view of the mapped file. Vectors are one
        row.
        """
        info = self.tensors[name]
        if info.type_id not in SUPPORTED:
            raise unsupported_model(
                f"{self.path}: tensor {name!r} has type {info.type_name}, which is not supported. Supported types: "
                f"{', '.join(known.name for known in SUPPORTED.values())}."
            )
        row = row_bytes(info)
        rows = math.prod(info.shape[:-1])
        return np.frombuffer(self._map, np.uint8, rows * row, info.offset).reshape(rows, row)

    def floats(self, name: str) -> npt.NDArray[np.float32]:
        """A small tensor of a type that is not quantised, as fp32. Raises `unsupported_model` for other types."""
        raw, info = self.raw(name).reshape(-1), self.tensors[name]
        if info.type_name not in FLOATS:
            raise unsupported_model(
                f"{self.path}: tensor {name!r} has type {info.type_name}, where plain numbers belong."
            )
        return FloatView(raw.view(FLOATS[info.type_name]).reshape(info.shape), info.type_name == "BF16").fp32()

    def release(self, name: str) -> None:
        """Take a tensor's pages out of this process's memory, once it has been read. Reading it again brings them back."""
        info = self.tensors[name]
        release_pages(self._map, info.offset, math.prod(info.shape[:-1]) * row_bytes(info))

    def check_types(self) -> None:
        """Raise `unsupported_model` naming the first tensor whose type cannot be read."""
        for name in self.tensors:
            self.raw(name)

    def close(self) -> None:
        """Unmap the file. Views of it that still exist keep the mapping alive until they are gone."""
        try:
            self._map.close()
        except BufferError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def row_bytes(info: TensorInfo) -> int:
    """Bytes of one row (innermost dimension) of a tensor of supported type."""
    packing = SUPPORTED[info.type_id]
    return info.shape[-1] // packing.elements * packing.nbytes


class _Cursor:
    """Reads values one after the other and never past the end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.position, self.size = data, path, 0, len(data)

    def fail(self, why: str) -> NoReturn:
        raise unsupported_model(f"{self.path} is not a usable GGUF file: {why} (near byte {self.position}).")

    def take(self, nbytes: int) -> int:
        """Advance over `nbytes`; the position they begin at."""
        start = self.position
        if nbytes > self.size - start:
            self.fail(f"{nbytes} bytes are announced where {self.size - start} are left; it is truncated or corrupt")
        self.position = start + nbytes
        return start

    def u32(self) -> int:
        return int.from_bytes(self.data[self.take(4) : self.position], "little")

    def u64(self) -> int:
        return int.from_bytes(self.data[self.take(8) : self.position], "little")

    def count(self, at_least: int) -> int:
        """A number of items of at least so many bytes each, all of which must fit in what is left."""
        number = self.u64()
        if number * at_least > self.size - self.position:
            self.fail(f"{number} items are announced, more than the file can hold")
        return number

    def header(self) -> tuple[int, int]:
        if self.data[self.take(4) : 4] != MAGIC:
            self.fail("it does not begin with 'GGUF'")
        version = self.u32()
        if version not in (2, 3):
            self.fail(f"version {version} is not supported (2 and 3 are; big-endian files are not)")
        return self.count(24), self.count(13)

    def string(self) -> str:
        length = self.u64()
        start = self.take(length)
        return self.text(self.data[start : self.position])

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            self.fail(f"a string is not UTF-8: {error}")

    def value(self, type_id: int, nesting: int = 0) -> Any:
        if type_id == STRING:
            return self.string()
        if type_id == ARRAY:
            return self.array(nesting + 1)
        return self.numbers(type_id, 1)[0].item()

    def array(self, nesting: int) -> Any:
        element = self.u32()
        if element == STRING:
            return self.strings(self.count(8))
        if element == ARRAY:
            if nesting >= MAX_NESTING:
                self.fail(f"arrays are nested more than {MAX_NESTING} deep")
            return [self.array(nesting + 1) for _ in range(self.count(12))]
        return self.numbers(element, self.count(1))

    def numbers(self, type_id: int, count: int) -> npt.NDArray[Any]:
        dtype = SCALARS.get(type_id)
        if dtype is None:
            self.fail(f"value type {type_id} does not exist")
        start = self.take(count * dtype.itemsize)
        return np.frombuffer(self.data[start : self.position], dtype)

    def strings(self, count: int) -> list[str]:
        """As `string`, many times; vocabularies have 10⁵ of them, so the loop is flat."""
        data, size, position = self.data, self.size, self.position
        length_at = struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            if position + 8 > size:
                break
            end = position + 8 + length_at(data, position)[0]
            if end > size:
                break
            found.append(data[position + 8 : end])
            position = end
        self.position = position
        if len(found) < count:
            self.fail("a list of strings runs past the end; it is truncated or corrupt")
        return [self.text(raw) for raw in found]

    def tensor_info(self) -> TensorInfo:
        name = self.string()
        dims = self.u32()
        if not 1 <= dims <= MAX_DIMS:
            self.fail(f"tensor {name!r} has {dims} dimensions")
        shape = tuple(self.u64() for _ in range(dims))[::-1]
        return TensorInfo(name, shape, self.u32(), self.u64())

    def placed(self, info: TensorInfo, start: int, alignment: int) -> TensorInfo:
        """The tensor with its absolute offset, after checking that its bytes exist."""
        if info.offset % alignment:
            self.fail(f"tensor {info.name!r} is not aligned to {alignment} bytes")
        packing = SUPPORTED.get(info.type_id)
        if packing and info.shape[-1] % packing.elements:
            self.fail(f"tensor {info.name!r} has rows of {info.shape[-1]}, not a multiple of {packing.elements}")
        nbytes = info.elements // packing.elements * packing.nbytes if packing else 0
        if start + info.offset + nbytes > self.size or 0 in info.shape:
            self.fail(f"tensor {info.name!r} {list(info.shape)} lies outside the file; it is truncated or corrupt")
        return TensorInfo(info.name, info.shape, info.type_id, start + info.offset)
