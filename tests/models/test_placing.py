"""Bringing weights to a device: nothing is overwritten before it was copied, nothing hangs, nothing leaks, all sizes arrive.

The device here is main memory behind a lane that copies as late as it may, so that a buffer used again too soon shows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from inference_stack.artifacts.files import ModelFiles
from inference_stack.artifacts.ranges import RangeReader
from inference_stack.core.errors import InferenceError
from inference_stack.models.cuda_lane import placer_for
from inference_stack.models.loader import load_model
from inference_stack.models.parameters import parameters
from inference_stack.models.placing import HostPlacer, Ring, StagedPlacer
from inference_stack.models.safetensors_source import SafetensorsSource
from inference_stack.ops.api import Linear, Quantised
from tests.models import gguf_maker, quantised_maker, tiny


class LateEvent:
    """Happens when somebody waits for it."""

    def __init__(self, lane: LateLane, number: int) -> None:
        self._lane, self._number = lane, number

    def query(self) -> bool:
        return self._lane.done >= self._number

    def synchronize(self) -> None:
        self._lane.run(self._number)


class LateLane:
    """A `Lane` whose copies happen in order, and only when an event, a hand-over or the end asks for them."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.done, self.queued, self.made, self.closed = 0, 0, 0, 0
        self.seen: list[str] = []
        self.fails_at = 0
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._lock = threading.Lock()

    def enter_thread(self) -> None:
        self.seen.append(threading.current_thread().name)

    def pinned(self, nbytes: int) -> Tensor:
        with self._lock:
            self.made += 1
        return torch.full((nbytes,), 0xEE, dtype=torch.uint8)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype).view(torch.uint8).fill_(0x7F).view(dtype).view(tuple(shape))

    def copy(self, out: Tensor, host: Tensor) -> LateEvent:
        with self._lock:
            self.queued += 1
            if self.queued == self.fails_at:
                raise RuntimeError("the device is gone")
            self._copies.append((out, host))
            return LateEvent(self, len(self._copies))

    def run(self, number: int) -> None:
        with self._lock:
            for out, host in self._copies[self.done : number]:
                out.copy_(host)
            self.done = max(self.done, number)

    def hand_over(self, tensors: Sequence[Tensor]) -> None:
        self.run(len(self._copies))

    def close(self) -> None:
        self.run(len(self._copies))
        self.closed += 1


@pytest.fixture
def lane() -> LateLane:
    return LateLane()


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert not [one for one in threading.enumerate() if one.name.startswith("weights")]


def small(lane: LateLane, **options: Any) -> StagedPlacer:
    """A placer whose ring wraps around often."""
    return StagedPlacer(lane, **({"readers": 3, "buffers": 2, "buffer_bytes": 64} | options))


def stored(tmp_path: Path, **tensors: Tensor) -> SafetensorsSource:
    save_file(tensors, tmp_path / "w.safetensors")
    return SafetensorsSource([tmp_path / "w.safetensors"])


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 65, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tensors_of_any_size_arrive_in_any_type(lane: LateLane, tmp_path: Path, count: int, dtype: torch.dtype) -> None:
    values = torch.randn(count).to(torch.bfloat16)
    with closing(small(lane)) as placer:
        out = placer.empty((count,), dtype)
        placer.read(stored(tmp_path, w=values), "w", out)
        placer.ready(out)
        assert torch.equal(out, values.to(dtype))


def test_the_ring_is_bounded_and_goes_round(lane: LateLane, tmp_path: Path) -> None:
    values = torch.arange(4096, dtype=torch.float32)
    with closing(small(lane)) as placer:
        out = placer.empty(values.shape, torch.float32)
        placer.read(stored(tmp_path, w=values), "w", out)
        placer.ready(out)
    assert torch.equal(out, values)
    assert lane.made == 2
    assert lane.queued == 4096 * 4 // 64


def test_a_tensor_of_a_few_buffers_makes_no_more_of_them(lane: LateLane, tmp_path: Path) -> None:
    with closing(small(lane, buffers=24, readers=1)) as placer:
        out = placer.empty((48,), torch.float32)
        placer.read(stored(tmp_path, w=torch.ones(48)), "w", out)
    assert lane.made == 3


def test_an_unaligned_range_of_a_file_is_read(lane: LateLane, tmp_path: Path) -> None:
    source = stored(tmp_path, a=torch.ones(3, dtype=torch.bfloat16), b=torch.arange(100.0).to(torch.bfloat16))
    with closing(small(lane)) as placer:
        out = placer.empty((100,), torch.bfloat16)
        placer.read(source, "b", out)
        placer.ready(out)
    assert torch.equal(out, torch.arange(100.0).to(torch.bfloat16))


def test_a_host_tensor_may_be_freed_once_it_was_put(lane: LateLane) -> None:
    host = torch.arange(999, dtype=torch.int32)
    with closing(small(lane)) as placer:
        out = placer.put(host)
        host.zero_()
        placer.ready(out)
    assert torch.equal(out, torch.arange(999, dtype=torch.int32))


def test_a_buffer_is_taken_again_only_after_its_copy(lane: LateLane) -> None:
    ring = Ring(lambda: lane.pinned(8), 1)
    buffer, out = ring.take(), torch.zeros(8, dtype=torch.uint8)
    buffer.fill_(1)
    ring.give(buffer, lane.copy(out, buffer))
    assert lane.done == 0
    ring.take().fill_(2)
    assert out.tolist() == [1] * 8


def test_a_ring_waits_for_a_buffer_and_gets_it() -> None:
    ring = Ring(lambda: torch.empty(8), 1)
    first, got = ring.take(), []
    thread = threading.Thread(target=lambda: got.append(ring.take()))
    thread.start()
    ring.give(first)
    thread.join(10)
    assert got == [first]


def test_a_ring_that_cannot_make_a_buffer_says_so_to_everybody() -> None:
    def fails() -> Tensor:
        raise MemoryError

    ring = Ring(fails, 1)
    for _ in range(2):
        with pytest.raises(MemoryError):
            ring.take()


def test_a_ring_whose_event_fails_keeps_its_buffer() -> None:
    class Broken:
        def query(self) -> bool:
            return False

        def synchronize(self) -> None:
            raise RuntimeError("the device is gone")

    ring = Ring(lambda: torch.empty(8), 1)
    ring.give(ring.take(), Broken())
    with pytest.raises(RuntimeError, match="gone"):
        ring.take()
    ring.take()


def test_a_ring_of_nothing_is_refused(lane: LateLane) -> None:
    with pytest.raises(ValueError, match="0 buffers"):
        StagedPlacer(lane, buffers=0)
    with pytest.raises(ValueError, match="12 bytes"):
        StagedPlacer(lane, buffer_bytes=12)


def test_a_short_file_is_a_typed_error(lane: LateLane, tmp_path: Path) -> None:
    source = stored(tmp_path, w=torch.ones(4096))
    with (tmp_path / "w.safetensors").open("r+b") as file:
        file.truncate(9000)
    with closing(small(lane)) as placer, pytest.raises(InferenceError, match="ends before") as caught:
        placer.read(source, "w", placer.empty((4096,), torch.float32))
    assert caught.value.info.code == "unsupported_model"


def test_a_file_that_cannot_be_read_is_a_typed_error(tmp_path: Path) -> None:
    reader = RangeReader()
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InferenceError, match="cannot be read") as caught:
            reader.read(path, 0, memoryview(bytearray(8)))
        assert caught.value.info.code == "model_unreadable"
    reader.close()


def test_closing_closes_the_files(lane: LateLane, tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with closing(small(lane)) as placer:
        placer.read(stored(tmp_path, w=torch.ones(64)), "w", placer.empty((64,), torch.float32))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1  # the source's own mapping
    assert lane.closed == 1


@pytest.mark.parametrize("at", [1, 5, 200])
def test_a_copy_that_fails_is_raised_and_ends_the_load(lane: LateLane, tmp_path: Path, at: int) -> None:
    files = tiny.save(tiny.make("llama"), tmp_path)
    lane.fails_at = at
    with pytest.raises(RuntimeError, match="gone"):
        load_model(files, placer=small(lane))
    assert lane.closed == 1


def test_readers_belong_to_the_device(lane: LateLane, tmp_path: Path) -> None:
    load_model(tiny.save(tiny.make("llama"), tmp_path), placer=small(lane))
    assert {name.rpartition("_")[0] for name in lane.seen} == {"weights", "weights-read"}


def tensors_of(weight: object) -> list[Tensor]:
    if isinstance(weight, Quantised):
        return [part for part in (weight.codes, weight.scale_NG, weight.zero_NG, weight.order_K) if part is not None]
    assert isinstance(weight, Tensor)
    return [weight]


def same(files: ModelFiles, lane: LateLane, **options: Any) -> None:
    """Assert that a staged load gives what a direct one gives, bit for bit."""
    direct, staged = load_model(files, **options), load_model(files, placer=small(lane), **options)
    for one, other in zip(direct.linears, staged.linears, strict=True):
        for a, b in zip(tensors_of(one.weight), tensors_of(other.weight), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        assert (one.bias_N is None) == (other.bias_N is None)
        assert one.bias_N is None or torch.equal(one.bias_N, other.bias_N)  # type: ignore[arg-type]
    for name in ("input_norm_D", "mlp_norm_D"):
        for one, other in zip(direct.model.blocks, staged.model.blocks, strict=True):  # type: ignore[attr-defined]
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert direct.quantisation == staged.quantisation
    assert direct.weight_bytes == staged.weight_bytes
    assert lane.queued > len(direct.linears)


@pytest.mark.parametrize("family", ["llama-biased", "qwen2", "gemma3-mixed"])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_staged_model_is_the_direct_one(
    lane: LateLane, tmp_path: Path, family: str, dtype: torch.dtype | None
) -> None:
    same(tiny.save(tiny.make(family).bfloat16(), tmp_path), lane, dtype=dtype)


@pytest.mark.parametrize("family", ["qwen3-moe-mixed", "gpt-oss"])
def test_staged_experts_are_the_direct_ones(lane: LateLane, tmp_path: Path, family: str) -> None:
    files = tiny.save(tiny.make(family).bfloat16(), tmp_path)
    direct, staged = parameters(load_model(files)), parameters(load_model(files, placer=small(lane)))
    assert len(direct) == len(staged)
    assert all(torch.equal(one, other) for one, other in zip(direct, staged, strict=True))


@pytest.mark.parametrize("dequantise", [False, True])
@pytest.mark.parametrize("name", ["awq", "gptq-v2-act-order", "packed-8"])
def test_a_staged_quantised_checkpoint_is_the_direct_one(
    lane: LateLane, tmp_path: Path, name: str, dequantise: bool
) -> None:
    oracle = tiny.make("llama", hidden_size=64, intermediate_size=64, head_dim=16)
    same(quantised_maker.write(oracle, tmp_path, quantised_maker.FORMATS[name]), lane, dequantise=dequantise)


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_a_staged_gguf_file_is_the_direct_one(lane: LateLane, tmp_path: Path, kind: str) -> None:
    oracle = tiny.make("llama", hidden_size=64, intermediate_size=64, head_dim=16)
    same(gguf_maker.write(oracle, tmp_path / "m.gguf", gguf.GGMLQuantizationType[kind]), lane)


def test_weights_are_prepared_when_they_are_there(lane: LateLane, tmp_path: Path) -> None:
    files, sums = tiny.save(tiny.make("llama"), tmp_path), {}

    def prepare(linear: Linear) -> None:
        assert isinstance(linear.weight, Tensor)
        sums[id(linear)] = linear.weight.clone()

    loaded = load_model(files, placer=small(lane), prepare=prepare)
    assert len(sums) == len(loaded.linears)
    assert all(torch.equal(sums[id(one)], tensors_of(one.weight)[0]) for one in loaded.linears)


def test_main_memory_is_read_in_place() -> None:
    assert isinstance(placer_for("cpu"), HostPlacer)
    host = torch.ones(3)
    assert placer_for("cpu").put(host) is host


@pytest.mark.parametrize(("device", "told"), [("meta", "use cpu or cuda"), ("cuda:7", "no usable GPU")])
def test_a_device_that_cannot_be_is_refused(device: str, told: str) -> None:
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InferenceError, match=told):
        placer_for(device)
