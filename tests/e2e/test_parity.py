"""The demo model's greedy tokens are transformers' on the same dequantised weights, alone and in company.

Weights and KV are fp32 here, so that tokens must be equal; what executing 4-bit weights costs is `test_quality.py`'s.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from inference_stack.artifacts.resolve import resolve
from inference_stack.core.request import Continuation, Request, SamplingParams
from inference_stack.frontend.load import load_frontend
from tests.engine.house import Engine, engine
from tests.models.oracle import llama_oracle

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

NEW_TOKENS = 64
CLOSE = 1e-3
"""Where the oracle's two best logits are closer than this, either may be chosen; the comparison of that answer ends there."""
QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "List three uses of copper.",
    "Explain gravity to a child.",
    "What is 12 times 9?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "Why is the sky blue?",
    "Name five animals that live in Africa.",
    "What does HTTP stand for?",
    "Write a short story about a robot who learns to paint.",
    "How do I boil an egg?",
    "Summarise the plot of Romeo and Juliet in two sentences.",
    "What is a prime number? Give examples, and say why one is not among them.",
    "Describe a sunset.",
    "Write a Python function that adds two numbers.",
    "What are the three states of matter, and how does one turn into another?",
    "Tell me a joke.",
    "What should I pack for a week in the mountains in October? " * 8,
)


def requests(path: Path) -> list[Request]:
    """Each question in the chat template, greedy, with the twenty likeliest tokens of every step."""
    frontend = load_frontend(resolve(str(path)))
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True, logprobs=20)
    return [
        Request(
            id=f"q{number}",
            model="demo",
            continuation=Continuation(
                prompt=tuple(frontend.tokenizer.encode(template.format(question))), params=params, seed=0
            ),
        )
        for number, question in enumerate(QUESTIONS)
    ]


@pytest.fixture(scope="module")
def demo(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    link = tmp_path_factory.mktemp("demo") / "demo.gguf"
    link.symlink_to(demo_model)
    exact = {"weights": "float32", "kv_dtype": "float32"}
    return engine(
        link, kv_memory="1GiB", max_batch_tokens=256, max_running=32, max_model_len=2048, prefix_cache=False, **exact
    )


def agrees(model: PreTrainedModel, prompt: tuple[int, ...], tokens: list[int]) -> tuple[int, bool]:
    """How many tokens were compared, and whether a close call ended the comparison. Fails where the oracle clearly differs."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *tokens[:-1]]])).logits[0, len(prompt) - 1 :]
    best = logits.topk(2, dim=-1)
    for position, token in enumerate(tokens):
        if token != int(best.indices[position, 0]):
            gap = float(best.values[position, 0] - best.values[position, 1])
            assert gap < CLOSE, f"token {position} is {token}, not {int(best.indices[position, 0])}; gap {gap}"
            return position, True
    return len(tokens), False


@pytest.mark.parametrize("count", [4, pytest.param(len(QUESTIONS), marks=pytest.mark.slow)])
def test_greedy_tokens_are_those_of_transformers(
    demo: Engine, demo_model: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = requests(demo_model)[-count:]
    alone = [demo.alone(one) for one in asked]
    together = demo.run(asked)
    assert [(a.tokens, a.logprobs) for a in together] == [(a.tokens, a.logprobs) for a in alone]
    model = llama_oracle(resolve(str(demo_model)))
    compared = [agrees(model, one.continuation.prompt, answer.tokens) for one, answer in zip(asked, alone, strict=True)]
    close_calls = sum(close for _, close in compared)
    with capsys.disabled():
        print(f"\n{sum(tokens for tokens, _ in compared)} tokens equal, {close_calls} close calls of the oracle")
    assert close_calls <= 2
