"""Projections: weights packed into the kernels' layout once, then one operation per product.

A quantised weight is multiplied as `ops/reference/quantised.py` defines it, with exact integer sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from inference_stack.ops.api import Linear, Quantised
from inference_stack.ops.cpu.native import Native, address
from inference_stack.ops.reference.quantised import act_block
from inference_stack.ops.workspace import Workspace

if TYPE_CHECKING:
    from inference_stack.ops.cpu import _native

FORMS: Final = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class NativeWeight:
    """A weight in the kernels' layout: `Prepared`."""

    def __init__(self, native: Native, handle: _native.Weight) -> None:
        self._native = native
        self.handle = handle
        self.shape = (handle.outputs, handle.inputs)
        self.nbytes = handle.nbytes

    def rows(self, index_T: Tensor) -> Tensor:
        """Some rows of the weight, fp32 [T, K]."""
        out = torch.empty(index_T.shape[0], self.shape[1])
        index = index_T.contiguous()
        tape = self._native.module.Tape(self._native.kernels, index.shape[0], 0)
        tape.embed(address(index), self.handle, 1.0, address(out), self.shape[1])
        self._native.pool.run(tape, index.shape[0], 0, 0)
        return out


def pack(native: Native, weight: Tensor | Quantised) -> NativeWeight:
    """The weight in the kernels' layout."""
    if isinstance(weight, Quantised):
        return NativeWeight(native, _pack_quantised(native, weight))
    dense = weight.detach()
    dense = (dense if dense.dtype in FORMS else dense.to(torch.float32)).contiguous()
    handle = native.module.pack_dense(native.store, address(dense), *dense.shape, FORMS[dense.dtype])
    return NativeWeight(native, handle)


def _pack_quantised(native: Native, weight: Quantised) -> _native.Weight:
    codes, scale = weight.codes.contiguous(), weight.scale_NG.contiguous()
    zero = None if weight.zero_NG is None else weight.zero_NG.to(scale.dtype).contiguous()
    order = None if weight.order_K is None else weight.order_K.to(torch.int32).contiguous()
    handle: _native.Weight = native.module.pack_quantised(
        native.store,
        address(codes),
        address(scale),
        address(zero),
        address(order),
        *weight.shape,
        weight.bits,
        weight.group,
        act_block(weight.group),
        scale.dtype == torch.float16,
    )
    return handle


class CpuLinear:
    """`Ops.linear` and `Ops.prepare`."""

    def __init__(self, native: Native, workspace: Workspace) -> None:
        self._native = native
        self._workspace = workspace

    def __call__(self, x_TK: Tensor, weight: Linear) -> Tensor:
        """y_TN fp32 = x @ W.T + b."""
        if not isinstance(weight.weight, NativeWeight):
            self.prepare(weight)
        packed = weight.weight
        assert isinstance(packed, NativeWeight)
        x_TK = self._plain(x_TK)
        rows, width = x_TK.shape[0], packed.shape[0]
        samples = self._workspace.rows_of(x_TK) == "samples"
        y_TN = self._workspace.take_like(x_TK, (rows, width), torch.float32)
        self._native.keep(packed, weight.bias_N)
        self._native.emit(
            lambda tape: tape.linear(
                address(x_TK),
                x_TK.stride(0),
                packed.handle,
                address(weight.bias_N),
                address(y_TN),
                width,
                samples,
            ),
            tokens=rows,
            samples=rows,
        )
        return y_TN

    def _plain(self, x_TK: Tensor) -> Tensor:
        if x_TK.dtype == torch.float32 and x_TK.stride(1) == 1:
            return x_TK
        if self._native.recording:
            raise RuntimeError("a recorded projection needs fp32 rows with adjacent columns")
        return x_TK.to(torch.float32).contiguous()

    def prepare(self, weight: Linear) -> None:
        """Pack the weight, in place of the one that was loaded."""
        if not isinstance(weight.weight, NativeWeight):
            weight.weight = pack(self._native, weight.weight)  # type: ignore[arg-type]
