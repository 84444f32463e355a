"""The two containers that weights come in, both speaking Hugging Face's tensor names.

GGUF names tensors otherwise and, for Llama, keeps the rows of q and k in the order of another rotary layout; both are
undone here, on the packed bytes. Knows containers and names; what a model needs is the model's business.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from inference_stack.artifacts.gguf import GgufFile
from inference_stack.artifacts.gguf_dequant import dequantise
from inference_stack.artifacts.safetensors_files import stored_tensors
from inference_stack.models.config import ModelConfig

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
TORCH_NAMES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class SafetensorsSource:
    """Tensors of safetensors files. Raises `unsupported_model` for corrupt files and other types."""

    norms_hold_one = False

    def __init__(self, paths: Sequence[Path]) -> None:
        self._tensors = stored_tensors(paths)
        self._files = {path: safe_open(path, framework="pt") for path in paths}

    def names(self) -> Iterable[str]:
        """Every tensor."""
        return self._tensors

    def shape(self, name: str) -> tuple[int, ...] | None:
        """A tensor's shape; None where there is no such tensor."""
        tensor = self._tensors.get(name)
        return tensor.shape if tensor else None

    def nbytes(self, name: str) -> int:
        """A tensor's size in the file."""
        return self._tensors[name].nbytes

    def read(self, name: str, out: Tensor) -> None:
        """Fill `out`, converting to its type."""
        out.copy_(self._files[self._tensors[name].path].get_tensor(name))

    def stored_as(self) -> str:
        """The type that most of the bytes have."""
        return TORCH_NAMES[_most((tensor.dtype, tensor.nbytes) for tensor in self._tensors.values())]


class GgufSource:
    """Tensors of a GGUF file under Hugging Face's names. Raises `unsupported_model` for types that cannot be read."""

    def __init__(self, gguf: GgufFile, config: ModelConfig) -> None:
        gguf.check_types()
        self._gguf = gguf
        self._own_name = {_hf_name(name, config.architecture): name for name in gguf.tensors}
        self._interleaved = {"q": config.heads, "k": config.kv_heads} if config.architecture == "llama" else {}
        self.norms_hold_one = config.architecture == "gemma3"

    def names(self) -> Iterable[str]:
        """Every tensor."""
        return self._own_name

    def shape(self, name: str) -> tuple[int, ...] | None:
        """A tensor's shape; None where there is no such tensor."""
        own = self._own_name.get(name)
        return self._gguf.tensors[own].shape if own else None

    def nbytes(self, name: str) -> int:
        """A tensor's size in the file."""
        return self._gguf.raw(self._own_name[name]).nbytes

    def read(self, name: str, out: Tensor) -> None:
        """Fill `out`, unpacking (and converting to its type)."""
        own = self._own_name[name]
        raw = self._gguf.raw(own)
        if heads := self._heads(own):
            size = self._gguf.tensors[own].shape[0]
            # Pairs (2j, 2j+1) of a head belong at (j, j + E/2). Biases have their elements where weights have rows.
            pairs = raw.reshape(heads, size // heads // 2, 2, -1)
            raw = np.ascontiguousarray(pairs.swapaxes(1, 2))
        whole = out if out.dtype == torch.float32 else torch.empty(out.shape)
        dequantise(raw, self._gguf.tensors[own].type_id, whole.numpy())
        if whole is not out:
            out.copy_(whole)

    def stored_as(self) -> str:
        """The type that most of the bytes have."""
        return _most((info.type_name, self._gguf.raw(name).nbytes) for name, info in self._gguf.tensors.items())

    def _heads(self, own: str) -> int:
        match = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)", own)
        return self._interleaved.get(match[1], 0) if match else 0


def _hf_name(own: str, architecture: str) -> str:
    """A GGUF tensor's name in Hugging Face's scheme; names without a counterpart stay."""
    match = LAYER.fullmatch(own)
    if match is None:
        return GLOBAL_NAMES.get(own, own)
    part = (GEMMA3_LAYER_NAMES if architecture == "gemma3" else LAYER_NAMES).get(match[2])
    return f"model.layers.{match[1]}.{part}.{match[3]}" if part else own


def _most(sizes: Iterable[tuple[str, int]]) -> str:
    total: Counter[str] = Counter()
    for kind, nbytes in sizes:
        total[kind] += nbytes
    return total.most_common(1)[0][0] if total else "F32"
