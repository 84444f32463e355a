"""Small vocabularies, whole in the tests, of the three kinds that decode differently; and the demo model's, where it is at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from inference_stack.artifacts.gguf import GgufFile
from inference_stack.frontend.gguf_vocab import gguf_tokenizer
from inference_stack.frontend.load import Frontend, frontend_from_gguf
from inference_stack.frontend.tokenizer import Tokenizer
from tests.frontend.vocabularies import byte_level_metadata, sentencepiece_metadata


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return gguf_tokenizer(byte_level_metadata())


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    return gguf_tokenizer(sentencepiece_metadata())


@pytest.fixture(scope="session")
def wordpiece() -> Tokenizer:
    """A vocabulary whose decoder looks at more than one token, so it has no byte rule."""
    words = ["[UNK]", "hello", "world", "##s", "a", "b", "##c"]
    raw = RawTokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.WordPiece(cleanup=False)
    return Tokenizer(raw)


@pytest.fixture(scope="session")
def greedy_space() -> Tokenizer:
    """A byte-level vocabulary with a control token that swallows the white space after it."""
    raw = RawTokenizer(models.BPE({char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_tokens([AddedToken("<|end|>", special=True, rstrip=True), AddedToken("<|mid|>", special=True, lstrip=True)])
    return Tokenizer(raw)


@pytest.fixture(scope="session")
def smollm2(demo_model: Path) -> Frontend:
    """The demo model's frontend."""
    with GgufFile(demo_model) as container:
        return frontend_from_gguf(container.metadata)
