"""Every optimisation has a switch, and switching it changes no bit of any token's whole distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inference_stack.ops.cpu.native import extension
from tests.engine.house import Answer, Engine, engine, prompt, request
from tests.ops.parts import native_sets

pytestmark = pytest.mark.skipif(not native_sets(), reason=str(extension()))


def answers(served: Engine, model: str) -> list[Answer]:
    """Prompts long and short, alone and together, some of them sampled."""
    requests = [request(prompt(7 + 23 * n, n), f"r{n}", model, seed=n, temperature=n % 2) for n in range(4)]
    return [*served.run(requests), served.alone(request(prompt(40), "alone", model))]


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
@pytest.mark.parametrize(
    "switch",
    [
        {"recorded_steps": False},
        *({"kernels": name} for name in native_sets()),
        {"max_batch_tokens": 16},
        {"prefix_cache": False},
    ],
    ids=str,
)
def test_a_switch_changes_no_bit(tiny_models: dict[str, Path], family: str, switch: dict[str, Any]) -> None:
    plain, switched = engine(tiny_models[family]), engine(tiny_models[family], **switch)
    assert answers(plain, family) == answers(switched, family)


def test_names_are_equal_where_bits_are(tiny_models: dict[str, Path]) -> None:
    def identity(**settings: Any) -> str:
        return engine(tiny_models["llama"], **settings).ready.models[0].numerics_id

    assert len({identity(kernels=name) for name in native_sets()} | {identity(recorded_steps=False)}) == 1
    assert len({identity(), identity(kernels="torch"), identity(kv_dtype="int8"), identity(kv_dtype="float32")}) == 4


@pytest.mark.parametrize(
    "settings", [{"kernels": "torch"}, {"kv_dtype": "float32"}, {"kv_dtype": "bfloat16"}, {"kv_dtype": "int8"}]
)
def test_other_kernels_and_kv_types_serve_too(tiny_models: dict[str, Path], settings: dict[str, Any]) -> None:
    served = engine(tiny_models["llama"], **settings)
    together = answers(served, "llama")
    assert [len(answer.tokens) for answer in together] == [12] * 5
    assert together == answers(engine(tiny_models["llama"], prefix_cache=False, **settings), "llama")
