from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inference_stack.config.tree import EngineConfig
from inference_stack.core.errors import InferenceError
from inference_stack.engine.calibration import calibrate
from inference_stack.engine.quality import compare, cut, perplexity
from inference_stack.engine.subject import CHUNK_TOKENS, FLOAT32, Subject
from inference_stack.models.loader import read_config
from inference_stack.models.outline import outline_of
from inference_stack.models.quantise import target
from tests.models import tiny

WINDOW = CHUNK_TOKENS + 40
WINDOWS = [tiny.tokens(WINDOW, seed=1), tiny.tokens(23, seed=2)]


def subject(files: tiny.ModelFiles, engine: EngineConfig = FLOAT32) -> Subject:
    return Subject(files, engine, threads=1, window=WINDOW)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3"])
def test_logits_of_long_windows_equal_transformers(family: str, tmp_path: Path) -> None:
    model = tiny.make(family)
    found = subject(tiny.save(model, tmp_path))
    for window in WINDOWS:
        logits_TV = torch.cat([part.clone() for part in found.logits(window)])
        torch.testing.assert_close(logits_TV, tiny.oracle_logits(model, window), rtol=1e-3, atol=2e-3)


def test_native_kernels_read_the_same_text(tmp_path: Path) -> None:
    files = tiny.save(tiny.make("llama"), tmp_path)
    exact = EngineConfig(weights="float32", kv_dtype="float32")
    quality = compare(subject(files, exact), subject(files), WINDOWS)
    assert quality.divergence < 1e-6
    assert quality.agreement == 1.0


def test_perplexity_and_divergence_are_what_their_definitions_say(tmp_path: Path) -> None:
    models = [tiny.make("llama"), tiny.make("llama-tied-mqa")]
    subjects = [subject(tiny.save(model, tmp_path / str(number))) for number, model in enumerate(models)]
    quality = compare(subjects[0], subjects[1], WINDOWS)
    pairs = [[tiny.oracle_logits(model, window)[:-1].log_softmax(-1) for window in WINDOWS] for model in models]
    ours, theirs = (torch.cat(logits).double() for logits in pairs)
    following = torch.tensor([token for window in WINDOWS for token in window[1:]])
    expected = [
        torch.nn.functional.nll_loss(ours, following).exp(),
        torch.nn.functional.nll_loss(theirs, following).exp(),
        torch.nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True),
        (ours.argmax(-1) == theirs.argmax(-1)).double().mean(),
    ]
    found = [quality.perplexity, quality.reference, quality.divergence, quality.agreement]
    assert found == pytest.approx([float(value) for value in expected], rel=2e-3)
    assert quality.positions == len(following)
    assert perplexity(subjects[0], WINDOWS) == pytest.approx(quality.perplexity)


def test_a_model_does_not_differ_from_itself(tmp_path: Path) -> None:
    files = tiny.save(tiny.make("qwen3"), tmp_path)
    quality = compare(subject(files), subject(files), WINDOWS)
    assert (quality.divergence, quality.increase, quality.agreement) == (0.0, 0.0, 1.0)


def test_other_vocabularies_are_refused(tmp_path: Path) -> None:
    sizes = [tiny.save(tiny.make("llama", vocab_size=size), tmp_path / str(size)) for size in (97, 101)]
    with pytest.raises(InferenceError, match="vocabularies of 97 and 101 tokens"):
        compare(subject(sizes[0]), subject(sizes[1]), WINDOWS)


def test_a_text_without_a_next_token_measures_nothing(tmp_path: Path) -> None:
    found = subject(tiny.save(tiny.make("llama"), tmp_path))
    for measure in (lambda: perplexity(found, [[5]]), lambda: compare(found, found, [[5]])):
        with pytest.raises(InferenceError, match="too short"):
            measure()


def test_windows_cover_the_text_and_begin_with_the_prefix() -> None:
    assert cut(range(7), 4, prefix=(90,)) == [[90, 0, 1, 2], [90, 3, 4, 5], [90, 6]]


def test_moments_are_those_of_what_each_projection_is_fed(tmp_path: Path) -> None:
    model = tiny.make("llama", hidden_size=64, intermediate_size=128)
    files = tiny.save(model, tmp_path)
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str):  # type: ignore[no-untyped-def]
        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            x_TK = inputs[0][0]
            seen[name] = seen.get(name, torch.zeros(())) + x_TK.T @ x_TK

        return add

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(hook(name))
    for window in WINDOWS:
        tiny.oracle_logits(model, window)
    found = calibrate(subject(files), outline_of(read_config(files)), target("w4g32"), WINDOWS)
    assert found.keys() == seen.keys() - {"lm_head"}
    for name, curvature in found.items():
        (moment,) = curvature.moments
        torch.testing.assert_close(moment, seen[name], rtol=1e-3, atol=1e-2)
