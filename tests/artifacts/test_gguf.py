"""The GGUF reader: every value type, and no way to crash it or make it allocate what the file does not hold."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.artifacts.gguf import GgufFile
from inference_stack.core.errors import InferenceError
from tests.artifacts.gguf_writer import ARRAY, STRING, UINT32, Gguf, array, scalar, string

VALUES = {
    0: 200,
    1: -3,
    2: 60000,
    3: -30000,
    4: 4_000_000_000,
    5: -5,
    6: 0.5,
    7: True,
    10: 1 << 60,
    11: -(1 << 60),
    12: 0.1,
}


def sample() -> Gguf:
    file = Gguf().add("general.architecture", STRING, "llama").add("general.alignment", UINT32, 32)
    file.pairs.append(("words", ARRAY, array(STRING, ["a", "", "ü"])))
    file.pairs.append(("numbers", ARRAY, array(UINT32, [1, 2, 3])))
    file.tensors.append(("one", (4, 3), 0, np.arange(12, dtype="<f4").tobytes()))
    file.tensors.append(("two", (32, 2), 8, bytes(range(68))))
    return file


def opened(path: Path, raw: bytes) -> GgufFile:
    path.write_bytes(raw)
    return GgufFile(path)


@pytest.mark.parametrize("version", [2, 3])
def test_reads_both_versions(tmp_path: Path, version: int) -> None:
    file = sample()
    file.version = version
    with opened(tmp_path / "m.gguf", file.encode()) as gguf:
        assert gguf.metadata["general.architecture"] == "llama"


@pytest.mark.parametrize("type_id", VALUES)
def test_reads_each_scalar_type(tmp_path: Path, type_id: int) -> None:
    with opened(tmp_path / "m.gguf", Gguf().add("key", type_id, VALUES[type_id]).encode()) as gguf:
        assert gguf.metadata == {"key": VALUES[type_id]}


@pytest.mark.parametrize("type_id", VALUES)
def test_reads_an_array_of_each_scalar_type(tmp_path: Path, type_id: int) -> None:
    file = Gguf(pairs=[("key", ARRAY, array(type_id, [VALUES[type_id]] * 3))])
    with opened(tmp_path / "m.gguf", file.encode()) as gguf:
        assert gguf.metadata["key"].tolist() == [VALUES[type_id]] * 3


def test_reads_strings_and_nested_arrays(tmp_path: Path) -> None:
    nested = struct.pack("<IQ", ARRAY, 2) + array(STRING, ["x", "yz"]) + array(STRING, [])
    with opened(tmp_path / "m.gguf", Gguf(pairs=[("key", ARRAY, nested)]).encode()) as gguf:
        assert gguf.metadata["key"] == [["x", "yz"], []]


def test_tensors_have_torch_shapes_and_their_bytes(tmp_path: Path) -> None:
    with opened(tmp_path / "m.gguf", sample().encode()) as gguf:
        assert gguf.tensors["one"].shape == (3, 4)
        assert gguf.raw("one").view("<f4").tolist() == np.arange(12.0).reshape(3, 4).tolist()
        assert gguf.raw("two").tobytes() == bytes(range(68))


def test_honours_the_files_own_alignment(tmp_path: Path) -> None:
    file = sample()
    file.pairs[1] = ("general.alignment", UINT32, scalar(UINT32, 64))
    file.alignment = 64
    with opened(tmp_path / "m.gguf", file.encode()) as gguf:
        assert gguf.raw("two").tobytes() == bytes(range(68))


def test_every_truncation_is_a_typed_error(tmp_path: Path) -> None:
    raw = sample().encode().rstrip(b"\0")
    for size in range(len(raw)):
        with pytest.raises(InferenceError, match=r"GGUF"):
            opened(tmp_path / "m.gguf", raw[:size])


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=8))
def test_corruption_is_a_typed_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    raw = bytearray(sample().encode())
    for at, value in flips:
        raw[at % len(raw)] = value
    try:
        with opened(tmp_path_factory.mktemp("flip") / "m.gguf", bytes(raw)) as gguf:
            assert all(gguf.raw(name).nbytes <= len(raw) for name in gguf.tensors)
    except InferenceError as error:
        assert error.info.code == "unsupported_model"


HUGE = (1 << 64) - 1
BOMBS = {
    "tensor count": b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0),
    "pair count": b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE),
    "string length": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE) + b"\0" * 8,
    "array of numbers": Gguf(pairs=[("k", ARRAY, struct.pack("<IQ", UINT32, HUGE))]).encode(),
    "array of strings": Gguf(pairs=[("k", ARRAY, struct.pack("<IQ", STRING, HUGE))]).encode(),
    "nesting": Gguf(pairs=[("k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 1000)]).encode(),
    "tensor size": Gguf(tensors=[("t", (1 << 40, 1 << 20), 0, b"")]).encode(),
    "tensor of nothing": Gguf(tensors=[("t", (0, 4), 0, b"")]).encode(),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_announced_sizes_are_checked_before_anything_is_allocated(tmp_path: Path, bomb: str) -> None:
    with pytest.raises(InferenceError, match="GGUF"):
        opened(tmp_path / "m.gguf", BOMBS[bomb])


BROKEN = {
    "does not begin with": b"GGML" + sample().encode()[4:],
    "version 1 is not supported": b"GGUF\x01" + sample().encode()[5:],
    "occurs twice": Gguf().add("k", UINT32, 1).add("k", UINT32, 2).encode(),
    "value type 99": Gguf(pairs=[("k", 99, b"")]).encode(),
    "not UTF-8": Gguf(pairs=[("k", STRING, string(b"\xff"))]).encode(),
    "power of two": Gguf().add("general.alignment", UINT32, 33).encode(),
    "not a multiple of 32": Gguf(tensors=[("t", (33,), 8, b"\0" * 64)]).encode(),
    "5 dimensions": Gguf(tensors=[("t", (1, 1, 1, 1, 1), 0, b"\0" * 32)]).encode(),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_says_what_is_wrong(tmp_path: Path, reason: str) -> None:
    with pytest.raises(InferenceError, match=reason):
        opened(tmp_path / "m.gguf", BROKEN[reason])


def test_an_unsupported_type_is_named_with_its_tensor(tmp_path: Path) -> None:
    file = Gguf(tensors=[("blk.0.attn_q.weight", (256,), 10, b"\0" * 160)])
    with (
        opened(tmp_path / "m.gguf", file.encode()) as gguf,
        pytest.raises(InferenceError, match=r"'blk\.0\.attn_q\.weight' has type Q2_K, which is not supported.*Q4_1"),
    ):
        gguf.check_types()
