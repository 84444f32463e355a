"""Made-up traffic: times, contents, tenants, mixes, and the plain form they are asked for in."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_stack.core.errors import InferenceError
from inference_stack.simulator.api import Arrival, Workload
from inference_stack.simulator.tokens import prompt_tokens, token
from inference_stack.simulator.workloads import workload_from
from inference_stack.simulator.workloads.chat import Chat
from inference_stack.simulator.workloads.distributions import Distribution, Fixed, Lognormal, Uniform, whole
from inference_stack.simulator.workloads.generated import Generated
from inference_stack.simulator.workloads.mix import Mix
from inference_stack.simulator.workloads.processes import Constant, Diurnal, Gamma, Mmpp, Poisson, Process, State

Plain = dict[str, Any]
VOCAB = 30_000
CONTENTS: list[Plain] = [
    {"kind": "independent", "prompt": {"kind": "uniform", "low": 5, "high": 50}},
    {"kind": "chat", "turns": {"kind": "uniform", "low": 1, "high": 5}},
    {"kind": "rag", "documents": 20},
    {"kind": "code"},
]
PROCESSES: list[Plain] = [
    {"kind": "constant", "rate": 5},
    {"kind": "poisson", "rate": 5},
    {"kind": "gamma", "rate": 5, "cv": 3},
    {"kind": "mmpp", "states": [{"rate": 1, "dwell": 5}, {"rate": 20, "dwell": 2}, {"rate": 0, "dwell": 1}]},
    {"kind": "diurnal", "rates": [1, 10, 5], "period": 40},
]
TENANTS: list[Plain] = [
    {"name": "a", "share": 3, "weight": 2, "priority": "realtime", "ttft_deadline": 1.5},
    {"name": "b", "deadline": 30, "priority": -100},
]
plains = st.builds(
    lambda process, content, seed, tenants: {**process, "content": content, "seed": seed, "tenants": tenants},
    st.sampled_from(PROCESSES),
    st.sampled_from(CONTENTS),
    st.integers(0, 2**32),
    st.sampled_from([[], TENANTS]),
)


def taken(plain: Plain, limit: int = 60) -> list[Arrival]:
    return list(workload_from({**plain, "limit": limit}))


def roots(arrivals: list[Arrival]) -> list[float]:
    return [arrival.at for arrival in arrivals if arrival.follows is None]


def rate_of(process: Process, seconds: float, factor: float = 1.0) -> float:
    times = process.times(np.random.default_rng(1), factor)
    return sum(1 for _ in itertools.takewhile(lambda time: time < seconds, times)) / seconds


# -- what holds for every workload


@settings(max_examples=40, deadline=None)
@given(plains)
def test_arrivals_are_numbered_and_in_order_of_time(plain: Plain) -> None:
    arrivals = taken(plain)
    assert [arrival.number for arrival in arrivals] == list(range(60))
    assert roots(arrivals) == sorted(roots(arrivals))
    assert all(arrival.follows is None or arrival.follows < arrival.number for arrival in arrivals)


@settings(max_examples=40, deadline=None)
@given(plains)
def test_a_workload_is_the_same_each_time_it_is_iterated(plain: Plain) -> None:
    workload = workload_from({**plain, "limit": 40})
    assert list(workload) == list(workload)


@settings(max_examples=40, deadline=None)
@given(plains)
def test_every_prompt_and_answer_has_tokens_and_every_seed_is_its_own(plain: Plain) -> None:
    arrivals = taken(plain)
    assert all(arrival.prompt_tokens > 0 and arrival.output_tokens > 0 for arrival in arrivals)
    assert len({arrival.seed for arrival in arrivals}) == len(arrivals)


@settings(max_examples=20, deadline=None)
@given(plains)
def test_another_seed_is_another_workload(plain: Plain) -> None:
    other = taken({**plain, "seed": plain["seed"] + 1})
    assert {arrival.seed for arrival in other}.isdisjoint(arrival.seed for arrival in taken(plain))


def test_the_content_does_not_change_the_times() -> None:
    times = [roots(taken({"kind": "poisson", "rate": 3, "content": content})) for content in (CONTENTS[0], CONTENTS[2])]
    assert times[0] == times[1]


# -- arrival processes


@pytest.mark.parametrize(
    ("process", "rate"),
    [
        (Constant(4.0), 4.0),
        (Poisson(4.0), 4.0),
        (Gamma(4.0, 3.0), 4.0),
        (Mmpp((State(1.0, 20.0), State(9.0, 5.0), State(0.0, 5.0))), 65 / 30),
        (Diurnal((2.0, 6.0), 100.0), 4.0),
    ],
)
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_process_keeps_its_rate(process: Process, rate: float, factor: float) -> None:
    assert rate_of(process, 10_000.0, factor) == pytest.approx(rate * factor, rel=0.1)


def test_an_mmpp_knows_its_mean_rate() -> None:
    assert Mmpp((State(1.0, 20.0), State(9.0, 5.0), State(0.0, 5.0))).rate == pytest.approx(65 / 30)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0, 4.0])
def test_gamma_gaps_vary_as_asked(cv: float) -> None:
    gaps = np.diff(list(itertools.islice(Gamma(10.0, cv).times(np.random.default_rng(2)), 20_000)))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


def _dispersion(process: Process) -> float:
    """Variance over mean of the arrivals in ten seconds: 1 for Poisson."""
    times = list(itertools.takewhile(lambda time: time < 20_000, process.times(np.random.default_rng(3))))
    counts = np.histogram(times, bins=2000, range=(0, 20_000))[0]
    return float(counts.var() / counts.mean())


def test_an_mmpp_comes_in_bursts_and_poisson_does_not() -> None:
    assert _dispersion(Poisson(4.0)) == pytest.approx(1.0, abs=0.2)
    assert _dispersion(Mmpp((State(1.0, 40.0), State(16.0, 10.0)))) > 5.0


def test_a_diurnal_rate_follows_its_curve() -> None:
    process = Diurnal((0.0, 20.0), period=100.0)
    times = np.array(list(itertools.takewhile(lambda time: time < 10_000, process.times(np.random.default_rng(4)))))
    hist = np.histogram(times % 100.0, bins=10, range=(0, 100))[0] / (100 * 10.0)
    assert hist == pytest.approx([2, 6, 10, 14, 18, 18, 14, 10, 6, 2], rel=0.15)


# -- lengths


@pytest.mark.parametrize(
    "distribution", [Fixed(7), Uniform(3, 30), Lognormal(50, 0.8), Lognormal(50, 2.0, low=20, high=90)]
)
def test_a_distribution_has_the_mean_it_says(distribution: Distribution) -> None:
    rng = np.random.default_rng(5)
    assert np.mean([distribution.draw(rng) for _ in range(20_000)]) == pytest.approx(distribution.mean(), rel=0.03)


def test_lognormal_has_its_median_and_keeps_its_bounds() -> None:
    rng = np.random.default_rng(6)
    found = [Lognormal(100, 1.5, low=10, high=500).draw(rng) for _ in range(5000)]
    assert min(found) == 10 and max(found) == 500
    assert np.median(found) == pytest.approx(100, rel=0.1)


def test_a_number_of_things_is_at_least_one() -> None:
    assert whole(Fixed(0.2), np.random.default_rng(0)) == 1


# -- contents


def _chat(**settings: Any) -> list[Arrival]:
    content = Chat(**{"turns": Fixed(4), **settings})
    return list(Generated(process=Poisson(2.0), content=content, limit=80, seed=3))


def test_a_turn_extends_the_turn_before_by_its_answer_and_a_question() -> None:
    arrivals = _chat()
    later = [arrival for arrival in arrivals if arrival.follows is not None]
    assert len(later) == 60
    for arrival in later:
        before = arrivals[arrival.number - 1]
        earlier = prompt_tokens(before.prompt, VOCAB)
        positions = range(before.prompt_tokens, before.prompt_tokens + before.output_tokens)
        said = (*earlier, *(token(before.seed, position, VOCAB) for position in positions))
        assert arrival.follows == before.number
        assert prompt_tokens(arrival.prompt, VOCAB)[: len(said)] == said
        assert arrival.prompt_tokens > len(said)


def test_sessions_share_the_system_prompt_and_nothing_else() -> None:
    first = [arrival for arrival in _chat(system_tokens=30) if arrival.follows is None]
    prompts = [prompt_tokens(arrival.prompt, VOCAB) for arrival in first]
    assert len({prompt[:30] for prompt in prompts}) == 1
    assert len({prompt[30:34] for prompt in prompts}) == len(prompts)


def test_a_later_turn_comes_after_a_pause_of_thinking() -> None:
    assert {arrival.at for arrival in _chat(think=Fixed(2.5)) if arrival.follows is not None} == {2.5}


def test_a_session_ends_before_its_context_grows_too_long() -> None:
    arrivals = _chat(question=Fixed(50), answer=Fixed(100), system_tokens=0, max_context=300)
    assert {arrival.prompt_tokens for arrival in arrivals} == {50, 200}


def test_the_rate_counts_turns_not_sessions() -> None:
    workload = Generated(process=Poisson(10.0), content=Chat(turns=Uniform(1, 9)), duration=2000.0, seed=1)
    assert sum(1 for _ in workload) / 2000.0 == pytest.approx(10.0, rel=0.1)


def test_rag_prompts_are_system_document_question_with_popular_documents() -> None:
    arrivals = taken({"kind": "poisson", "rate": 1, "content": {"kind": "rag", "documents": 50, "zipf": 1.2}}, 4000)
    assert len({arrival.prompt[0] for arrival in arrivals}) == 1
    popular = [count for _, count in Counter(arrival.prompt[1] for arrival in arrivals).most_common()]
    assert popular[0] / popular[3] == pytest.approx(4**1.2, rel=0.35)
    assert len({arrival.prompt[2].source for arrival in arrivals}) == 4000


def test_code_prompts_share_their_repositorys_beginning() -> None:
    arrivals = taken({"kind": "poisson", "rate": 1, "content": {"kind": "code", "repositories": 3}}, 200)
    assert len({arrival.prompt[0] for arrival in arrivals}) == 3
    assert len({arrival.prompt[1].source for arrival in arrivals}) == 200


def test_independent_prompts_share_nothing() -> None:
    arrivals = taken({"kind": "poisson", "rate": 1, "content": {"kind": "independent", "prompt": 9}}, 100)
    assert len({prompt_tokens(arrival.prompt, VOCAB) for arrival in arrivals}) == 100
    assert {arrival.prompt_tokens for arrival in arrivals} == {9}


# -- tenants


def test_tenants_come_by_their_shares_with_their_rights() -> None:
    arrivals = taken({"kind": "poisson", "rate": 1, "tenants": TENANTS}, 4000)
    a = next(arrival for arrival in arrivals if arrival.tenant == "a")
    b = next(arrival for arrival in arrivals if arrival.tenant == "b")
    assert sum(arrival.tenant == "a" for arrival in arrivals) / 4000 == pytest.approx(0.75, abs=0.03)
    assert (a.weight, a.priority, a.ttft_deadline, a.deadline) == (2.0, 100, 1.5, None)
    assert (b.weight, b.priority, b.ttft_deadline, b.deadline) == (1.0, -100, None, 30.0)


def test_a_session_is_one_tenants() -> None:
    arrivals = taken({"kind": "poisson", "rate": 1, "tenants": TENANTS, "content": CONTENTS[1]}, 300)
    assert all(a.follows is None or a.tenant == arrivals[a.follows].tenant for a in arrivals)
    assert {arrival.tenant for arrival in arrivals} == {"a", "b"}


# -- ends and mixes


def test_nothing_begins_after_the_duration() -> None:
    arrivals = list(workload_from({"kind": "constant", "rate": 2, "duration": 5}))
    assert roots(arrivals) == [0.5 * k for k in range(10)]


def test_scale_multiplies_the_rate() -> None:
    plain = {"kind": "constant", "rate": 2, "duration": 5, "scale": 1.5}
    assert len(list(workload_from(plain))) == 15


@settings(max_examples=30, deadline=None)
@given(st.lists(plains, min_size=1, max_size=3))
def test_a_mix_has_all_arrivals_of_its_parts_in_order(parts: list[Plain]) -> None:
    mix = workload_from({"kind": "mix", "parts": [{**part, "limit": 30} for part in parts], "seed": 5})
    arrivals = list(mix)
    assert isinstance(mix, Mix)
    assert [arrival.number for arrival in arrivals] == list(range(30 * len(parts)))
    assert roots(arrivals) == sorted(roots(arrivals))
    assert {arrival.seed for arrival in arrivals} == {arrival.seed for part in mix.parts for arrival in part}
    assert len({arrival.seed for arrival in arrivals}) == len(arrivals)


def test_in_a_mix_an_arrival_still_follows_the_one_that_it_quotes() -> None:
    part: Plain = {"kind": "poisson", "rate": 5, "content": CONTENTS[1], "limit": 60}
    arrivals = list(workload_from({"kind": "mix", "parts": [part, part]}))
    later = [arrival for arrival in arrivals if arrival.follows is not None]
    assert later
    for arrival in later:
        assert arrival.follows is not None and arrival.follows < arrival.number
        assert arrival.prompt[-2].source == arrivals[arrival.follows].seed


def test_a_mix_may_hold_any_workload() -> None:
    late = [Arrival(number=0, at=9.0, prompt=(), output_tokens=1, seed=1)]
    early = [Arrival(number=0, at=1.0, prompt=(), output_tokens=1, seed=2)]
    parts: list[Workload] = [late, early]
    assert [arrival.seed for arrival in Mix(parts)] == [2, 1]


# -- the plain form


@pytest.mark.parametrize(
    ("plain", "key", "message"),
    [
        ({}, "kind", "is needed"),
        ({"kind": "weibull"}, "kind", "expected one of constant, poisson"),
        ({"kind": "poisson", "duration": 1}, "rate", "is needed"),
        ({"kind": "poisson", "rate": 0, "duration": 1}, "rate", "expected more than 0"),
        ({"kind": "poisson", "rate": "5", "duration": 1}, "rate", "expected a number"),
        ({"kind": "poisson", "rate": True, "duration": 1}, "rate", "expected a number"),
        ({"kind": "poisson", "rate": float("nan"), "duration": 1}, "rate", "expected a finite number"),
        ({"kind": "poisson", "rate": 1}, "duration", "never end"),
        ({"kind": "poisson", "rate": 1, "limit": 0}, "limit", "expected at least 1"),
        ({"kind": "poisson", "rate": 1, "limit": 2.5}, "limit", "expected a whole number"),
        ({"kind": "poisson", "rate": 1, "limit": 1, "sed": 1}, "sed", "Did you mean seed"),
        ({"kind": "poisson", "rate": 1, "limit": 1, "speed": 2}, "speed", "there is no setting speed"),
        ({"kind": "poisson", "rate": 1, "limit": 1, "seed": -1}, "seed", "expected at least 0"),
        ({"kind": "gamma", "rate": 1, "limit": 1}, "cv", "is needed"),
        ({"kind": "mmpp", "limit": 1, "states": [{"rate": 1, "dwell": 1}]}, "states", "at least two"),
        ({"kind": "mmpp", "limit": 1, "states": [{"rate": 0, "dwell": 1}] * 2}, "states", "one rate above 0"),
        ({"kind": "mmpp", "limit": 1, "states": [{"rate": 1}] * 2}, "states[0].dwell", "is needed"),
        ({"kind": "diurnal", "limit": 1, "rates": [0, 0]}, "rates", "one of them above 0"),
        ({"kind": "diurnal", "limit": 1, "rates": [1, -1]}, "rates", "none negative"),
        ({"kind": "diurnal", "limit": 1, "rates": 3}, "rates", "expected a list"),
        ({"kind": "azure"}, "path", "is needed"),
        ({"kind": "azure", "path": "nowhere.csv"}, "path", "there is no file nowhere.csv"),
        ({"kind": "mix"}, "parts", "expected a list of workloads"),
        ({"kind": "mix", "parts": [{"kind": "poisson", "limit": 1}]}, "parts[0].rate", "is needed"),
        ({"kind": "mix", "parts": [3]}, "parts[0]", "expected settings by name"),
    ],
)
def test_a_bad_setting_is_refused_by_its_name(plain: Plain, key: str, message: str) -> None:
    with pytest.raises(InferenceError) as caught:
        workload_from(plain, origin="fleet.yaml")
    assert caught.value.info.param == key
    assert message in str(caught.value) and str(caught.value).startswith("fleet.yaml: ")


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ({"kind": "poem"}, "content.kind", "expected one of independent"),
        ({"turns": 3}, "content.turns", "there is no setting"),
        ({"kind": "chat", "turns": 0}, "content.turns", "expected at least 1"),
        ({"kind": "chat", "turns": "many"}, "content.turns", "expected a number"),
        ({"kind": "chat", "think": {"kind": "zipf"}}, "content.think.kind", "expected one of fixed"),
        ({"kind": "chat", "think": {"kind": "fixed"}}, "content.think.value", "is needed"),
        ({"kind": "chat", "answer": {"kind": "lognormal", "sigma": 1}}, "content.answer.median", "is needed"),
        ({"kind": "chat", "answer": {"kind": "uniform", "low": 9, "high": 3}}, "content.answer.high", "at least 9"),
        ({"kind": "rag", "documents": 0}, "content.documents", "expected at least 1"),
        ({"kind": "code", "zipf": -1}, "content.zipf", "expected at least 0"),
        ("chat", "content", "expected settings by name"),
    ],
)
def test_a_bad_content_is_refused_by_its_name(content: Any, key: str, message: str) -> None:
    with pytest.raises(InferenceError, match=message) as caught:
        workload_from({"kind": "poisson", "rate": 1, "limit": 1, "content": content})
    assert caught.value.info.param == key


@pytest.mark.parametrize(
    ("tenant", "key"),
    [
        ({}, "tenants[0].name"),
        ({"name": "a", "share": 0}, "tenants[0].share"),
        ({"name": "a", "priority": "urgent"}, "tenants[0].priority"),
        ({"name": "a", "priority": 101}, "tenants[0].priority"),
        ({"name": "a", "deadline": 0}, "tenants[0].deadline"),
        ({"name": "a", "colour": 1}, "tenants[0].colour"),
    ],
)
def test_a_bad_tenant_is_refused_by_its_name(tenant: Plain, key: str) -> None:
    with pytest.raises(InferenceError) as caught:
        workload_from({"kind": "poisson", "rate": 1, "limit": 1, "tenants": [tenant]})
    assert caught.value.info.param == key


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        (12, Fixed(12)),
        ({"kind": "fixed", "value": 12}, Fixed(12)),
        ({"kind": "uniform", "low": 2, "high": 4}, Uniform(2, 4)),
        ({"kind": "lognormal", "median": 20, "sigma": 0.5}, Lognormal(20, 0.5, low=1.0)),
        ({"kind": "lognormal", "median": 20, "sigma": 0.5, "low": 3, "high": 90}, Lognormal(20, 0.5, 3, 90)),
        (None, Chat().answer),
    ],
)
def test_a_length_is_a_number_or_a_distribution(plain: Any, expected: Distribution) -> None:
    found = workload_from({"kind": "poisson", "rate": 1, "limit": 1, "content": {"kind": "chat", "answer": plain}})
    assert isinstance(found, Generated) and isinstance(found.content, Chat)
    assert found.content.answer == expected


def test_the_callers_seed_serves_where_there_is_none() -> None:
    plain: Plain = {"kind": "poisson", "rate": 1, "limit": 5}
    assert list(workload_from(plain, seed=7)) == list(workload_from({**plain, "seed": 7}))
    assert list(workload_from(plain, seed=7)) != list(workload_from(plain))
