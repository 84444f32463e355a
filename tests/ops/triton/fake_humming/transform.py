"""A layout that cannot be mistaken for the one that was given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.ops.triton.fake_humming.schema import HummingWeightSchema


@dataclass(frozen=True)
class LayerConfig:
    """A product of fixed sizes."""

    shape_n: int
    shape_k: int
    bits: int
    dtype: torch.dtype


def prepare_and_transform_humming_tensors(
    tensors: dict[str, Tensor],
    shape_n: int,
    shape_k: int,
    weight_schema: HummingWeightSchema,
    input_schema: None = None,
    num_experts: int | None = None,
    pad_n_to_multiple: int = 1,
    pad_k_to_multiple: int = 1,
    has_bias: bool = False,
    torch_dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> tuple[LayerConfig, dict[str, Tensor]]:
    """The form, and its tensors turned round."""
    assert torch_dtype is not None and weight_schema.bs_dtype == str(torch_dtype).removeprefix("torch.")
    assert shape_n % 64 == 0 and shape_k % 32 == 0
    wanted = weight_schema.wanted(shape_n, shape_k, torch_dtype, has_bias)
    assert wanted.keys() == tensors.keys()
    for name, (shape, dtype) in wanted.items():
        assert tensors[name].shape == shape and tensors[name].dtype == dtype, name
        assert tensors[name].is_contiguous(), name
    form = LayerConfig(shape_n, shape_k, weight_schema.bits, torch_dtype)
    return form, {name: tensor.flip(0) for name, tensor in tensors.items()}
