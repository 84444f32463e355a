"""What an engine promises about one request: how it samples, scores, stops and fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference_stack.core.request import FinishReason
from tests.engine.house import Engine, engine, prompt, request, save_tiny
from tests.models.tiny import VOCAB

GREEDY = {"temperature": 0.0}


@pytest.fixture(scope="module")
def llama(tiny_models: dict[str, Path]) -> Engine:
    return engine(tiny_models["llama"])


def test_a_bias_decides(llama: Engine) -> None:
    assert llama.alone(request(prompt(5), logit_bias={9: 1e4})).tokens == [9] * 12


def test_length_ends_a_completion(llama: Engine) -> None:
    answer = llama.alone(request(prompt(5), max_tokens=3))
    assert (len(answer.tokens), answer.finish) == (3, FinishReason.LENGTH)


def test_a_stop_token_ends_a_completion_and_is_part_of_it(llama: Engine) -> None:
    free = llama.alone(request(prompt(5), **GREEDY)).tokens
    stopped = llama.alone(request(prompt(5), stop_token_ids=(free[2],), **GREEDY))
    assert (stopped.tokens, stopped.finish) == (free[: free.index(free[2]) + 1], FinishReason.STOP)


def test_stops_wait_for_min_tokens(llama: Engine) -> None:
    free = llama.alone(request(prompt(5), **GREEDY)).tokens
    patient = llama.alone(request(prompt(5), stop_token_ids=(free[0],), min_tokens=4, **GREEDY))
    assert free[0] not in patient.tokens[:4] and len(patient.tokens) >= 4


def test_the_end_token_ends_unless_ignored(llama: Engine) -> None:
    bias = {2: 1e4}
    assert llama.alone(request(prompt(5), logit_bias=bias, ignore_eos=False)).tokens == [2]
    assert llama.alone(request(prompt(5), logit_bias=bias)).tokens == [2] * 12


def test_penalties_count_what_was_emitted(llama: Engine) -> None:
    even = {"logit_bias": dict.fromkeys(range(10, 22), 50.0), **GREEDY}
    repeated = llama.alone(request(prompt(5), **even)).tokens
    spread = llama.alone(
        request(prompt(5), presence_penalty=2.0, frequency_penalty=2.0, repetition_penalty=9.0, **even)
    )
    assert len(set(spread.tokens)) > len(set(repeated))


def test_seeds_decide(llama: Engine) -> None:
    first, same, other = (llama.alone(request(prompt(9), seed=seed, temperature=2.0)).tokens for seed in (1, 1, 2))
    assert first == same != other


def test_choices_differ_and_their_prompt_is_computed_once(tiny_models: dict[str, Path]) -> None:
    fresh = engine(tiny_models["llama"])
    base = request(prompt(40), temperature=2.0)
    choices = [
        replace(base, id=f"r{index}", continuation=replace(base.continuation, choice=index)) for index in range(3)
    ]
    answers = fresh.run(choices)
    assert len({tuple(answer.tokens) for answer in answers}) == 3
    assert sorted(answer.cached or 0 for answer in answers) == [0, 32, 32]


def test_prompt_logprobs_are_those_of_generation(llama: Engine) -> None:
    free = llama.alone(request(prompt(20), **GREEDY))
    text = prompt(20) + free.tokens
    scored = llama.alone(request(text, prompt_logprobs=VOCAB, max_tokens=1))
    assert scored.prompt_logprobs is not None and len(scored.prompt_logprobs) == len(text) - 1
    assert list(scored.prompt_logprobs[19:]) == free.logprobs


def test_prompt_logprobs_do_not_depend_on_chunks(tiny_models: dict[str, Path]) -> None:
    tables = [
        engine(tiny_models["gemma3"], max_batch_tokens=budget)
        .alone(request(prompt(90), model="gemma3", prompt_logprobs=3, max_tokens=1))
        .prompt_logprobs
        for budget in (7, 64)
    ]
    assert tables[0] == tables[1] and tables[0] is not None and len(tables[0]) == 89


def test_a_prompt_can_be_scored_without_generating(llama: Engine) -> None:
    answer = llama.alone(request(prompt(20), prompt_logprobs=0, max_tokens=0))
    assert (answer.tokens, len(answer.prompt_logprobs or ())) == ([], 19)


def test_what_cannot_fit_is_refused_with_a_reason(llama: Engine) -> None:
    answer = llama.alone(request(prompt(300)))
    assert answer.error is not None and answer.error.code == "context_length_exceeded"


def test_unknown_models_are_refused(llama: Engine) -> None:
    answer = llama.alone(request(prompt(3), model="other"))
    assert answer.error is not None and answer.error.status == 404


def test_models_share_one_arena(tiny_models: dict[str, Path]) -> None:
    both = engine(tiny_models["llama"], tiny_models["gemma3"], tiny_models["qwen3"])
    names = ["llama", "gemma3", "qwen3"] * 3
    mixed = [request(prompt(30 + 9 * n, n), f"r{n}", name, seed=n) for n, name in enumerate(names)]
    separate = {name: engine(tiny_models[name]) for name in set(names)}
    expected = [separate[name].alone(one).logprobs for name, one in zip(names, mixed, strict=True)]
    assert [answer.logprobs for answer in both.run(mixed)] == expected


def test_not_a_number_fails_one_request_and_spares_its_neighbours(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path / "llama")
    weights = load_file(path / "model.safetensors")
    weights["model.embed_tokens.weight"][90] = torch.nan
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    broken = engine(path)
    healthy = [request([3, 4, 5], "good"), request([6] * 40, "also good")]
    expected = [broken.alone(one) for one in healthy]
    bad = [request([3, 90, 5], "bad"), request([90] * 20, "bad, prefilling")]
    answers = broken.run([*healthy, *bad])
    assert [answer.tokens for answer in answers[:2]] == [answer.tokens for answer in expected]
    assert all(answer.error is not None and answer.error.code == "numerical_fault" for answer in answers[2:])


def test_an_isolated_request_has_company_once_it_has_spoken(llama: Engine) -> None:
    suspect = replace(request(prompt(60), "suspect"), isolated=True)
    other = request(prompt(20), "other", seed=3)
    expected = [llama.alone(one).tokens for one in (suspect, other)]
    together = 0

    def look(step: int) -> None:
        nonlocal together
        running = llama.core.stats()[0].running
        together = max(together, running)
        assert running < 2 or llama.answers["suspect"].tokens

    assert [answer.tokens for answer in llama.run([suspect, other], look)] == expected
    assert together == 2


def test_an_abort_frees_everything_at_once(llama: Engine) -> None:
    llama.run([])
    llama.add(request(prompt(60), "leaver", max_tokens=100))
    for _ in range(3):
        llama.step()
    llama.core.abort("leaver")
    llama.answers.clear()
    while llama.core.has_work:
        llama.step()
    llama.core.check()
    assert llama.core.stats()[0].kv_blocks_used == 0


def test_equal_builds_have_equal_names_and_different_ones_do_not(tiny_models: dict[str, Path]) -> None:
    def name(kind: str, **settings: object) -> str:
        return engine(tiny_models[kind], **settings).ready.models[0].numerics_id

    assert name("llama") == name("llama", max_running=3)
    assert len({name("llama"), name("qwen3"), name("llama", kv_dtype="bfloat16")}) == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_kv_is_invariant_too(tiny_models: dict[str, Path], dtype: str) -> None:
    wanted = [request(prompt(length, length), f"r{length}") for length in (5, 33, 70)]
    single = engine(tiny_models["llama"], kv_dtype=dtype, prefix_cache=False)
    expected = [single.alone(one).logprobs for one in wanted]
    together = engine(tiny_models["llama"], kv_dtype=dtype, max_batch_tokens=11)
    assert [answer.logprobs for answer in together.run(wanted)] == expected


def test_a_model_tells_how_long_its_steps_take(llama: Engine) -> None:
    told = llama.ready.models[0].step_time
    assert told.predict(tokens=1, rows=1, context=1) > 0
    assert told.predict(tokens=500, rows=1, context=500) >= told.predict(tokens=1, rows=1, context=1)


def test_the_ledger_accounts_for_start_up(llama: Engine) -> None:
    ledger = llama.ready.ledger
    assert [name for name, _ in ledger.stages][-1] == "warm-up"
    assert dict(ledger.memory)["workspace"] > 0 and any("weights" in name for name, _ in ledger.memory)
    assert ledger.derived["threads"] == "1"
