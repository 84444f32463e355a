"""Gated activations: y = act(gate) * up, where the fused projection [T, 2·I] holds gate, then up.

silu(g) = g / (1 + exp(-g)). gelu_tanh(g) = g/2 * (1 + tanh(sqrt(2/pi) * (g + 0.044715 g³))), arXiv:1606.08415. Written out,
since torch's own silu and gelu round some elements differently depending on where a thread's share of the tensor ends.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from inference_stack.ops.api import Activation
from inference_stack.ops.workspace import Workspace

_GELU_SCALE: Final = math.sqrt(2.0 / math.pi)


def act_mul(workspace: Workspace, gate_up_TX: Tensor, kind: Activation) -> Tensor:
    """act(gate) * up; [T, I] fp32."""
    width = gate_up_TX.shape[1] // 2
    gate_TI, up_TI = gate_up_TX[:, :width], gate_up_TX[:, width:]
    y_TI = workspace.take_like(gate_up_TX, (gate_up_TX.shape[0], width), torch.float32)
    if kind == "silu":
        torch.neg(gate_TI, out=y_TI)
        torch.div(gate_TI, y_TI.exp_().add_(1.0), out=y_TI)
    else:
        torch.mul(gate_TI, gate_TI, out=y_TI)
        y_TI.mul_(gate_TI).mul_(0.044715).add_(gate_TI).mul_(_GELU_SCALE)
        y_TI.tanh_().add_(1.0).mul_(gate_TI).mul_(0.5)
    return y_TI.mul_(up_TI)
