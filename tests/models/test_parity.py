"""Every family against transformers on the same tiny random weights: logits, and greedy tokens over paged KV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from inference_stack.models.api import Model
from inference_stack.models.llama import Llama
from inference_stack.models.loader import load_model
from inference_stack.ops.api import Ops, StepInputs
from inference_stack.ops.purity import TensorOperationOutsideOps
from tests.models import tiny
from tests.models.paged import PagedModel
from tests.models.reference import ops


@dataclass(frozen=True)
class Pair:
    """A family's model as transformers computes it and as we do."""

    oracle: PreTrainedModel
    model: Model


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    oracle = tiny.make(request.param)
    return Pair(oracle, load_model(tiny.save(oracle, tmp_path_factory.mktemp(request.param))).model)


def test_logits_equal_transformers(pair: Pair) -> None:
    prompt = tiny.tokens(70, seed=1)
    logits_TV = PagedModel(pair.model, ops(), rows=1, max_tokens=80).step([prompt])
    torch.testing.assert_close(logits_TV, tiny.oracle_logits(pair.oracle, prompt), rtol=1e-4, atol=1e-4)


def test_greedy_tokens_equal_transformers_over_chunks_and_decode(pair: Pair) -> None:
    prompts = [tiny.tokens(count, seed=count) for count in (33, 5, 47)]
    emitted = PagedModel(pair.model, ops(), rows=3, max_tokens=64).greedy(prompts, count=8, chunk=16)
    assert emitted == [tiny.oracle_greedy(pair.oracle, prompt, 8) for prompt in prompts]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3-mixed"])
def test_chunks_and_neighbours_change_no_bit(family: str, tmp_path: Path) -> None:
    model = load_model(tiny.save(tiny.make(family), tmp_path)).model
    prompt, other = tiny.tokens(50, seed=5), tiny.tokens(30, seed=6)
    alone = PagedModel(model, ops(), rows=1, max_tokens=64).step([prompt])
    together = PagedModel(model, ops(), rows=2, max_tokens=64)
    first, second = together.step([prompt[:21], other]), together.step([prompt[21:], other[:1]])
    assert torch.equal(alone, torch.cat((first[:21], second[:29])))


class Impure(Llama):
    """A model that forgets the rule."""

    def forward(self, ops: Ops, step: StepInputs) -> torch.Tensor:
        return super().forward(ops, step) * 1.0


def test_a_model_that_computes_beside_ops_is_caught(tmp_path: Path) -> None:
    model = load_model(tiny.save(tiny.make("llama"), tmp_path)).model
    model.__class__ = Impure
    with pytest.raises(TensorOperationOutsideOps):
        PagedModel(model, ops(), rows=1, max_tokens=16).step([[5, 6, 7]])
