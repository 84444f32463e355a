"""A vocabulary's digest: the same for the same words in any container, another for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.vocabulary import vocabulary_digest
from tests.artifacts.gguf_writer import ARRAY, STRING, Gguf, array

INT32 = 5
WORDS = ["the", "Ġcat", "▁sat", "on"]


def directory(root: Path, model: dict[str, Any], added: tuple[tuple[int, str], ...] = ()) -> ModelFiles:
    root.mkdir(exist_ok=True)
    listed = [{"id": token, "content": text} for token, text in added]
    (root / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": listed}))
    return ModelFiles(kind="safetensors", name="m", root=root, weights=())


def mapped(*words: str) -> dict[str, Any]:
    return {"type": "BPE", "vocab": {text: token for token, text in enumerate(words)}}


def container(path: Path, words: list[str], kinds: list[int] | None = None) -> ModelFiles:
    file = Gguf(pairs=[("tokenizer.ggml.tokens", ARRAY, array(STRING, words))])
    if kinds is not None:
        file.pairs.append(("tokenizer.ggml.token_type", ARRAY, array(INT32, kinds)))
    path.write_bytes(file.encode())
    return ModelFiles(kind="gguf", name="m", root=path.parent, weights=(path,))


def test_the_container_does_not_matter(tmp_path: Path) -> None:
    mapping = vocabulary_digest(directory(tmp_path / "bpe", mapped(*WORDS)))
    listing = vocabulary_digest(directory(tmp_path / "unigram", {"vocab": [[text, -1.0] for text in WORDS]}))
    gguf = vocabulary_digest(container(tmp_path / "m.gguf", WORDS))
    assert mapping == listing == gguf != ""


def test_neither_special_nor_padding_tokens_matter(tmp_path: Path) -> None:
    plain = vocabulary_digest(directory(tmp_path / "plain", mapped(*WORDS)))
    more = directory(tmp_path / "more", mapped(*WORDS, "tool", "<|end|>"), ((4, "tool"), (5, "<|end|>")))
    padded = container(tmp_path / "m.gguf", [*WORDS, "tool", "[PAD5]"], [1, 1, 1, 1, 3, 5])
    assert plain == vocabulary_digest(more) == vocabulary_digest(padded)


@pytest.mark.parametrize(
    "words", [["the", "Ġdog", "▁sat", "on"], ["Ġcat", "the", "▁sat", "on"], WORDS[:3], [*WORDS, "a"]]
)
def test_other_words_have_another_digest(tmp_path: Path, words: list[str]) -> None:
    ours = vocabulary_digest(directory(tmp_path / "ours", mapped(*WORDS)))
    assert vocabulary_digest(directory(tmp_path / "theirs", mapped(*words))) != ours


def test_files_without_a_vocabulary_tell_nothing(tmp_path: Path) -> None:
    nothing = ModelFiles(kind="safetensors", name="m", root=tmp_path, weights=())
    assert vocabulary_digest(nothing) == vocabulary_digest(directory(tmp_path / "none", mapped("1", "?!"))) == ""
