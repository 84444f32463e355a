"""Attention over the KV arena and the store that fills it: addresses of a layer and a step, handed to the kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from inference_stack.ops.api import HeadSpec, KvLayer, StepInputs
from inference_stack.ops.cpu.native import Native, address
from inference_stack.ops.reference.attention import Attention
from inference_stack.ops.workspace import Workspace

if TYPE_CHECKING:
    from inference_stack.ops.cpu import _native

KV_FORMS: Final = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
KV_DTYPES: Final = ("float32", "float16", "bfloat16", "int8")


class CpuAttention:
    """`Ops.rope_store` and `Ops.attend` over one workspace. Projections and queries are fp32 with adjacent columns."""

    def __init__(self, native: Native, workspace: Workspace) -> None:
        self._native = native
        self._workspace = workspace
        self._torch: Attention | None = None

    def rope_store(self, qkv_TX: Tensor, heads: HeadSpec, kv: KvLayer, step: StepInputs) -> Tensor:
        """q_THE rotated; k and v are in the arena. Raises ValueError for a head dimension that is odd or above 1024."""
        tokens, table, rope = qkv_TX.shape[0], step.tables[kv.group], heads.rope
        q_THE = self._workspace.take((tokens, heads.q_heads, heads.head_dim), torch.float32)
        view = self._view(kv)
        source = (address(qkv_TX), qkv_TX.stride(0), heads.q_heads)
        norms = (address(heads.q_norm_E), address(heads.k_norm_E), heads.norm_eps)
        tables = (address(step.positions_T), address(rope.cos_PE), address(rope.sin_PE))
        places = (address(table.entry_T), address(table.offset_T))
        self._native.keep(heads, kv, step)
        self._native.emit(
            lambda tape: tape.rope_store(view, *source, address(q_THE), q_THE.stride(0), *tables, *norms, *places),
            tokens=tokens,
        )
        return q_THE

    def attend(
        self,
        q_THE: Tensor,
        kv: KvLayer,
        step: StepInputs,
        scale: float,
        softcap: float = 0.0,
        sinks_H: Tensor | None = None,
    ) -> Tensor:
        """o [T, H·E] fp32. With sinks torch's ops compute it: raises RuntimeError while a step is recorded."""
        if sinks_H is not None:
            return self._with_sinks(q_THE, kv, step, scale, softcap, sinks_H)
        tokens, q_heads, head_dim = q_THE.shape
        out_TX = self._workspace.take((tokens, q_heads * head_dim), torch.float32)
        view, entry_RB = self._view(kv), step.tables[kv.group].entry_RB
        queries = (address(q_THE), q_THE.stride(0), q_heads)
        blocks = (address(entry_RB), entry_RB.stride(0), address(step.cu_q_X), address(step.context_R))
        self._native.keep(kv, step)
        self._native.emit(
            lambda tape: tape.attend(view, *queries, address(out_TX), out_TX.stride(0), *blocks, scale, softcap),
            tokens=tokens,
            rows=step.context_R.shape[0],
        )
        return out_TX

    def _with_sinks(
        self, q_THE: Tensor, kv: KvLayer, step: StepInputs, scale: float, softcap: float, sinks_H: Tensor
    ) -> Tensor:
        if self._native.recording:
            raise RuntimeError("steps with attention sinks cannot be recorded; set engine.recorded_steps to false")
        if self._torch is None:
            self._torch = Attention(self._workspace)
        return self._torch(q_THE, kv, step, scale, softcap, sinks_H)

    def _view(self, kv: KvLayer) -> _native.KvView:
        view: _native.KvView = self._native.module.KvView(
            address(kv.arena),
            kv.offset_bytes,
            kv.granule_bytes,
            kv.kv_heads,
            kv.head_dim,
            KV_FORMS[kv.dtype],
            kv.window or 0,
        )
        return view
