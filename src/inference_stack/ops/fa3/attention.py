"""`Ops.attend` by the package's attention over paged KV: one call for every form of step.

Lengths and block tables are read on the device; the host says only how many queries a row has at most, so a recorded step, in
which each row has one, is launched like any other. What layers share is converted once a step. It knows no kernel's inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inference_stack.ops.api import KvLayer, StepInputs
from inference_stack.ops.fa3.pages import pages
from inference_stack.ops.fa3.wheel import HEAD_DIMS, Attend
from inference_stack.ops.reference.step_cache import StepCache


@dataclass(frozen=True, slots=True)
class Bounds:
    """A step's rows: `cu_q_X` and `context_R` int32, and the most queries of one."""

    cu_q_X: Tensor
    context_R: Tensor
    most: int


class Fa3Attention:
    """`Ops.attend`."""

    def __init__(self, run: Attend) -> None:
        self._run = run
        self._cache = StepCache()

    def __call__(
        self,
        q_THE: Tensor,
        kv: KvLayer,
        step: StepInputs,
        scale: float,
        softcap: float = 0.0,
        sinks_H: Tensor | None = None,
    ) -> Tensor:
        """o [T, H·E] in the dtype of q. Raises ValueError for a softcap, for heads of other sizes, and for other KV than q."""
        tokens, _, width = q_THE.shape
        _check(q_THE, kv, softcap)
        if tokens == 0:
            return q_THE.new_empty(0, q_THE.shape[1] * width)
        bounds = self._cache.get(step, "bounds", lambda: _bounds(step))
        table_RB = self._cache.get(step, kv.group, lambda: step.tables[kv.group].entry_RB.to(torch.int32))
        keys, values = pages(kv)
        out_THE = self._run(
            q=q_THE,
            k_cache=keys,
            v_cache=values,
            cache_seqlens=bounds.context_R,
            page_table=table_RB,
            cu_seqlens_q=bounds.cu_q_X,
            max_seqlen_q=bounds.most,
            softmax_scale=scale,
            causal=True,
            window_size=(-1, -1) if kv.window is None else (kv.window - 1, 0),
            sinks=None if sinks_H is None else sinks_H.to(torch.bfloat16),
        )
        return out_THE.reshape(tokens, -1)


def _check(q_THE: Tensor, kv: KvLayer, softcap: float) -> None:
    if softcap:
        raise ValueError("fa3 has no softcap")
    if kv.head_dim not in HEAD_DIMS:
        raise ValueError(f"fa3 has no heads of {kv.head_dim}")
    if kv.dtype != q_THE.dtype:
        raise ValueError(f"fa3 reads KV in the activations' type, {q_THE.dtype}; this is {kv.dtype}")


def _bounds(step: StepInputs) -> Bounds:
    most = max((stop - start for start, stop in zip(step.cu_q, step.cu_q[1:], strict=False)), default=1)
    return Bounds(step.cu_q_X.to(torch.int32), step.context_R.to(torch.int32), most)
