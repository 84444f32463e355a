"""Rows by index: `embed` looks token rows up in the table and scales them; `select` picks the rows whose logits are wanted.

embed: x[t] = fp32(table[tokens[t]]) * scale, a quantised table's rows being dequantised. select: y[s] = x[rows[s]], exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference_stack.ops.api import Linear, Quantised
from inference_stack.ops.reference.quantised import rows_of
from inference_stack.ops.workspace import Workspace


def embed(workspace: Workspace, tokens_T: Tensor, table: Linear, scale: float = 1.0) -> Tensor:
    """x_TD fp32 = table[tokens] * scale; the product is rounded once, in fp32."""
    weight = table.weight
    x_TD = workspace.take((tokens_T.shape[0], weight.shape[1]), torch.float32)
    if isinstance(weight, Quantised):
        x_TD.copy_(rows_of(weight, tokens_T))
    elif not isinstance(weight, Tensor):
        x_TD.copy_(weight.rows(tokens_T))
    elif weight.dtype == torch.float32:
        torch.index_select(weight, 0, tokens_T, out=x_TD)
    else:
        x_TD.copy_(weight.index_select(0, tokens_T))
    return x_TD if scale == 1.0 else x_TD.mul_(scale)


def select(workspace: Workspace, x_TD: Tensor, rows_S: Tensor) -> Tensor:
    """x[rows], with a leading dimension that counts samples."""
    y_SD = workspace.take((rows_S.shape[0], x_TD.shape[1]), x_TD.dtype, rows="samples")
    torch.index_select(x_TD, 0, rows_S, out=y_SD)
    return y_SD
