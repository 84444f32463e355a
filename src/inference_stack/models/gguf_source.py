"""GGUF files under Hugging Face's tensor names.

GGUF names tensors otherwise and, for Llama, keeps the rows of q and k in the order of another rotary layout; both are
undone here, on the packed bytes. Knows containers and names; what a model needs is the model's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
EXPERT_NAMES = {
    "mixtral": ("block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"}),
    "qwen3_moe": ("mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
}
"""Where experts and their router are, and what one expert's projections are called."""
GEMMA3_LAYER_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
STACK = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is: a tensor of the file, or matrix number `index` of a stack."""

    own: str
    index: int | None = None


class GgufSource:
    """A `Source`. Raises `unsupported_model` for types that cannot be read."""

    def __init__(self, gguf: GgufFile, config: ModelConfig) -> None:
        gguf.check_types()
        self._gguf = gguf
        self._places = dict(self._named(config.architecture))
        rotated = config.architecture in ("llama", "mixtral")
        self._interleaved = {"q": config.heads, "k": config.kv_heads} if rotated else {}
        self.norms_hold_one = config.architecture == "gemma3"

    def names(self) -> Iterable[str]:
        """Every tensor."""
        return self._places

    def _named(self, architecture: str) -> Iterator[tuple[str, Place]]:
        """Every tensor under Hugging Face's name, stacks of experts one by one."""
        for own, info in self._gguf.tensors.items():
            match = STACK.fullmatch(own)
            if match is None or architecture not in EXPERT_NAMES or len(info.shape) != 3:
                yield _hf_name(own, architecture), Place(own)
                continue
            module, parts = EXPERT_NAMES[architecture]
            for expert in range(info.shape[0]):
                name = f"model.layers.{match[1]}.{module}.experts.{expert}.{parts[match[2]]}.weight"
                yield name, Place(own, expert)

    def layout(self, name: str) -> Layout | None:
        """How a tensor is stored; None where there is no such tensor."""
        place = self._places.get(name)
        if place is None:
            return None
        info, nbytes = self._gguf.tensors[place.own], self._gguf.raw(place.own).nbytes
        shape = info.shape
        if place.index is not None:
            shape, nbytes = shape[1:], nbytes // shape[0]
        if (dtype := TORCH_DTYPES.get(info.type_name)) is not None:
            return Layout(label=DTYPE_NAMES[dtype], shape=shape, nbytes=nbytes, dtype=dtype)
        form = gguf_blocks.form_of(info.type_id)
        return Layout(label=info.type_name, shape=shape, nbytes=nbytes, form=form)

    def extent(self, name: str) -> Extent | None:
        """None: rows may have to change places, which `read` does."""
        return None

    def read(self, name: str, out: Tensor) -> None:
        """Fill `out` with a dense tensor, converting to its type."""
        place = self._places[name]
        dtype = TORCH_DTYPES[self._gguf.tensors[place.own].type_name]
        same = out if out.dtype == dtype and out.is_contiguous() else torch.empty(out.shape, dtype=dtype)
        same.view(-1).view(torch.uint8).numpy()[:] = self._rows(place).reshape(-1)
        if same is not out:
            out.copy_(same)
        self._release(place)

    def read_grouped(self, name: str, out: Grouped) -> None:
        """Fill `out` with a quantised tensor."""
        place = self._places[name]
        gguf_blocks.unpack(self._rows(place), self._gguf.tensors[place.own].type_id, out)
        self._release(place)

    def _release(self, place: Place) -> None:
        """Give the file's pages back; a stack's when its last matrix has been read."""
        if place.index is None or place.index + 1 == self._gguf.tensors[place.own].shape[0]:
            self._gguf.release(place.own)

    def _rows(self, place: Place) -> Bytes:
        """A tensor's packed rows in Hugging Face's order."""
        own, raw = place.own, self._gguf.raw(place.own)
        if place.index is not None:
            return raw.reshape(self._gguf.tensors[own].shape[0], -1, raw.shape[1])[place.index]
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
    if match[2] == "ffn_gate_inp" and architecture in EXPERT_NAMES:
        return f"model.layers.{match[1]}.{EXPERT_NAMES[architecture][0]}.gate.{match[3]}"
    part = (GEMMA3_LAYER_NAMES if architecture == "gemma3" else LAYER_NAMES).get(match[2])
    return f"model.layers.{match[1]}.{part}.{match[3]}" if part else own
