"""Metadata of small vocabularies, as a GGUF file would hold it, and a template."""

from __future__ import annotations

from typing import Any

from tokenizers import pre_tokenizers

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_level_metadata() -> dict[str, Any]:
    """GGUF metadata of a byte-level BPE vocabulary: 256 bytes, a few merges, control and user-defined tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "t h", "i n", "in k", "Ã ©", "< |"]
    merged = ["".join(merge.split()) for merge in merges]
    control = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    defined = ["<think>", "</think>"]
    tokens = alphabet + merged + control + defined
    types = [1] * (len(alphabet) + len(merged)) + [3] * len(control) + [4] * len(defined)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokens.index("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.chat_template": CHATML,
    }


def sentencepiece_metadata() -> dict[str, Any]:
    """GGUF metadata of a SentencePiece vocabulary with byte fallback."""
    control = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["▁", *"abcdehlorstwé<>/|", "ll", "he", "hell", "hello", "▁hello", "▁w", "or", "▁wor", "▁wor" + "ld", "ld"]
    tokens = control + fallback + pieces
    scores = [0.0] * 259 + [-float(len(pieces) - index) for index in range(len(pieces))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
