"""`Ops.linear` with quantised weights laid out and multiplied by humming-kernels; all others, and tables, are Triton's.

The first weight of each size and form is multiplied with rows of its own and compared with the reference when it is prepared: the
package compiles a kernel for each, and none is met for the first time in a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

import torch
from torch import Tensor

from inference_stack.ops.api import Linear, Quantised
from inference_stack.ops.humming.packing import packed
from inference_stack.ops.humming.wheel import Humming
from inference_stack.ops.implementation import UnsuitableWeight
from inference_stack.ops.reference.quantised import rows_of
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

LOCKS: Final = 2048
"""Words that its programs agree by when they share a result: zero before and after, and each weight's own."""
ROWS: Final = (1, 5, 33, 200)
"""Of activations for which a weight is compared: from a decode step to a prompt."""
OUTPUTS: Final = 64
BOUND: Final = 1e-2
"""Largest error relative to the largest result: scales, weights and results are rounded to 16 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HummingWeight:
    """A weight [N, K] in the package's layout (`Prepared`). `form` is its own description of it; `locks` int32, zeros."""

    shape: tuple[int, int]
    dtype: torch.dtype
    humming: Humming
    form: Any
    tensors: dict[str, Tensor]
    locks: Tensor
    order_K: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of all its parts."""
        return sum(part.nbytes for part in self.tensors.values()) + self.locks.nbytes

    def rows(self, index_T: Tensor) -> Tensor:
        """Raises TypeError: tables are not laid out like this."""
        raise TypeError("a weight that humming multiplies cannot be looked up")

    def multiply(self, x_TK: Tensor, y_TN: Tensor) -> None:
        """y = x @ W.T + b; x and y of `dtype`."""
        x_TK = x_TK if self.order_K is None else x_TK.index_select(1, self.order_K)
        self.humming.multiply(self.form, inputs=x_TK.contiguous(), outputs=y_TN, locks=self.locks, **self.tensors)


class HummingLinear:
    """`Ops.linear` and `Ops.prepare`. A weight that was not prepared is on first use."""

    def __init__(self, workspace: Workspace, settings: TritonSettings, humming: Humming) -> None:
        from inference_stack.ops.triton.linear import TritonLinear

        self._workspace = workspace
        self._dtype = settings.dtype
        self._humming = humming
        self._others = TritonLinear(workspace, settings)
        self._compared: set[tuple[object, ...]] = set()
        self._lock: Final = Lock()  # weights are prepared by several threads, and the package compiles

    def __call__(self, x_TK: Tensor, weight: Linear) -> Tensor:
        """y_TN = x @ W.T + b, of x's type, summed in fp32."""
        if _ours(weight):
            self.prepare(weight)
        product = weight.weight
        if not isinstance(product, HummingWeight):
            return self._others(x_TK, weight)
        wanted = x_TK.dtype
        y_TN = self._workspace.take_like(x_TK, (x_TK.shape[0], product.shape[0]), self._dtype)
        if y_TN.numel():
            product.multiply(x_TK.to(self._dtype), y_TN)
        return y_TN if wanted == self._dtype else y_TN.to(wanted)

    def prepare(self, weight: Linear) -> None:
        """Lay the weight out on the workspace's device. Raises `UnsuitableWeight` for quantised ones that the package
        cannot hold, or multiplies wrongly."""
        loaded = weight.weight
        if isinstance(loaded, HummingWeight):
            return
        if not _ours(weight) or not isinstance(loaded, Quantised):
            self._others.prepare(weight)
            return
        device = self._workspace.device
        with self._lock, torch.inference_mode(), torch.cuda.device(device if device.type == "cuda" else -1):
            weight.weight = self._laid_out(loaded, weight.bias_N)

    def _laid_out(self, loaded: Quantised, bias_N: Tensor | None) -> HummingWeight:
        made = laid_out(self._humming, loaded, bias_N, self._workspace.device, self._dtype)
        form = (loaded.shape, loaded.bits, loaded.group, "zero_point" in made.tensors, bias_N is not None)
        if form not in self._compared:
            compare(made, loaded, bias_N)
            self._compared.add(form)
        return made


def _ours(weight: Linear) -> bool:
    return isinstance(weight.weight, Quantised) and not weight.looked_up


def laid_out(
    humming: Humming, loaded: Quantised, bias_N: Tensor | None, device: torch.device, dtype: torch.dtype
) -> HummingWeight:
    """The weight as the package wants it. Raises `UnsuitableWeight` for what it cannot hold."""
    outputs, depth = loaded.shape
    given = packed(loaded, bias_N, device, dtype)
    schema = humming.schema(
        b_dtype=f"uint{given.bits}",
        bs_dtype=str(dtype).removeprefix("torch."),
        weight_scale_group_size=given.group,
        has_zero_point="zero_point" in given.tensors,
    )
    form, tensors = humming.prepare(
        given.tensors,
        shape_n=outputs,
        shape_k=depth,
        weight_schema=schema,
        has_bias=bias_N is not None,
        torch_dtype=dtype,
        device=device,
    )
    return HummingWeight(
        shape=(outputs, depth),
        dtype=dtype,
        humming=humming,
        form=form,
        tensors=tensors,
        locks=torch.zeros(LOCKS, dtype=torch.int32, device=device),
        order_K=None if loaded.order_K is None else loaded.order_K.to(device),
    )


def compare(made: HummingWeight, loaded: Quantised, bias_N: Tensor | None) -> None:
    """Products with random rows beside the reference's, at some of the outputs. Raises `UnsuitableWeight`."""
    outputs, depth = made.shape
    device, draw = made.locks.device, torch.Generator().manual_seed(0)
    index_O = torch.arange(OUTPUTS) * (outputs - 1) // (OUTPUTS - 1)
    dense_OK = _rows_of(loaded, index_O).to(device)
    bias_O = None if bias_N is None else bias_N.to(device, torch.float32)[index_O.to(device)]
    for rows in ROWS:
        x_TK = torch.randn(rows, depth, generator=draw).to(device, made.dtype)
        y_TN = torch.full((rows, outputs), torch.nan, dtype=made.dtype, device=device)
        made.multiply(x_TK, y_TN)
        wanted_TO = x_TK.float() @ dense_OK.t() + (0 if bias_O is None else bias_O)
        error = ((y_TN[:, index_O.to(device)].float() - wanted_TO).abs().max() / wanted_TO.abs().max()).item()
        if not error <= BOUND or not bool(y_TN.isfinite().all()):
            form = f"{loaded.bits}-bit weights of {outputs}×{depth} in groups of {loaded.group}"
            raise UnsuitableWeight(
                f"humming differs from the reference with {form}, {rows} rows: by {error:.3g}, where {BOUND:g} is allowed"
            )


def _rows_of(loaded: Quantised, index_O: Tensor) -> Tensor:
    return rows_of(loaded, index_O.to(loaded.codes.device))
