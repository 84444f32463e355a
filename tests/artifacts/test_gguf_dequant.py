"""Unpacking against the format's own reference implementation, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf import GGUFReader as Reference
from gguf.quants import dequantize

from inference_stack.artifacts.gguf import SUPPORTED, GgufFile
from inference_stack.artifacts.gguf_dequant import CHUNK_BLOCKS, dequantise

SCALE_BYTES = {"Q4_0": 2, "Q4_1": 4, "Q8_0": 2}


def random_blocks(type_id: int, blocks: int) -> np.ndarray:
    """Random bytes whose scales are finite numbers."""
    packing, random = SUPPORTED[type_id], np.random.default_rng(type_id)
    if packing.elements == 1:
        numbers = random.standard_normal(blocks * 32).astype(np.float32)
        if packing.name == "BF16":
            return (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return numbers.astype("<f2" if packing.name == "F16" else "<f4").view(np.uint8)
    raw = random.integers(0, 256, (blocks, packing.nbytes), dtype=np.uint8)
    scales = SCALE_BYTES[packing.name]
    raw[:, :scales] = random.standard_normal((blocks, scales // 2)).astype("<f2").view(np.uint8)
    return raw


@pytest.mark.parametrize("type_id", SUPPORTED, ids=lambda type_id: SUPPORTED[type_id].name)
@pytest.mark.parametrize("blocks", [1, CHUNK_BLOCKS + 3])
def test_random_blocks_equal_the_reference(type_id: int, blocks: int) -> None:
    raw = random_blocks(type_id, blocks)
    out = np.full(blocks * 32, np.nan, np.float32)
    dequantise(raw, type_id, out)
    expected = dequantize(raw.reshape(1, -1), GGMLQuantizationType(type_id)).reshape(-1)
    assert np.array_equal(out.view(np.uint32), expected.astype(np.float32).view(np.uint32))


def test_refuses_an_output_of_another_size() -> None:
    with pytest.raises(ValueError, match="do not fill"):
        dequantise(random_blocks(8, 2), 8, np.empty(32, np.float32))


@pytest.mark.model
def test_the_demo_model_equals_the_reference(demo_model: Path) -> None:
    reference = Reference(demo_model)
    with GgufFile(demo_model) as gguf:
        assert set(gguf.tensors) == {tensor.name for tensor in reference.tensors}
        for tensor in reference.tensors[1:40]:
            out = np.empty(gguf.tensors[tensor.name].shape, np.float32)
            dequantise(gguf.raw(tensor.name), gguf.tensors[tensor.name].type_id, out)
            assert np.array_equal(out, dequantize(tensor.data, tensor.tensor_type)), tensor.name


@pytest.mark.model
def test_the_demo_models_metadata_equals_the_reference(demo_model: Path) -> None:
    reference = Reference(demo_model)
    with GgufFile(demo_model) as gguf:
        for key, value in gguf.metadata.items():
            expected = reference.fields[key].contents()
            assert (list(value) if isinstance(expected, list) else value) == expected, key
