"""GGUF files under Hugging Face's tensor names.

GGUF names tensors otherwise and, for Llama, keeps the rows of q and k in the order of another rotary layout; both are
undone here, on the packed bytes. Knows containers and names; what a model needs is the model's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from inference_stack.artifacts import gguf_blocks
from inference_stack.artifacts.canonical import Bytes, Grouped
from inference_stack.artifacts.gguf import GgufFile
from inference_stack.models.config import ModelConfig
from inference_stack.models.stored import DTYPE_NAMES, TORCH_DTYPES, Extent, Layout

GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA3_LAYER_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class GgufSource:
    """A `Source`. Raises `unsupported_model` for types that cannot be read."""

    def __init__(self, gguf: GgufFile, config: ModelConfig) -> None:
        gguf.check_types()
        self._gguf = gguf
        self._own_name = {_hf_name(name, config.architecture): name for name in gguf.tensors}
        self._interleaved = {"q": config.heads, "k": config.kv_heads} if config.architecture == "llama" else {}
        self.norms_hold_one = config.architecture == "gemma3"

    def names(self) -> Iterable[str]:
        """Every tensor."""
        return self._own_name

    def layout(self, name: str) -> Layout | None:
        """How a tensor is stored; None where there is no such tensor."""
        own = self._own_name.get(name)
        if own is None:
            return None
        info, nbytes = self._gguf.tensors[own], self._gguf.raw(own).nbytes
        if (dtype := TORCH_DTYPES.get(info.type_name)) is not None:
            return Layout(label=DTYPE_NAMES[dtype], shape=info.shape, nbytes=nbytes, dtype=dtype)
        form = gguf_blocks.form_of(info.type_id)
        return Layout(label=info.type_name, shape=info.shape, nbytes=nbytes, form=form)

    def extent(self, name: str) -> Extent | None:
        """None: rows may have to change places, which `read` does."""
        return None

    def read(self, name: str, out: Tensor) -> None:
        """Fill `out` with a dense tensor, converting to its type."""
        own = self._own_name[name]
        dtype = TORCH_DTYPES[self._gguf.tensors[own].type_name]
        same = out if out.dtype == dtype and out.is_contiguous() else torch.empty(out.shape, dtype=dtype)
        same.view(-1).view(torch.uint8).numpy()[:] = self._rows(own).reshape(-1)
        if same is not out:
            out.copy_(same)
        self._gguf.release(own)

    def read_grouped(self, name: str, out: Grouped) -> None:
        """Fill `out` with a quantised tensor."""
        own = self._own_name[name]
        gguf_blocks.unpack(self._rows(own), self._gguf.tensors[own].type_id, out)
        self._gguf.release(own)

    def _rows(self, own: str) -> Bytes:
        """A tensor's packed rows in Hugging Face's order."""
        raw = self._gguf.raw(own)
        match = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)", own)
        heads = self._interleaved.get(match[1], 0) if match else 0
        if not heads:
            return raw
        size = self._gguf.tensors[own].shape[0]
        # Pairs (2j, 2j+1) of a head belong at (j, j + E/2). Biases have their elements where weights have rows.
        pairs = raw.reshape(heads, size // heads // 2, 2, -1)
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(raw.shape)


def _hf_name(own: str, architecture: str) -> str:
    """A GGUF tensor's name in Hugging Face's scheme; names without a counterpart stay."""
    match = LAYER.fullmatch(own)
    if match is None:
        return GLOBAL_NAMES.get(own, own)
    part = (GEMMA3_LAYER_NAMES if architecture == "gemma3" else LAYER_NAMES).get(match[2])
    return f"model.layers.{match[1]}.{part}.{match[3]}" if part else own
