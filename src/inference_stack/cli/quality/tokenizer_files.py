"""What belongs beside the weights of a directory: tokenizer, chat templates, generation settings.

Copied from a directory; made from the metadata of a GGUF file, for which Hugging Face's readers have no other source.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RawTokenizer
from tokenizers.processors import TemplateProcessing

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.gguf import GgufFile
from inference_stack.frontend.gguf_vocab import gguf_templates, gguf_tokenizer
from inference_stack.frontend.tokenizer import Tokenizer

COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.*",
    "additional_chat_templates",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)
"""Of a directory. Weights are not among them, nor code."""


def write_companions(files: ModelFiles, folder: Path) -> None:
    """Write into `folder` everything but weights and config.json. Raises `unsupported_model` for a vocabulary that cannot be."""
    if files.kind == "gguf":
        with GgufFile(files.weights[0]) as container:
            tokenizer, templates = gguf_tokenizer(container.metadata), gguf_templates(container.metadata)
        _write_tokenizer(tokenizer, folder)
        _write_templates(templates, folder)
        return
    for path in sorted({path for pattern in COPIED for path in files.root.glob(pattern)}):
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copyfile(path, folder / path.name)


def _write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    raw = RawTokenizer.from_str(tokenizer.raw.to_str())
    if tokenizer.prefix or tokenizer.suffix:
        raw.post_processor = _surrounding(tokenizer)
    raw.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **tokenizer.named,
    }
    generation: dict[str, Any] = {"eos_token_id": list(tokenizer.eos_ids)}
    if tokenizer.bos_id is not None:
        generation["bos_token_id"] = tokenizer.bos_id
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "generation_config.json", generation)


def _surrounding(tokenizer: Tokenizer) -> TemplateProcessing:
    """Puts the tokens that belong around a text there."""
    spelt = {token: tokenizer.spelling(token) or "" for token in (*tokenizer.prefix, *tokenizer.suffix)}
    before, after = ([spelt[token] for token in part] for part in (tokenizer.prefix, tokenizer.suffix))
    return TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", "$B:1", *after],
        special_tokens=[(spelling, token) for token, spelling in spelt.items()],
    )


def _write_templates(templates: dict[str, str], folder: Path) -> None:
    for name, template in templates.items():
        path = folder / "chat_template.jinja"
        if name != "default":
            path = folder / "additional_chat_templates" / f"{name}.jinja"
            path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object for people to read too."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
