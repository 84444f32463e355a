"""Operations on rows: embedding, norms, gated activations, selection."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from inference_stack.ops.api import Activation, Linear
from inference_stack.ops.cpu.linear import NativeWeight, pack
from inference_stack.ops.cpu.native import Native, address
from inference_stack.ops.workspace import Workspace

KINDS: Final[dict[Activation, int]] = {"silu": 0, "gelu_tanh": 1}


class CpuRows:
    """The row operations over one workspace. Inputs are fp32 with adjacent columns."""

    def __init__(self, native: Native, workspace: Workspace) -> None:
        self._native = native
        self._workspace = workspace

    def embed(self, tokens_T: Tensor, table: Linear, scale: float = 1.0) -> Tensor:
        """x_TD fp32 = table[tokens] * scale."""
        if not isinstance(table.weight, NativeWeight):
            table.weight = pack(self._native, table.weight)  # type: ignore[arg-type]
        weight = table.weight
        assert isinstance(weight, NativeWeight)
        tokens, width = tokens_T.shape[0], weight.shape[1]
        out = self._workspace.take((tokens, width), torch.float32)
        self._native.keep(weight)
        self._native.emit(
            lambda tape: tape.embed(address(tokens_T), weight.handle, scale, address(out), width), tokens=tokens
        )
        return out

    def rmsnorm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x²) + eps) * weight."""
        rows, width = x_TD.shape
        y_TD = self._workspace.take_like(x_TD, (rows, width), torch.float32)
        samples = self._samples(x_TD)
        self._native.emit(
            lambda tape: tape.rmsnorm(
                address(x_TD), x_TD.stride(0), address(weight_D), eps, width, address(y_TD), width, samples
            ),
            tokens=rows,
            samples=rows,
        )
        return y_TD

    def add_rmsnorm(self, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """s = x + residual; (rmsnorm(s), s)."""
        rows, width = x_TD.shape
        y_TD = self._workspace.take_like(x_TD, (rows, width), torch.float32)
        sum_TD = self._workspace.take_like(x_TD, (rows, width), torch.float32)
        x, residual = (address(x_TD), x_TD.stride(0)), (address(residual_TD), residual_TD.stride(0))
        outputs = (address(y_TD), width, address(sum_TD), width)
        samples = self._samples(x_TD)
        self._native.emit(
            lambda tape: tape.add_rmsnorm(*x, *residual, address(weight_D), eps, width, *outputs, samples),
            tokens=rows,
            samples=rows,
        )
        return y_TD, sum_TD

    def act_mul(self, gate_up_TX: Tensor, kind: Activation) -> Tensor:
        """act(gate) * up; [T, I]."""
        rows, width = gate_up_TX.shape[0], gate_up_TX.shape[1] // 2
        y_TI = self._workspace.take_like(gate_up_TX, (rows, width), torch.float32)
        samples = self._samples(gate_up_TX)
        self._native.emit(
            lambda tape: tape.act_mul(
                address(gate_up_TX), gate_up_TX.stride(0), KINDS[kind], width, address(y_TI), width, samples
            ),
            tokens=rows,
            samples=rows,
        )
        return y_TI

    def select(self, x_TD: Tensor, rows_S: Tensor) -> Tensor:
        """x[rows], with a leading dimension that counts samples."""
        samples, width = rows_S.shape[0], x_TD.shape[1]
        y_SD = self._workspace.take((samples, width), torch.float32, rows="samples")
        self._native.emit(
            lambda tape: tape.select(address(rows_S), address(x_TD), x_TD.stride(0), width, address(y_SD), width),
            samples=samples,
        )
        return y_SD

    def _samples(self, x: Tensor) -> bool:
        return self._workspace.rows_of(x) == "samples"
