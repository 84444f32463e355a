"""How much KV memory a device gives, and how long a sequence may be. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from inference_stack.config.sizes import parse_size
from inference_stack.core.errors import SERVER_ERROR, ErrorInfo, InferenceError
from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.kv.slabs import ArenaGeometry, slab_size

AUTO_SHARE = 0.25
AUTO_FLOOR = 128 << 20
AUTO_SEQUENCES = 1
"""Automatic KV memory: room for this many of the longest sequences; at least the floor, at most the share of what is free.

Modest on purpose: all of it is committed at start, and a laptop has other uses for its memory. More is a setting away."""
GPU_SHARE = 0.9
"""At most, of a GPU's memory beside the weights, which nobody else has a use for."""
STEP_BYTES = 768 << 20
ROW_BYTES_A_TOKEN = 9
ROW_BYTES_A_WORD = 16
"""What steps on a GPU need beside KV: activations and states of attention; of each row the tokens and block entries of the longest
sequence; its logits, and the sampler's three numbers for each of them."""


def sequence_bytes(groups: Sequence[KvGroupSpec], tokens: int) -> int:
    """KV bytes of one sequence, windows aside."""
    return -(-tokens // BLOCK_TOKENS) * sum(spec.block_bytes for spec in groups)


def step_reserve(rows: int, models: Sequence[tuple[int, int]]) -> int:
    """Bytes that steps of up to `rows` rows take on a GPU, about, given (longest sequence, vocabulary) of each model."""
    tables = sum(rows * longest * ROW_BYTES_A_TOKEN for longest, _ in models)
    return STEP_BYTES + tables + max((rows * words * ROW_BYTES_A_WORD for _, words in models), default=0)


def kv_bytes(
    setting: str, free: int, models: Sequence[tuple[Sequence[KvGroupSpec], int]], reserve: int | None = None
) -> int:
    """Bytes for the arena: the setting, or what `auto` derives from (KV groups, longest sequence) of each model. On a GPU
    `reserve` is what steps need."""
    if setting != "auto":
        return parse_size(setting)
    if reserve is not None:
        return max(0, min(int(free * GPU_SHARE), free - reserve))
    wanted = sum(AUTO_SEQUENCES * sequence_bytes(groups, longest) for groups, longest in models)
    return min(max(wanted, AUTO_FLOOR), int(free * AUTO_SHARE))


def arena_geometry(arena_bytes: int, groups: Sequence[KvGroupSpec]) -> tuple[ArenaGeometry, str]:
    """The arena's slabs, and a remark for people. Raises `InferenceError` when not even one block of each group fits."""
    try:
        choice = slab_size(groups, arena_bytes)
    except ValueError as error:
        info = ErrorInfo(
            message=f"{error}; raise --kv-memory", type=SERVER_ERROR, code="kv_memory_too_small", status=500
        )
        raise InferenceError(info) from error
    remark = f"{choice.slab_count} slabs of {choice.slab_bytes >> 10} KiB, {choice.waste:.1%} unusable"
    return ArenaGeometry(slab_bytes=choice.slab_bytes, slab_count=choice.slab_count), (
        f"{remark} ({choice.note})" if choice.note else remark
    )
