"""From a model's files to its `Frontend`: tokenizer, chat templates, and the generation settings that the files suggest.

Two sources: a directory in Hugging Face's layout (tokenizer.json and what lies beside it) and a GGUF file's metadata. Needs no
weights, runs no code from the files, and refuses with a typed error what it cannot reproduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

from inference_stack.artifacts.files import ModelFiles, read_json
from inference_stack.artifacts.gguf import GgufFile
from inference_stack.core.errors import unsupported_model
from inference_stack.frontend.chat import ChatEncoder
from inference_stack.frontend.gguf_vocab import Metadata, gguf_templates, gguf_tokenizer
from inference_stack.frontend.tokenizer import Tokenizer

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_PROBE = "a"


@dataclass(frozen=True, slots=True)
class Frontend:
    """Everything between text and tokens for one model. `generation` is its generation_config.json (empty where there is none)."""

    tokenizer: Tokenizer
    chat: ChatEncoder
    generation: Mapping[str, Any] = field(default_factory=dict)


def load_frontend(files: ModelFiles) -> Frontend:
    """The frontend of a resolved model. Raises `unsupported_model` where a file is missing, broken or beyond this build."""
    if files.kind == "gguf":
        with GgufFile(files.weights[0]) as container:
            return frontend_from_gguf(container.metadata)
    return frontend_from_directory(files.root)


def frontend_from_gguf(metadata: Metadata) -> Frontend:
    """The frontend that a GGUF file's metadata describes."""
    tokenizer = gguf_tokenizer(metadata)
    return Frontend(tokenizer, ChatEncoder(tokenizer, gguf_templates(metadata)))


def frontend_from_directory(root: Path) -> Frontend:
    """The frontend in a directory of Hugging Face's layout; `tokenizer.json` must be there, the other files may be."""
    settings, generation = _optional(root / "tokenizer_config.json"), _optional(root / "generation_config.json")
    raw = _raw(root / "tokenizer.json")
    raw.no_truncation()
    raw.no_padding()
    _add_missing(raw, settings)
    named = _named({**_optional(root / "special_tokens_map.json"), **settings})
    bos, eos = raw.token_to_id(named.get("bos_token", "")), raw.token_to_id(named.get("eos_token", ""))
    prefix, suffix = _surroundings(raw)
    tokenizer = Tokenizer(
        raw,
        bos_id=bos,
        eos_ids=_ends(eos, generation, _optional(root / "config.json")),
        prefix=_end_token(prefix, bos, settings.get("add_bos_token")),
        suffix=_end_token(suffix, eos, settings.get("add_eos_token")),
        named=named,
    )
    return Frontend(tokenizer, ChatEncoder(tokenizer, _templates(root, settings)), generation)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _raw(path: Path) -> RawTokenizer:
    if not path.is_file():
        raise unsupported_model(
            f"{path} does not exist; a served model needs a tokenizer, which is read from tokenizer.json only."
        )
    try:
        return RawTokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise unsupported_model(f"{path} is not a tokenizer: {error}") from error


def _add_missing(raw: RawTokenizer, settings: Mapping[str, Any]) -> None:
    """Added tokens that only tokenizer_config.json names, where they get the ids it says."""
    listed = settings.get("added_tokens_decoder") or {}
    for token, entry in sorted(((int(token), entry) for token, entry in listed.items()), key=lambda item: item[0]):
        if raw.token_to_id(entry["content"]) is not None:
            continue
        flags = {
            name: bool(entry.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
        }
        raw.add_tokens([AddedToken(entry["content"], **flags)])
        if raw.token_to_id(entry["content"]) != token:
            raise unsupported_model(
                f"tokenizer_config.json gives {entry['content']!r} the id {token}, which does not fit tokenizer.json."
            )


def _named(settings: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens' literals by the names that templates use. A token is its literal, or an object that holds it."""
    found = {name: settings.get(name) for name in _NAMED}
    literals = {name: value.get("content") if isinstance(value, Mapping) else value for name, value in found.items()}
    return {name: value for name, value in literals.items() if isinstance(value, str)}


def _surroundings(raw: RawTokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer's own post-processing puts before and after a text."""
    bare, full = raw.encode(_PROBE, add_special_tokens=False).ids, raw.encode(_PROBE).ids
    extra = len(full) - len(bare)
    for before in range(extra + 1):
        if full[before : before + len(bare)] == bare:
            return tuple(full[:before]), tuple(full[before + len(bare) :])
    raise unsupported_model("The tokenizer's post-processing changes the text's own tokens.")


def _end_token(found: tuple[int, ...], token: int | None, wanted: object) -> tuple[int, ...]:
    """What belongs at one end of a text: what was found, corrected by an explicit add_bos_token or add_eos_token."""
    if not isinstance(wanted, bool) or token is None or wanted == (token in found):
        return found
    return (token,) if wanted else tuple(other for other in found if other != token)


def _ends(eos: int | None, *configs: Mapping[str, Any]) -> list[int]:
    """The tokens that end a completion: the tokenizer's, and those of generation_config.json, else of config.json."""
    ends = [] if eos is None else [eos]
    for config in configs:
        listed = config.get("eos_token_id")
        if listed is not None:
            return ends + [int(token) for token in (listed if isinstance(listed, list) else [listed])]
    return ends


def _templates(root: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name. Files of their own go before tokenizer_config.json, where one may be text or a list of named ones."""
    listed = settings.get("chat_template")
    found: dict[str, str] = {}
    if isinstance(listed, str):
        found["default"] = listed
    elif isinstance(listed, list):
        found |= {str(entry["name"]): str(entry["template"]) for entry in listed}
    for path in sorted((root / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = path.read_text("utf-8")
    if (root / "chat_template.jinja").is_file():
        found["default"] = (root / "chat_template.jinja").read_text("utf-8")
    elif (root / "chat_template.json").is_file():
        found["default"] = str(read_json(root / "chat_template.json").get("chat_template", ""))
    return found
