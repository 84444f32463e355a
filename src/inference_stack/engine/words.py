"""Which tokens of a model's vocabulary are plain words, read from its files without weights, tokenizer library or torch.

Made-up answers consist of them: every such token is readable text by itself, never a special token and never half a character.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.gguf import GgufFile
from inference_stack.artifacts.vocabulary import WORD, hf_spellings
from inference_stack.core.errors import unsupported_model
from inference_stack.core.step import IntArray
from inference_stack.models.config import ModelConfig, config_from_hf
from inference_stack.models.gguf_config import config_from_gguf
from inference_stack.simulator.tokens import FIRST_TOKEN, tokens_at


@dataclass(frozen=True, slots=True)
class Words:
    """Token ids that are words, ascending int32 [N]."""

    ids: IntArray

    def at(self, keys: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> IntArray:
        """The words at these positions of the streams with these `answer_key`s: arrays that broadcast together."""
        return self.ids[tokens_at(keys, positions, FIRST_TOKEN + len(self.ids)) - FIRST_TOKEN]

    def after(self, token: int, count: int) -> list[int]:
        """Up to `count` words that are not `token`: those that follow it in the vocabulary, then its first ones."""
        begin = int(np.searchsorted(self.ids, token, side="right"))
        others = min(count, len(self.ids) - 1)
        return self.ids[(begin + np.arange(others)) % len(self.ids)].tolist()


def describe(files: ModelFiles) -> tuple[ModelConfig, Words]:
    """A model's configuration and its words. Raises `unsupported_model` for files that do not tell, or a vocabulary without."""
    if files.kind == "gguf":
        with GgufFile(files.weights[0]) as gguf:
            spellings = gguf.metadata.get("tokenizer.ggml.tokens", ())
            return config_from_gguf(gguf), _words(enumerate(spellings), files)
    raw, tokenizer = files.json("config.json"), files.json("tokenizer.json")
    if raw is None or tokenizer is None:
        raise unsupported_model(f"{files.root} needs a config.json and a tokenizer.json.")
    config = config_from_hf(raw, files.json("generation_config.json"))
    return config, _words((pair for pair in hf_spellings(tokenizer) if pair[0] < config.vocab_size), files)


def _words(spellings: Iterable[tuple[int, str]], files: ModelFiles) -> Words:
    found = sorted(token for token, spelling in spellings if WORD.fullmatch(spelling))
    if not found:
        raise unsupported_model(f"The vocabulary of {files.name} has no words to make answers of.")
    return Words(np.array(found, dtype=np.int32))
