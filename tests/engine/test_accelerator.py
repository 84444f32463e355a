"""The engine on an accelerator gives what it gives on the CPU, bit for bit, with the same ops: uploads, fetches and lag change
nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference_stack.core.errors import InferenceError
from inference_stack.engine.memory import kv_bytes, step_reserve
from inference_stack.engine.staging import Fetched, Staging
from inference_stack.engine.streams import HostStreams
from tests.engine.emulated import POISON, ReadsTheDevice, emulated, no_reads
from tests.engine.house import Answer, Engine, engine, prompt, request

PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "top_k": 9, "top_p": 0.8, "min_p": 0.01},
    {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    {"logit_bias": {5: 4.0, 9: -100.0}},
    {"min_tokens": 6, "ignore_eos": False},
    {"prompt_logprobs": 3},
]


def everything(served: Engine, model: str) -> list[Answer]:
    """Requests of every kind, together and one after the other, with prompts that are longer than a step."""
    wanted = [
        request(prompt(5 + 29 * number, number), f"r{number}", model, seed=number, **params)
        for number, params in enumerate(PARAMS)
    ]
    return [*served.run(wanted), *(served.alone(one) for one in wanted[::3])]


@pytest.mark.parametrize(("family", "depth"), [("llama", 0), ("llama", 1), ("llama", 2), ("gemma3", 2)])
def test_an_accelerator_gives_the_bits_that_the_cpu_gives(
    tiny_models: dict[str, Path], family: str, depth: int
) -> None:
    there = engine(tiny_models[family], device=emulated(), kernels="torch", pipeline_depth=depth)
    here = engine(tiny_models[family], kernels="torch")
    assert everything(there, family) == everything(here, family)


def test_a_batch_that_does_not_fit_is_preempted_and_goes_on(tiny_models: dict[str, Path]) -> None:
    def answers(**more: Any) -> list[Answer]:
        served = engine(tiny_models["llama"], kernels="torch", kv_memory="128KiB", prefix_cache=False, **more)
        asked = [request(prompt(40, n), f"r{n}", seed=n, max_tokens=60) for n in range(6)]
        found = served.run(asked)
        assert served.core.stats()[0].preemptions > 0
        return found

    for mine, theirs in zip(answers(device=emulated()), answers(), strict=True):
        assert mine.tokens == theirs.tokens


def test_an_aborted_request_leaves_the_others_alone(tiny_models: dict[str, Path]) -> None:
    served = engine(tiny_models["llama"], device=emulated(), kernels="torch", pipeline_depth=2)
    asked = [request(prompt(20, n), f"r{n}", seed=n) for n in range(3)]
    alone = [served.alone(one) for one in asked]
    together = served.run(asked, lambda step: served.core.abort("r1") if step == 4 else None)
    assert [together[0].tokens, together[2].tokens] == [alone[0].tokens, alone[2].tokens]


def test_a_decode_step_is_one_copy_to_the_device(tiny_models: dict[str, Path]) -> None:
    device = emulated()
    served = engine(tiny_models["llama"], device=device, kernels="torch", pipeline_depth=0)
    for number in range(3):
        served.add(request(prompt(10, number), f"r{number}", max_tokens=30, temperature=1.0))
    copies = []
    for _ in range(20):
        before = device.staging.copies
        served.step()
        copies.append(device.staging.copies - before)
    assert copies == [1] * 20


def test_more_memory_than_there_is_is_refused(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(InferenceError, match="do not fit"):
        engine(tiny_models["llama"], device=emulated(free=1 << 20), kernels="torch", kv_memory="4MiB")


def test_kernels_for_cpus_are_refused(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(InferenceError, match="are for CPUs"):
        engine(tiny_models["llama"], device=emulated(), kernels="portable")


def test_automatic_kv_memory_is_most_of_what_is_free(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_stack.engine.memory.STEP_BYTES", 0)
    served = engine(tiny_models["llama"], device=emulated(free=10_000_000), kernels="torch", kv_memory="auto")
    assert 0.8 * 10_000_000 < served.ready.kv_memory <= 0.9 * 10_000_000


def test_what_steps_need_is_left_beside_kv() -> None:
    reserve = step_reserve(256, [(131_072, 128_256), (4096, 1000)])
    assert 768 << 20 < reserve < 2 << 30
    assert kv_bytes("auto", 8 << 30, [], reserve) == (8 << 30) - reserve
    assert kv_bytes("auto", 100 << 30, [], reserve) == int(0.9 * (100 << 30))
    assert kv_bytes("auto", 1 << 20, [], reserve) == 0
    assert kv_bytes("64MiB", 1 << 20, [], reserve) == 64 << 20


def test_engines_that_do_not_compute_alike_have_names_of_their_own(tiny_models: dict[str, Path]) -> None:
    def name(**settings: Any) -> str:
        return engine(tiny_models["llama"], device=emulated(), kernels="torch", **settings).ready.models[0].numerics_id

    assert name() == name()
    assert name(deterministic=False) != name(deterministic=False)


class TestStaging:
    """Uploads."""

    def test_values_come_with_send_and_not_before(self) -> None:
        staging = Staging(HostStreams(0), 1024, 2)
        staging._device[1].fill_(POISON)
        staging.begin()
        column = staging.put(np.array([1, 2, 3]))
        assert column.tolist() != [1, 2, 3]
        staging.send()
        assert column.tolist() == [1, 2, 3]

    def test_columns_of_every_type_and_shape_arrive(self) -> None:
        staging = Staging(HostStreams(0), 1024, 2)
        staging.begin()
        sent = [
            np.arange(6).reshape(2, 3),
            np.array([0.5, -1], dtype=np.float32),
            np.array([True, False, True]),
            np.zeros(0, dtype=np.int64),
            np.arange(5, dtype=np.int32)[::2],
        ]
        columns = [staging.put(column) for column in sent]
        staging.send()
        for column, tensor in zip(sent, columns, strict=True):
            assert tensor.shape == column.shape
            assert np.array_equal(tensor.numpy(), column)
            assert tensor.data_ptr() % 16 == 0 or not column.size
        assert staging.copies == 1

    def test_what_does_not_fit_goes_alone(self) -> None:
        staging = Staging(HostStreams(0), 64, 2)
        staging.begin()
        small, large = staging.put(np.arange(4)), staging.put(np.arange(100))
        staging.send()
        assert small.tolist() == list(range(4))
        assert large.tolist() == list(range(100))
        assert staging.copies == 2

    def test_a_buffer_is_taken_again_only_when_its_step_has_passed(self) -> None:
        waited = []

        class Point:
            def wait(self) -> None:
                waited.append(self)

            def since(self, earlier: Any) -> float | None:
                return None

        staging, points = Staging(HostStreams(0), 64, 3), [Point() for _ in range(4)]
        for point in points:
            staging.begin()
            staging.put(np.arange(2))
            staging.end(point)
        assert waited == points[:1]

    def test_fetched_results_are_the_host_s_own(self) -> None:
        streams = HostStreams(0)
        source = torch.arange(3)
        fetched = Fetched(streams, [source], streams.point())
        source.zero_()
        assert fetched.wait()[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[x > 1],
        lambda x: x.masked_fill_(x > 1, 0)[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: x.masked_select(x > 1),
        lambda x: x.repeat_interleave(x),
        lambda x: x.unique(),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
    ],
)
def test_the_guard_knows_the_ways_to_read_a_device(read: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(ReadsTheDevice), no_reads():
        read(torch.arange(4))


def test_the_guard_lets_work_pass() -> None:
    with no_reads():
        x = torch.arange(4)
        x[torch.tensor([1, 2])] += 1
        torch.where(x > 1, x, 0).index_select(0, x.clamp(max=3))
