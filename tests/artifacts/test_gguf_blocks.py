"""Every quantised type, brought to the canonical form, against the format's own reference implementation, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf import GGUFReader as Reference
from gguf.quants import dequantize

from inference_stack.artifacts import canonical, gguf_blocks
from inference_stack.artifacts.canonical import CHUNK_BYTES
from inference_stack.artifacts.gguf import SUPPORTED, GgufFile
from tests.artifacts.blocks import dense, random_blocks
from tests.artifacts.gguf_writer import Gguf

QUANTISED = [type_id for type_id, packing in SUPPORTED.items() if packing.elements > 1]
EXPECTED = {"Q4_0": (4, 32), "Q4_1": (4, 32), "Q5_0": (8, 32), "Q5_1": (8, 32), "Q8_0": (8, 32), "Q4_K": (4, 32),
            "Q5_K": (8, 32), "Q6_K": (8, 16)}  # fmt: skip


def converted(raw: np.ndarray, type_id: int) -> canonical.Grouped:
    packing, form = SUPPORTED[type_id], gguf_blocks.form_of(type_id)
    assert form is not None
    out = canonical.empty(form, raw.shape[0], raw.shape[1] // packing.nbytes * packing.elements)
    gguf_blocks.unpack(raw, type_id, out)
    return out


@pytest.mark.parametrize("type_id", QUANTISED, ids=lambda type_id: SUPPORTED[type_id].name)
@pytest.mark.parametrize("rows", [1, 3, 2 * CHUNK_BYTES // 144 // 4 + 5])
def test_random_blocks_equal_the_reference(type_id: int, rows: int) -> None:
    raw = random_blocks(type_id, rows, 1024)
    out = converted(raw, type_id)
    assert (out.form.bits, out.form.group) == EXPECTED[SUPPORTED[type_id].name]
    expected = dequantize(raw, GGMLQuantizationType(type_id))
    assert np.array_equal(dense(out), expected)


def test_every_quantised_type_that_can_be_read_was_compared() -> None:
    assert {SUPPORTED[type_id].name for type_id in QUANTISED} == set(EXPECTED)


def test_refuses_an_output_of_another_form() -> None:
    with pytest.raises(ValueError, match="own form"):
        gguf_blocks.unpack(random_blocks(2, 1, 32), 2, canonical.empty(canonical.Form(8, 32, zeros=False), 1, 32))


@pytest.mark.parametrize(("type_id", "name"), [(0, "F32"), (1, "F16"), (30, "BF16")])
def test_plain_types_are_read_as_numbers(tmp_path: Path, type_id: int, name: str) -> None:
    numbers = np.array([1.0, -2.5, 0.125, 384.0], np.float32)
    halves = (numbers.view(np.uint32) >> 16).astype("<u2")
    raw = {"F32": numbers, "F16": numbers.astype("<f2"), "BF16": halves}[name].tobytes()
    (tmp_path / "m.gguf").write_bytes(Gguf(tensors=[("t", (2, 2), type_id, raw)]).encode())
    with GgufFile(tmp_path / "m.gguf") as gguf:
        assert gguf.floats("t").tolist() == numbers.reshape(2, 2).tolist()


@pytest.mark.model
def test_the_demo_model_equals_the_reference(demo_model: Path) -> None:
    reference = Reference(demo_model)
    with GgufFile(demo_model) as gguf:
        assert set(gguf.tensors) == {tensor.name for tensor in reference.tensors}
        for tensor in reference.tensors[1:40]:
            type_id = gguf.tensors[tensor.name].type_id
            plain = SUPPORTED[type_id].elements == 1
            found = gguf.floats(tensor.name) if plain else dense(converted(gguf.raw(tensor.name), type_id))
            assert np.array_equal(found, dequantize(tensor.data, tensor.tensor_type)), tensor.name


@pytest.mark.model
def test_the_demo_models_metadata_equals_the_reference(demo_model: Path) -> None:
    reference = Reference(demo_model)
    with GgufFile(demo_model) as gguf:
        for key, value in gguf.metadata.items():
            expected = reference.fields[key].contents()
            assert (list(value) if isinstance(expected, list) else value) == expected, key


@pytest.mark.model
def test_released_pages_come_back_when_read_again(demo_model: Path) -> None:
    with GgufFile(demo_model) as gguf:
        before = gguf.raw("token_embd.weight").tobytes()
        gguf.release("token_embd.weight")
        assert gguf.raw("token_embd.weight").tobytes() == before
