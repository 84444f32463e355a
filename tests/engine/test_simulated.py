"""The simulated engine on a clock that the test turns: production scheduler and KV, made-up words, modelled time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference_stack.artifacts.resolve import resolve
from inference_stack.artifacts.vocabulary import vocabulary_digest
from inference_stack.config.tree import Config, EngineConfig, ModelEntry, NodeConfig
from inference_stack.core.errors import InferenceError
from inference_stack.core.request import FinishReason, Qos, Request
from inference_stack.core.step import StepPlan, ints
from inference_stack.engine.simulated import SimulatedRunner, Timeline, stream_key
from inference_stack.engine.simulated_startup import SimulatedStartup
from inference_stack.engine.words import Words, describe
from inference_stack.simulator.cost.fitted import FittedCost
from inference_stack.simulator.tokens import FIRST_TOKEN, stream
from inference_stack.telemetry.startup import Account
from tests.engine.house import Answer, Engine, request

WORDS = ["the", "Ġcat", "▁sat", "on", "Ġa", "mat"]
OTHERS = ["<s>", "</s>", "1", "Ġ", "é", "don't", "Ġ42", "..."]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 32,
    "eos_token_id": 1,
}


class FakeClock:
    """Time that passes only by sleeping; `naps` are the sleeps."""

    def __init__(self) -> None:
        self.time = 100.0
        self.naps: list[float] = []

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.nap(seconds)

    def nap(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.time += seconds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights nobody may read: the file is empty."""
    root = tmp_path_factory.mktemp("m") / "llama"
    root.mkdir()
    listed = {spelling: token for token, spelling in enumerate([*OTHERS, *WORDS])}
    added = [{"id": 14, "content": "tool", "special": True}]
    listed["tool"] = 14
    (root / "config.json").write_text(json.dumps(CONFIG))
    (root / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": listed}, "added_tokens": added}))
    (root / "model.safetensors").touch()
    return root


def start(model: Path, clock: FakeClock, preset: str = "h200", preset_model: str = "", **settings: Any) -> Engine:
    config = Config(
        models=(ModelEntry(model=str(model), name="llama"),),
        engine=EngineConfig(**({"max_running": 8, "max_batch_tokens": 32, "kv_memory": "4MiB"} | settings)),
        node=NodeConfig(engine="simulated", preset=preset, preset_model=preset_model),
    )
    return Engine(*SimulatedStartup(config, clock, Account(clock, clock.now()), clock.nap).run())


def ask(name: str = "r", **changes: Any) -> Request:
    return request(range(20), name=name, **({"logprobs": None} | changes))


def expected(seed: int, prompt: int, count: int) -> list[int]:
    ids = np.arange(len(OTHERS), len(OTHERS) + len(WORDS))
    return ids[stream(seed, prompt, count, FIRST_TOKEN + len(WORDS)) - FIRST_TOKEN].tolist()


def test_a_step_begins_when_the_one_before_has_ended() -> None:
    clock = FakeClock()
    timeline = Timeline(clock, clock.nap)
    assert [timeline.take(2.0), timeline.take(3.0)] == [102.0, 105.0]
    clock.time = 200.0
    assert timeline.take(1.0) == 201.0


def test_waiting_sleeps_once_until_the_end() -> None:
    clock = FakeClock()
    timeline = Timeline(clock, clock.nap)
    timeline.wait(timeline.take(0.25))
    timeline.wait(100.1)
    assert clock.naps == [0.25]


def test_an_answer_takes_the_time_of_its_steps(model: Path) -> None:
    clock = FakeClock()
    engine = start(model, clock, preset_model="llama-3.1-8b", kv_memory="1GiB")
    before = clock.now()
    engine.alone(ask(max_tokens=10))
    stats = engine.core.stats()[0]
    assert stats.steps == 10
    assert clock.now() - before == pytest.approx(stats.step_seconds)
    assert stats.step_seconds > 10 * 16e9 / 4.8e12


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_tokens_depend_on_seed_and_position_alone(model: Path, depth: int) -> None:
    engine = start(model, FakeClock(), pipeline_depth=depth)
    asked = [ask(f"r{seed}", seed=seed, max_tokens=5 + seed) for seed in range(20)]
    answers = engine.run(asked)
    assert [answer.tokens for answer in answers] == [expected(seed, 20, 5 + seed) for seed in range(20)]
    assert {answer.finish for answer in answers} == {FinishReason.LENGTH}


def test_an_answer_goes_on_elsewhere_with_the_same_tokens(model: Path) -> None:
    whole = start(model, FakeClock()).alone(ask(max_tokens=30)).tokens
    rest = start(model, FakeClock(), preset="l4").alone(ask(max_tokens=30, emitted=whole[:13])).tokens
    assert whole[:13] + rest == whole


def test_choices_are_different_streams(model: Path) -> None:
    first, second = ask("a", max_tokens=16), ask("b", max_tokens=16)
    second = replace(second, continuation=replace(second.continuation, choice=1))
    answers = start(model, FakeClock()).run([first, second])
    assert answers[0].tokens == expected(11, 20, 16) != answers[1].tokens
    assert stream_key(11, 1) != stream_key(11, 2)


def reported(answer: Answer) -> list[list[int]]:
    return [[token for token, _ in entry.top] for entry in answer.logprobs]


def test_logprobs_list_the_token_and_others(model: Path) -> None:
    answer = start(model, FakeClock()).alone(ask(logprobs=3, max_tokens=4))
    assert [entry.token for entry in answer.logprobs] == answer.tokens
    assert [row[0] for row in reported(answer)] == answer.tokens
    assert all(len(set(row)) == 3 for row in reported(answer))
    assert all(entry.top[0][1] == entry.logprob > entry.top[1][1] > entry.top[2][1] for entry in answer.logprobs)


def test_more_alternatives_than_words_are_all_words_once(model: Path) -> None:
    answer = start(model, FakeClock()).alone(ask(logprobs=20, max_tokens=1))
    assert sorted(reported(answer)[0]) == list(range(8, 14))


def test_prompts_are_scored_over_chunks(model: Path) -> None:
    answer = start(model, FakeClock(), max_batch_tokens=6).alone(ask(prompt_logprobs=0, max_tokens=2))
    assert answer.prompt_logprobs is not None
    assert [entry.token for entry in answer.prompt_logprobs] == list(range(1, 20))


def test_a_deadline_ends_a_request(model: Path) -> None:
    clock = FakeClock()
    engine = start(model, clock, preset="l4", preset_model="llama-3.1-8b", kv_memory="1GiB")
    late = replace(ask(max_tokens=100), qos=Qos(deadline=clock.now() + 1.0))
    answer = engine.alone(late)
    assert answer.error is not None and answer.error.code == "deadline_exceeded"
    assert 0 < len(answer.tokens) < 100


def test_an_aborted_request_leaves_nothing(model: Path) -> None:
    engine = start(model, FakeClock())
    engine.add(ask(max_tokens=100))
    engine.step()
    engine.core.abort("r")
    while engine.core.has_work:
        engine.step()
    engine.core.check()
    assert engine.core.stats()[0].running == 0


def test_more_than_memory_holds_is_preempted_and_ends_alike(model: Path) -> None:
    unit = 2 * 2 * 16 * 2 * 16 * 2
    engine = start(model, FakeClock(), kv_memory=str(24 * unit), prefix_cache=False)
    answers = engine.run([ask(f"r{seed}", seed=seed, max_tokens=60) for seed in range(8)])
    assert engine.core.stats()[0].preemptions > 0
    assert [answer.tokens for answer in answers] == [expected(seed, 20, 60) for seed in range(8)]


def test_a_step_lasts_as_long_as_its_sizes_cost() -> None:
    """A chunk of three behind ten known tokens sees 11 + 12 + 13 pairs, a decode row at 40 sees 41."""
    clock = FakeClock()
    cost = FittedCost(per_token=1.0, per_row=100.0, per_context=1e4, per_pair=1e7)
    plan = StepPlan(
        step=0, model="m", slots=ints([0, 1]), start=ints([10, 40]), num_tokens=ints([3, 1]), samples=ints([0, 1])
    )
    runner = SimulatedRunner(cost, Words(ints([3, 4])), 2, Timeline(clock, clock.nap))
    assert runner.launch(plan).wait().seconds == 4 + 200 + 54e4 + (36 + 41) * 1e7
    assert clock.now() == 100.0 + 770540204.0


def test_drafts_are_refused() -> None:
    clock = FakeClock()
    words = Words(ints([3, 4]))
    runner = SimulatedRunner(FittedCost(base=1.0), words, 1, Timeline(clock, clock.nap))
    one = ints([0])
    plan = StepPlan(step=0, model="m", slots=one, start=one, num_tokens=one + 2, samples=one + 2, drafts=ints([[4]]))
    with pytest.raises(ValueError, match="does not speculate"):
        runner.launch(plan)


@pytest.mark.parametrize(
    ("given", "listed"),
    [({"preset": "b300"}, "cpu, l4, a100-40"), ({"preset_model": "gpt-2"}, "smollm2-135m, llama-2-7b")],
)
def test_an_unknown_preset_is_refused_with_those_there_are(model: Path, given: dict[str, str], listed: str) -> None:
    with pytest.raises(InferenceError, match=listed) as refused:
        start(model, FakeClock(), **given)
    assert refused.value.info.param == f"node.{next(iter(given))}"


def test_memory_and_length_are_the_presets(model: Path) -> None:
    ready = start(model, FakeClock(), preset_model="llama-3.1-8b", kv_memory="auto").ready
    (served,) = ready.models
    assert 100e9 < ready.kv_memory < 141e9 - 16e9
    assert served.max_model_len == 131072
    assert served.vocab_size == 32
    assert served.numerics_id.startswith("simulated-h200-llama-3.1-8b-")


def test_quantised_kv_holds_more(model: Path) -> None:
    wide, narrow = (start(model, FakeClock(), kv_dtype=dtype).ready.models[0] for dtype in ("float16", "int8"))
    assert narrow.kv_groups[0].dtype == "int8"
    assert narrow.kv_blocks > 1.5 * wide.kv_blocks


def test_without_a_preset_model_the_served_one_is_timed(model: Path) -> None:
    (served,) = start(model, FakeClock()).ready.models
    assert served.max_model_len == 512
    assert served.kv_groups[0].layers == (0, 1)


def test_a_model_beyond_the_device_is_refused(model: Path) -> None:
    with pytest.raises(InferenceError, match="leaves no memory for KV"):
        start(model, FakeClock(), preset="l4", preset_model="llama-3.1-70b", kv_memory="auto")


def test_words_are_neither_special_nor_broken(model: Path) -> None:
    _, words = describe(resolve(str(model)))
    assert words.ids.tolist() == list(range(len(OTHERS), len(OTHERS) + len(WORDS)))


def test_a_vocabulary_without_words_is_refused(model: Path, tmp_path: Path) -> None:
    for name, text in {"config.json": json.dumps(CONFIG), "tokenizer.json": '{"model": {"vocab": {"1": 0}}}'}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InferenceError, match="no words"):
        describe(resolve(str(tmp_path)))


def test_listed_vocabularies_are_read_too(tmp_path: Path) -> None:
    pieces: Sequence[Sequence[object]] = [["<unk>", 0.0], ["▁a", -1.0], ["b", -2.0]]
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "vocab": pieces}}))
    (tmp_path / "model.safetensors").touch()
    assert describe(resolve(str(tmp_path)))[1].ids.tolist() == [1, 2]


def test_it_starts_without_torch() -> None:
    code = "import inference_stack.engine.simulated_startup, inference_stack.engine.worker, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_the_model_tells_its_vocabulary(model: Path) -> None:
    clock = FakeClock()
    (info,) = start(model, clock).ready.models
    assert info.vocabulary == vocabulary_digest(resolve(str(model))) != ""
