"""Loads the models that are compared, and measures one against the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from inference_stack.artifacts.files import ModelFiles, Progress
from inference_stack.cli.quality.texts import WINDOW, windows
from inference_stack.config.tree import Config, EngineConfig
from inference_stack.core.errors import invalid
from inference_stack.engine.quality import Quality, compare, perplexity
from inference_stack.engine.subject import Subject
from inference_stack.frontend.load import load_frontend
from inference_stack.frontend.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Side:
    """A model and how it is executed."""

    files: ModelFiles
    engine: EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A comparison with what was compared, in words. Without a reference only `perplexity` is known."""

    model: str
    reference: str
    window: int
    perplexity: float
    quality: Quality | None


def exact(engine: EngineConfig) -> EngineConfig:
    """The same kernels with dequantised weights and KV in fp32."""
    return replace(engine, weights="float32", kv_dtype="float32")


def measure(config: Config, model: Side, reference: Side | None, text: str, progress: Progress) -> Measured:
    """Read `text` with one model, or with two. Raises `InferenceError` for models that cannot be loaded or compared."""
    tokenizer = load_frontend(model.files).tokenizer
    subject = _subject(config, model, progress)
    if reference is None:
        parts = windows(text, tokenizer, subject.window)
        value = perplexity(subject, parts, progress)
        return Measured(
            model=described(subject, model), reference="", window=subject.window, perplexity=value, quality=None
        )
    other = _subject(config, reference, progress)
    size = min(subject.window, other.window)
    parts = windows(text, tokenizer, size)
    _check_vocabularies(parts, windows(text, _tokenizer(model, reference, tokenizer), size))
    quality = compare(subject, other, parts, progress)
    return Measured(
        model=described(subject, model),
        reference=described(other, reference),
        window=size,
        perplexity=quality.perplexity,
        quality=quality,
    )


def described(subject: Subject, side: Side) -> str:
    """A model's name, its weights as they are executed, the type of its KV, and its kernels."""
    return f"{side.files.name}: {subject.loaded.quantisation}; KV in {subject.engine.kv_dtype}; {subject.kernels()}"


def _subject(config: Config, side: Side, progress: Progress) -> Subject:
    return Subject(side.files, side.engine, config.node.threads, WINDOW, progress)


def _tokenizer(model: Side, reference: Side, known: Tokenizer) -> Tokenizer:
    return known if reference.files == model.files else load_frontend(reference.files).tokenizer


def _check_vocabularies(ours: list[list[int]], theirs: list[list[int]]) -> None:
    if ours != theirs:
        raise invalid("The models cut the text into different tokens; they cannot be compared.")
