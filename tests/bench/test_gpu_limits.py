"""The least times of steps: worked examples, and what must hold whatever the model is."""

import pytest
from bench.gpu.limits import Ceilings, Form, Limits, Row, form_of, seen
from bench.gpu.shapes import EVERY_KIND, MEASURED, kind, measured

from inference_stack.models.config import config_from_hf

CARD = Ceilings(bandwidth=4.3e12, products=790e12)


def limits(name: str, ceilings: Ceilings = CARD) -> Limits:
    one = measured(name)
    return Limits(config_from_hf(one.raw(tiny=False)), form_of(one.quantise), ceilings)


@pytest.mark.parametrize(("batch", "rate"), [(1, 284), (32, 7128), (128, 17099), (256, 19915)])
def test_decoding_llama_8b_at_four_terabytes_a_second(batch: int, rate: float) -> None:
    assert limits("llama-3.1-8b").decode_rate(batch, 1024) == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(("tokens", "rate"), [(2048, 53645), (8192, 46397), (32768, 30118)])
def test_prompts_of_llama_8b_at_790_teraflops(tokens: int, rate: float) -> None:
    assert tokens / limits("llama-3.1-8b").prompt(tokens, tokens) == pytest.approx(rate, rel=1e-3)


def test_chunks_cost_no_more_arithmetic_than_the_whole() -> None:
    one = limits("llama-3.1-8b", Ceilings(bandwidth=1e18, products=790e12))
    assert one.prompt(8192, 2048) == pytest.approx(one.prompt(8192, 8192), rel=1e-6)


def test_four_bits_halve_what_a_projection_reads_twice() -> None:
    assert form_of("w4g128").projection == pytest.approx(0.5 + 4 / 128)
    assert form_of("w8g32").projection == pytest.approx(1 + 2 / 32)
    assert form_of(None) == Form()


def test_a_token_alone_reads_only_its_own_experts() -> None:
    one = limits("qwen3-30b-a3b")
    few, many = one.projections(1, 0), one.projections(4096, 0)
    assert few < many / 10
    assert one.config.experts is not None
    chosen = one.config.layers * one.config.experts.chosen
    assert few * CARD.bandwidth / 2 == pytest.approx(one._shared() + one._expert() * chosen)


def test_a_window_bounds_what_attention_reads() -> None:
    config = config_from_hf(kind("mistral, window", max_position_embeddings=100_000))
    one = Limits(config, Form(), CARD)
    assert one.attention([Row(1, 50_000)]) == pytest.approx(one.attention([Row(1, 20)]))


@pytest.mark.parametrize("window", [None, 1, 3, 7, 100])
@pytest.mark.parametrize(("queries", "context"), [(1, 1), (1, 9), (4, 4), (5, 9), (9, 9)])
def test_pairs_are_those_of_the_mask(queries: int, context: int, window: int | None) -> None:
    positions = range(context - queries, context)
    counted = sum(1 for p in positions for key in range(p + 1) if window is None or key > p - window)
    assert seen(Row(queries, context), window) == counted


def test_slower_memory_never_makes_a_step_faster() -> None:
    rows = [Row(1, 1000)] * 8
    slow = limits("llama-3.1-8b", Ceilings(bandwidth=1e12, products=790e12))
    assert slow.step(rows) > limits("llama-3.1-8b").step(rows)


@pytest.mark.parametrize("one", MEASURED, ids=lambda one: one.name)
def test_every_measured_shape_is_a_model_that_we_run(one: object) -> None:
    for tiny in (False, True):
        config = config_from_hf(one.raw(tiny))  # type: ignore[attr-defined]
        assert Limits(config, Form(), CARD).decode_rate(1, 100) > 0


def test_every_architecture_has_a_tiny_model() -> None:
    from inference_stack.models.registry import ARCHITECTURES

    assert {config_from_hf(kind(name)).architecture for name in EVERY_KIND} == set(ARCHITECTURES)
