"""Cost models: limits computed by hand, published speeds, coefficients recovered from samples, and configurations refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.core.errors import InferenceError
from inference_stack.simulator.api import CostModel
from inference_stack.simulator.cost import cost_from
from inference_stack.simulator.cost.architectures import ARCHITECTURES, WEIGHT_FORMATS
from inference_stack.simulator.cost.fitted import FittedCost, errors_of, fit
from inference_stack.simulator.cost.hardware import HARDWARE, Figure, Hardware
from inference_stack.simulator.cost.roofline import RooflineCost
from inference_stack.simulator.cost.samples import StepSample, merge, read_samples, sizes_of, write_samples

PLANTED = FittedCost(base=4e-3, per_token=2e-4, per_row=3e-5, per_context=4e-7, per_pair=6e-8)


def preset(hardware: str, model: str, weights: str = "bf16", devices: int = 1, kv: str = "float16") -> RooflineCost:
    return RooflineCost(HARDWARE[hardware], ARCHITECTURES[model], WEIGHT_FORMATS[weights], kv, devices)


def decode_rate(cost: CostModel, context: int = 32) -> float:
    """Tokens per second of one stream."""
    return 1 / cost.step_seconds(1, 1, context, context)


def steps(count: int, seed: int = 0) -> list[tuple[int, int, int, int]]:
    """Sizes of steps as they come: decode rows with long contexts, among them some prompt chunks."""
    noise = random.Random(seed)
    found = []
    for _ in range(count):
        counts = [1] * noise.randrange(1, 33) + [noise.randrange(2, 200) for _ in range(noise.randrange(3))]
        found.append(sizes_of([noise.randrange(2000) for _ in counts], counts))
    return found


def sampled(cost: FittedCost, count: int = 200, seed: int = 0) -> list[StepSample]:
    return [StepSample(*sizes, cost.step_seconds(*sizes)) for sizes in steps(count, seed)]


# -- hardware


def figures(device: Hardware) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for name in device.__slots__:
        value = getattr(device, name)
        if isinstance(value, Figure):
            found[name] = value
        elif not isinstance(value, str) and value is not None:
            found |= {f"{name}.{key}": figure for key, figure in value.items()}
    return found


@pytest.mark.parametrize("name", HARDWARE)
def test_every_number_of_a_preset_has_a_source_and_a_sensible_size(name: str) -> None:
    device = HARDWARE[name]
    found = figures(device)
    assert len(found) >= 12
    assert all(len(figure.source) > 10 and figure.value > 0 for figure in found.values())
    assert all(figure.value < 1 for key, figure in found.items() if "share" in key)
    assert set(device.gemm_share) == set(device.peak_flops) >= {"bf16"}


@pytest.mark.parametrize("name", HARDWARE)
def test_a_price_is_marked_as_an_assumption(name: str) -> None:
    assert HARDWARE[name].dollars_per_hour.assumed


@pytest.mark.parametrize("name", [name for name in HARDWARE if name != "cpu"])
def test_peaks_and_memory_of_an_accelerator_come_from_its_data_sheet(name: str) -> None:
    device = HARDWARE[name]
    stated = [device.memory_bytes, device.memory_bandwidth, *device.peak_flops.values()]
    assert all("datasheet" in figure.source and not figure.assumed for figure in stated)


# -- architectures


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smollm2-135m", 134_515_008),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("mistral-7b", 7_248_023_552),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-32b", 32_762_123_264),
    ],
)
def test_parameters_are_those_of_the_model_card(name: str, parameters: int) -> None:
    assert ARCHITECTURES[name].parameters == parameters


@pytest.mark.parametrize(("form", "gigabytes"), [("bf16", 16.06), ("fp8", 9.08), ("w4", 5.73)])
def test_weight_bytes_are_those_of_published_checkpoints(form: str, gigabytes: float) -> None:
    assert ARCHITECTURES["llama-3.1-8b"].weight_bytes(WEIGHT_FORMATS[form]) / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_kv_of_a_token_is_two_vectors_a_head_and_layer() -> None:
    (group,) = ARCHITECTURES["llama-3.1-8b"].kv_groups("float16")
    assert group.block_bytes / 16 == 32 * 8 * 2 * 128 * 2


def test_more_devices_than_kv_heads_keep_each_head_more_than_once() -> None:
    model = replace(ARCHITECTURES["llama-3.1-8b"], kv_heads=2)
    assert model.kv_groups("float16", 8)[0].kv_heads == 8


# -- roofline


def test_a_lone_decode_step_waits_for_the_weights() -> None:
    device, model = HARDWARE["h100"], ARCHITECTURES["llama-3.1-8b"]
    weights = 2 * (32 * 218_103_808 + 128_256 * 4096)
    overhead = 0.2e-3 + 32 * 35e-6
    expected = overhead + weights / (3.35e12 * 0.83)
    assert RooflineCost(device, model).step_seconds(1, 1, 0, 0) == pytest.approx(expected, rel=0.001)


def test_a_long_prompt_chunk_is_bound_by_arithmetic() -> None:
    flop = 2 * 32 * 218_103_808 * 8192 + 4 * 32 * 32 * 128 * 8192 * 8193 / 2
    seconds = preset("h100", "llama-3.1-8b").step_seconds(8192, 1, 8192, 8192 * 8193 // 2)
    assert flop / (989.5e12 * 0.68) < seconds < 1.35 * flop / (989.5e12 * 0.68)


def test_weights_are_free_once_arithmetic_takes_longer() -> None:
    wide, narrow = preset("a100-80", "llama-3.1-8b", "bf16"), preset("a100-80", "llama-3.1-8b", "w4")
    assert wide.step_seconds(2048, 1, 2048, 0) == narrow.step_seconds(2048, 1, 2048, 0)


def test_context_costs_its_kv_bytes() -> None:
    cost = preset("h100", "llama-3.1-8b")
    more = cost.step_seconds(64, 64, 640_000, 640_000) - cost.step_seconds(64, 64, 0, 640_000)
    assert more == pytest.approx(640_000 * 131_072 / (3.35e12 * 0.83))


def test_int8_kv_halves_what_context_costs() -> None:
    seconds = [
        cost.step_seconds(8, 8, 10**6, 0) - cost.step_seconds(8, 8, 0, 0)
        for cost in (preset("h100", "llama-3.1-8b"), preset("h100", "llama-3.1-8b", kv="int8"))
    ]
    assert seconds[1] / seconds[0] == pytest.approx((128 + 2) / 256)


def test_fp8_doubles_arithmetic_only_where_the_device_multiplies_it() -> None:
    def prompt(hardware: str, form: str) -> float:
        return preset(hardware, "llama-3.1-8b", form).step_seconds(4096, 1, 0, 0)

    assert prompt("a100-80", "fp8") == prompt("a100-80", "bf16")
    assert prompt("h100", "fp8") < 0.75 * prompt("h100", "bf16")


def test_devices_share_the_work_and_pay_for_the_links() -> None:
    one, four = preset("h100", "llama-3.1-8b"), preset("h100", "llama-3.1-8b", devices=4)
    alone, shared = one.step_seconds(2048, 1, 2048, 0), four.step_seconds(2048, 1, 2048, 0)
    assert alone / 4 < shared < alone / 2
    assert four.step_seconds(0, 0, 0, 0) - one.step_seconds(0, 0, 0, 0) / 4 > 64 * 10e-6


@pytest.mark.parametrize(
    ("model", "devices", "form", "published"),
    [
        ("llama-2-7b", 1, "bf16", 104.9),
        ("llama-2-7b", 2, "bf16", 168.84),
        ("llama-2-7b", 4, "bf16", 254.02),
        ("llama-2-7b", 8, "bf16", 328.43),
        ("llama-2-7b", 1, "int8", 155.58),
        ("llama-2-7b", 1, "w4", 196.80),
        ("llama-2-70b", 1, "int8", 19.13),
        ("llama-2-70b", 1, "w4", 25.25),
        ("llama-2-70b", 2, "bf16", 21.32),
        ("llama-2-70b", 4, "bf16", 38.01),
        ("llama-2-70b", 8, "bf16", 62.50),
    ],
)
def test_one_stream_is_about_as_fast_as_gpt_fast_published_for_the_a100(
    model: str, devices: int, form: str, published: float
) -> None:
    """The table in gpt-fast's README, 2023: five of the presets' figures come from these eleven speeds.

    Its 4 bits are groups of 32 with two 16-bit numbers, so 5 bits a weight.
    """
    weights = replace(WEIGHT_FORMATS["w4"], bits=5) if form == "w4" else WEIGHT_FORMATS[form]
    cost = RooflineCost(HARDWARE["a100-80"], ARCHITECTURES[model], weights, tensor_parallel=devices)
    assert decode_rate(cost) == pytest.approx(published, rel=0.1)


def test_one_stream_on_an_a100_40_is_about_as_fast_as_published_for_vllm() -> None:
    """75 tokens/s, 1024 tokens in and 128 out (J. Musgrave, vLLM throughput-latency sweep on NVIDIA A100)."""
    assert decode_rate(preset("a100-40", "llama-3.1-8b"), 1088) == pytest.approx(75, rel=0.15)


def test_one_stream_of_8b_on_an_h100_runs_at_100_to_200_tokens_a_second() -> None:
    assert 100 < decode_rate(preset("h100", "llama-3.1-8b")) < 200


def test_summaries_on_an_h100_are_about_as_many_as_published_for_vllm_in_mlperf() -> None:
    """5777 tokens/s offline, fp8 8B, about 778 tokens in and at most 128 out (Red Hat, MLPerf Inference 5.1)."""
    cost, rows, prompt, output = preset("h100", "llama-3.1-8b", "fp8"), 256, 778, 128
    prefill = rows * cost.step_seconds(prompt, 1, prompt, prompt * (prompt + 1) // 2)
    seen = rows * (prompt + output // 2)
    rate = rows * output / (prefill + output * cost.step_seconds(rows, rows, seen, seen))
    assert 0.6 * 5777 < rate < 1.6 * 5777


def test_a_newer_device_is_faster() -> None:
    rates = [decode_rate(preset(name, "llama-3.1-8b"), 2000) for name in ("l4", "a100-40", "a100-80", "h100", "h200")]
    assert rates == sorted(rates)


def test_memory_left_for_kv_is_what_weights_leave() -> None:
    cost = preset("h100", "llama-3.1-8b")
    assert cost.kv_bytes() == pytest.approx(0.9 * 80e9 - 1.5e9 - 16.06e9, rel=0.001)
    assert cost.kv_tokens() == pytest.approx(cost.kv_bytes() / 131_072, rel=0.001)


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InferenceError, match=r"llama-3.1-70b in bf16 \(141.1 GB\) leaves no memory"):
        preset("h100", "llama-3.1-70b")
    assert preset("h100", "llama-3.1-70b", devices=4).kv_bytes() > 0


@pytest.mark.parametrize(("hardware", "devices"), [("h100", 3), ("h100", 0), ("h100", -2), ("cpu", 2)])
def test_a_split_that_does_not_exist_is_refused(hardware: str, devices: int) -> None:
    with pytest.raises(InferenceError, match="split"):
        preset(hardware, "llama-3.2-1b", devices=devices)


def test_waking_is_faster_than_starting() -> None:
    cost = preset("h100", "llama-3.1-8b")
    assert cost.sleep_seconds() == pytest.approx(16.06e9 / 64e9, rel=0.001)
    assert (
        cost.sleep_seconds()
        < cost.wake_seconds()
        < 1
        < cost.load_seconds()
        == pytest.approx(20 + 16.06e9 / 5e9, rel=0.01)
    )


def test_devices_wake_side_by_side_but_read_one_storage() -> None:
    one, two = preset("h100", "llama-3.1-8b"), preset("h100", "llama-3.1-8b", devices=2)
    assert two.sleep_seconds() == one.sleep_seconds() / 2
    assert two.load_seconds() == one.load_seconds()
    assert two.dollars_per_hour == 2 * one.dollars_per_hour


SIZES = st.tuples(*(st.integers(0, limit) for limit in (10**5, 2000, 10**7, 10**9)))
MODELS = st.sampled_from(
    [
        preset("cpu", "smollm2-135m", "int8"),
        preset("l4", "qwen3-8b", "w4"),
        preset("h200", "llama-3.1-70b", "fp8", 4),
        PLANTED,
    ]
)


@given(MODELS, SIZES, st.integers(0, 3), st.integers(1, 10**6))
def test_no_step_gets_shorter_by_doing_more(
    cost: CostModel, sizes: tuple[int, int, int, int], which: int, more: int
) -> None:
    larger = tuple(size + more * (index == which) for index, size in enumerate(sizes))
    assert 0 < cost.step_seconds(*sizes) <= cost.step_seconds(*larger)


# -- samples


def test_sizes_count_what_each_query_sees() -> None:
    assert sizes_of([0, 10], [3, 1]) == (4, 2, 14, 1 + 2 + 3 + 11)


def test_merged_samples_have_the_median_of_equal_steps() -> None:
    times = [StepSample(1, 1, 5, 5, seconds) for seconds in (0.3, 0.1, 0.2)]
    assert merge([*times, StepSample(2, 2, 5, 5, 1.0)]) == [StepSample(1, 1, 5, 5, 0.2), StepSample(2, 2, 5, 5, 1.0)]


def test_samples_survive_a_file(tmp_path: Path) -> None:
    samples = sampled(PLANTED, 25)
    write_samples(tmp_path / "steps.jsonl", samples)
    assert read_samples(tmp_path / "steps.jsonl") == samples


GOOD = {"tokens": 1, "rows": 1, "context": 5, "pairs": 5, "seconds": 0.1}


@pytest.mark.parametrize(
    "bad",
    [
        "{",
        "[1, 1, 5, 5, 0.1]",
        "NaN",
        "[" * 100_000,
        json.dumps({**GOOD, "seconds": 0}),
        json.dumps({**GOOD, "seconds": float("nan")}),
        json.dumps({**GOOD, "seconds": float("inf")}),
        json.dumps({**GOOD, "seconds": "1"}),
        json.dumps({**GOOD, "tokens": -1}),
        json.dumps({**GOOD, "tokens": 1.5}),
        json.dumps({**GOOD, "tokens": True}),
        json.dumps({**GOOD, "pairs": 10**400}),
        json.dumps({**GOOD, "else": 1}),
        json.dumps({"tokens": 1}),
    ],
)
def test_a_line_that_is_no_sample_is_named(tmp_path: Path, bad: str) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + bad + "\n")
    with pytest.raises(InferenceError, match=r"steps\.jsonl:2"):
        read_samples(file)


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("empty", "binary", "missing"):
        with pytest.raises(InferenceError, match=name):
            read_samples(tmp_path / name)


# -- fitted


def test_a_fit_recovers_planted_coefficients() -> None:
    cost, quality = fit(sampled(PLANTED))
    for name in ("base", "per_token", "per_row", "per_context", "per_pair"):
        assert getattr(cost, name) == pytest.approx(getattr(PLANTED, name), rel=1e-3)
    assert quality.held_out.worst < 1e-4
    assert quality.in_sample.count == 4 * quality.held_out.count


@pytest.mark.parametrize(("within", "beyond"), [(1e-5, 5e-4), (2e-3, 5e-4)])
def test_a_fit_recovers_a_planted_knee_upwards_and_downwards(within: float, beyond: float) -> None:
    planted = replace(PLANTED, per_token=0.0, per_token_within=within, per_token_beyond=beyond, knee=16)
    cost, quality = fit(sampled(planted))
    assert cost.knee == 16
    assert cost.per_token_within == pytest.approx(within, rel=1e-3)
    assert cost.per_token_beyond == pytest.approx(beyond, rel=1e-3)
    assert quality.held_out.worst < 1e-4


def test_there_is_no_knee_without_need() -> None:
    noise = random.Random(3)
    noisy = [each._replace(seconds=each.seconds * noise.uniform(0.97, 1.03)) for each in sampled(PLANTED)]
    assert fit(noisy)[0].knee == 0


def test_a_fit_survives_steps_that_were_disturbed() -> None:
    noise = random.Random(1)
    disturbed = [
        each._replace(
            seconds=each.seconds * (noise.uniform(2, 20) if noise.random() < 0.15 else noise.uniform(0.98, 1.02))
        )
        for each in sampled(PLANTED, 400)
    ]
    cost, _ = fit(disturbed)
    assert errors_of(cost, sampled(PLANTED, 100, seed=9)).p90 < 0.03


def test_small_steps_count_as_much_as_large_ones() -> None:
    """Larger steps are slower than a line allows; an absolute fit would follow them and miss every small step."""
    small = sampled(PLANTED, 200)
    large = [StepSample(tokens, 1, tokens, 0, 1.3 * (4e-3 + 2e-4 * tokens)) for tokens in range(5000, 5040)]
    cost, _ = fit([*small, *large])
    assert errors_of(cost, small).median < 0.01


def test_no_coefficient_is_negative() -> None:
    shrinking = [
        StepSample(each.tokens, each.rows, each.context, each.pairs, 1 / (1 + each.rows)) for each in sampled(PLANTED)
    ]
    cost, _ = fit(shrinking)
    assert cost.per_row == 0.0
    assert cost.step_seconds(1, 1, 1, 1) > 0


def test_held_out_steps_are_not_learnt_from() -> None:
    samples = sampled(PLANTED)
    spoilt = [
        each._replace(seconds=each.seconds * 3) if not number % 5 else each for number, each in enumerate(samples, 1)
    ]
    cost, quality = fit(spoilt)
    assert cost == fit(samples)[0]
    assert quality.held_out.median == pytest.approx(2 / 3, rel=0.01)


def test_steps_that_are_all_alike_can_be_fitted() -> None:
    same_mix = [StepSample(rows, rows, 100 * rows, 100 * rows, 1e-3 + 1e-4 * rows) for rows in range(1, 60)]
    assert fit(same_mix)[1].held_out.worst < 0.01


def test_too_few_distinct_steps_are_refused() -> None:
    with pytest.raises(InferenceError, match="1 distinct steps are too few"):
        fit([StepSample(*GOOD.values())] * 100)  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 1e3), min_size=7, max_size=7), st.integers(0, 512), st.floats(0, 1e6))
def test_a_fitted_model_survives_a_file(
    tmp_path_factory: pytest.TempPathFactory, seconds: list[float], knee: int, load: float
) -> None:
    cost = FittedCost(**dict(zip(FittedCost.__slots__, seconds, strict=False)), knee=knee, load_time=load)
    file = tmp_path_factory.mktemp("cost") / "cost.json"
    cost.save(file)
    assert FittedCost.load(file) == cost


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "something else"}', "\0", "{" * 10])
def test_a_file_that_is_no_fitted_model_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "cost.json").write_text(text)
    with pytest.raises(InferenceError, match=r"cost\.json"):
        FittedCost.load(tmp_path / "cost.json")


# -- configuration


def test_a_preset_is_chosen_by_names() -> None:
    plain = {"hardware": "h200", "model": "llama-3.1-8b", "weights": "fp8", "kv": "int8", "tensor_parallel": 2}
    cost = cost_from(plain)
    assert isinstance(cost, RooflineCost)
    assert (cost.hardware.name, cost.architecture.name, cost.weights.name) == ("h200", "llama-3.1-8b", "fp8")
    assert (cost.kv_groups[0].dtype, cost.tensor_parallel) == ("int8", 2)


def test_a_model_of_given_coefficients() -> None:
    cost = cost_from({"linear": {"base": 0.004, "per_token": 1e-4, "load_time": 3}})
    assert cost.step_seconds(10, 1, 100, 100) == pytest.approx(0.005)
    assert cost.load_seconds() == 3


def test_models_come_from_files_beside_the_configuration(tmp_path: Path) -> None:
    PLANTED.save(tmp_path / "cost.json")
    write_samples(tmp_path / "steps.jsonl", sampled(PLANTED))
    assert cost_from({"fitted": "cost.json"}, tmp_path) == PLANTED
    learnt = cost_from({"samples": "steps.jsonl"}, tmp_path)
    assert learnt.step_seconds(9, 2, 500, 600) == pytest.approx(PLANTED.step_seconds(9, 2, 500, 600), rel=1e-3)


H100: dict[Any, Any] = {"hardware": "h100", "model": "llama-3.1-8b"}


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        (None, "settings by name"),
        ([], "settings by name"),
        ({}, "hardware is missing; there are cpu, l4"),
        ({"model": "llama-3.1-8b"}, "hardware is missing"),
        ({"hardware": "h100"}, "model is missing; there are smollm2-135m"),
        ({**H100, "hardware": "b200"}, "no hardware 'b200'; there are cpu, l4"),
        ({**H100, "hardware": ["h100"]}, "no hardware"),
        ({**H100, "model": "gpt-2"}, "no model 'gpt-2'"),
        ({**H100, "weights": "w2"}, "no weights 'w2'; there are bf16, fp8, int8, w4"),
        ({**H100, "kv": "fp8"}, "no kv 'fp8'; there are fp32"),
        ({**H100, "kv": None}, "kv is missing"),
        ({**H100, "tensor_parallel": "2"}, "whole number of devices"),
        ({**H100, "tensor_parallel": True}, "whole number of devices"),
        ({**H100, "tensor_parallel": 10**30}, "cannot be split"),
        ({**H100, "tensor_paralel": 2}, "no key 'tensor_paralel'"),
        ({**H100, 7: 2}, "no key 7"),
        ({"linear": {}, "hardware": "h100"}, "no key 'hardware'; there are linear"),
        ({"linear": {}, "fitted": "x"}, "no key"),
        ({"linear": 3}, "coefficients by name"),
        ({"linear": {"bass": 1}}, "no coefficient 'bass'; known are base"),
        ({"linear": {"base": -1}}, "base must be a number from 0"),
        ({"linear": {"base": float("nan")}}, "base must be a number"),
        ({"linear": {"base": "1"}}, "base must be a number"),
        ({"linear": {"base": True}}, "base must be a number"),
        ({"linear": {"per_pair": 10**400}}, "per_pair must be a number"),
        ({"samples": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"samples": 3}, "name of a file"),
        ({"fitted": ""}, "name of a file"),
        ({"fitted": "a\0b"}, "name of a file"),
        ({"fitted": "nowhere.json"}, "nowhere.json"),
        ({"fitted": "."}, "cannot read"),
    ],
)
def test_what_a_configuration_gets_wrong_is_named(plain: Any, message: str) -> None:
    with pytest.raises(InferenceError) as refused:
        cost_from(plain)
    assert message in str(refused.value)
