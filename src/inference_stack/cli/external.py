"""What `istack gateway` knows of the models that external servers may serve: from the models' own files, without weights."""

from __future__ import annotations

import asyncio
from pathlib import Path

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.gguf import GgufFile
from inference_stack.config.tree import Config
from inference_stack.core.errors import InferenceError, invalid, unsupported_model
from inference_stack.core.seams import Clock
from inference_stack.frontend.load import load_frontend
from inference_stack.gateway.external import ExternalLink, ExternalSettings, dial_external
from inference_stack.gateway.external_api import LocalModel
from inference_stack.models.config import config_from_hf
from inference_stack.models.gguf_config import config_from_gguf


class Externals:
    """Dials external servers. `config` names every model, in the order of `files`; they are looked into when first needed.

    Raises `InferenceError` for an API key that cannot be read.
    """

    def __init__(self, config: Config, files: list[ModelFiles]) -> None:
        self._named = [(entry.name, one) for entry, one in zip(config.models, files, strict=True)]
        self._key = _key(config.gateway.external_key)
        self._places = config.gateway.external_running
        self._plain = config.tls.insecure
        self._fail_on_mismatch = config.gateway.on_mismatch == "fail"
        self._settings: ExternalSettings | None = None

    async def dial(self, address: str, clock: Clock) -> ExternalLink:
        """As `dial_external`."""
        if self._settings is None:
            self._settings = await asyncio.to_thread(self._read)
        return await dial_external(address, self._settings, clock)

    def _read(self) -> ExternalSettings:
        models = {name: local_model(name, files) for name, files in self._named}
        return ExternalSettings(
            models=models,
            key=self._key,
            places=self._places,
            plain=self._plain,
            fail_on_mismatch=self._fail_on_mismatch,
        )


def local_model(name: str, files: ModelFiles) -> LocalModel:
    """What a model's files say of it. An architecture that no node of ours could run will do. Raises `InferenceError` for files
    that do not say enough."""
    try:
        if files.kind == "gguf":
            with GgufFile(files.weights[0]) as gguf:
                config = config_from_gguf(gguf)
        else:
            config = config_from_hf(files.json("config.json") or {}, files.json("generation_config.json"))
    except InferenceError:
        return _foreign(name, files)
    return LocalModel(
        name=name,
        architecture=config.architecture,
        vocab_size=config.vocab_size,
        max_model_len=config.max_positions,
        eos_tokens=config.eos_tokens,
    )


def _foreign(name: str, files: ModelFiles) -> LocalModel:
    """A model of an architecture that is not ours. How long its context is, its server has to say."""
    raw = files.json("config.json")
    if raw is None:
        raise unsupported_model(f"{files.root} needs a config.json that says what the model is.")
    tokenizer, rows = load_frontend(files).tokenizer, raw.get("vocab_size")
    return LocalModel(
        name=name,
        architecture=str(raw.get("model_type", "unknown")),
        vocab_size=rows if isinstance(rows, int) and rows > tokenizer.vocab_size else tokenizer.vocab_size,
        max_model_len=0,
        eos_tokens=tuple(tokenizer.eos_ids),
    )


def _key(path: str) -> str:
    """The API key in a file; empty without one."""
    if not path:
        return ""
    try:
        key = Path(path).expanduser().read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "it is not ASCII"
        raise invalid(f"cannot read {path}: {what}", param="gateway.external_key", code="invalid_config") from error
    if not key.isprintable() or not key:
        raise invalid(f"{path} does not hold a key", param="gateway.external_key", code="invalid_config")
    return key
