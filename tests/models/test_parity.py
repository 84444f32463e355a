"""Every family against transformers on the same tiny random weights: logits, and greedy tokens over paged KV."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inference_stack.models.loader import load_model
from tests.models import tiny
from tests.models.paged import PagedModel
from tests.models.reference import ops


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_equal_transformers(family: str, tmp_path: Path) -> None:
    oracle = tiny.make(family)
    model = load_model(tiny.save(oracle, tmp_path)).model
    prompt = tiny.tokens(70, seed=1)
    logits_TV = PagedModel(model, ops(), rows=1, max_tokens=80).step([prompt])
    torch.testing.assert_close(logits_TV, tiny.oracle_logits(oracle, prompt), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_tokens_equal_transformers_over_chunks_and_decode(family: str, tmp_path: Path) -> None:
    oracle = tiny.make(family)
    model = load_model(tiny.save(oracle, tmp_path)).model
    prompts = [tiny.tokens(count, seed=count) for count in (33, 5, 47)]
    emitted = PagedModel(model, ops(), rows=3, max_tokens=64).greedy(prompts, count=12, chunk=16)
    assert emitted == [tiny.oracle_greedy(oracle, prompt, 12) for prompt in prompts]
