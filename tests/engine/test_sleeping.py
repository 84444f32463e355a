"""Weights that leave a device and come back: to the same addresses, whole, or not at all.

The driver here manages main memory, keeps account of every call, and overwrites memory that is given back.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from inference_stack.core.errors import InferenceError
from inference_stack.core.request import Continuation, Request, SamplingParams
from inference_stack.core.seams import SystemClock
from inference_stack.engine import sleeping
from inference_stack.engine.core import EngineCore, Instance
from inference_stack.engine.cuda_driver import CudaDriver, DriverError
from inference_stack.engine.extent import ALIGNMENT, Extent
from inference_stack.engine.sleeping import Sleeper, sleeper_for
from inference_stack.models.api import LoadedModel
from inference_stack.models.config import config_from_hf
from inference_stack.models.parameters import parameters
from inference_stack.models.random_weights import load_random
from tests.models import tiny
from tests.models.paged import PagedModel
from tests.models.reference import ops

STEP = 4096
GONE = 0xDD


class HostDriver:
    """A `Driver` over main memory, of which there are `left` bytes."""

    def __init__(self, left: int = 1 << 30) -> None:
        self.left = left
        self.calls: list[tuple[Any, ...]] = []
        self.reserved: dict[int, tuple[int, mmap.mmap]] = {}
        self.handles: dict[int, int] = {}
        self.mapped: dict[int, tuple[int, int]] = {}
        self.fails: dict[str, int] = {}

    def _note(self, name: str, *arguments: int) -> None:
        self.calls.append((name, *arguments))
        self.fails[name] = self.fails.get(name, 0) - 1
        if self.fails[name] == 0:
            raise DriverError(name, 999, "CUDA_ERROR_UNKNOWN")

    def granularity(self) -> int:
        return STEP

    def reserve(self, nbytes: int) -> int:
        self._note("reserve", nbytes)
        assert nbytes % STEP == 0
        memory = mmap.mmap(-1, nbytes)
        address = ctypes.addressof(ctypes.c_ubyte.from_buffer(memory))
        self.reserved[address] = (nbytes, memory)
        return address

    def free(self, address: int, nbytes: int) -> None:
        self._note("free", address, nbytes)
        assert self.reserved.pop(address)[0] == nbytes
        assert not self.mapped

    def create(self, nbytes: int) -> int:
        self._note("create", nbytes)
        assert nbytes % STEP == 0
        if nbytes > self.left:
            raise DriverError("create", 2, "CUDA_ERROR_OUT_OF_MEMORY")
        self.left -= nbytes
        self.handles[handle := len(self.calls)] = nbytes
        return handle

    def release(self, handle: int) -> None:
        self._note("release", handle)
        nbytes = self.handles.pop(handle)
        if handle not in [used for _, used in self.mapped.values()]:
            self.left += nbytes

    def map(self, address: int, nbytes: int, handle: int) -> None:
        self._note("map", address, nbytes, handle)
        assert self.handles[handle] == nbytes
        assert address not in self.mapped
        self.mapped[address] = (nbytes, handle)

    def allow(self, address: int, nbytes: int) -> None:
        self._note("allow", address, nbytes)
        assert self.mapped[address][0] == nbytes

    def unmap(self, address: int, nbytes: int) -> None:
        self._note("unmap", address, nbytes)
        assert self.mapped[address][0] == nbytes, "only whole mappings can be taken away"
        _, handle = self.mapped.pop(address)
        ctypes.memset(address, GONE, nbytes)
        if handle not in self.handles:
            self.left += nbytes

    def holds(self, address: int, nbytes: int) -> bool:
        return any(first <= address and address + nbytes <= first + size for first, (size, _) in self.mapped.items())


class HostMemory:
    """A `Memory` over that driver, whose copies happen when somebody waits for them."""

    device = torch.device("cpu")

    driver: Any  # a HostDriver; the protocol has it as a `Driver`

    def __init__(self, driver: HostDriver) -> None:
        self.driver = driver
        self.queued: list[tuple[Tensor, Tensor]] = []
        self.ahead: list[int] = []
        self.pinned_left, self.trimmed, self.trim_frees = 1 << 30, 0, 0

    def tensor(self, address: int, nbytes: int) -> Tensor:
        last = address + nbytes - 1
        start = min(self.driver.reserved)
        self.ahead.append(sum(size for size, _ in self.driver.mapped.values()) - (last + 1 - start))
        assert any(first <= address < first + size for first, (size, _) in self.driver.mapped.items())
        assert any(first <= last < first + size for first, (size, _) in self.driver.mapped.items())
        return torch.frombuffer((ctypes.c_ubyte * nbytes).from_address(address), dtype=torch.uint8)

    def pinned(self, nbytes: int) -> Tensor:
        if nbytes > self.pinned_left:
            raise RuntimeError("CUDA error: out of memory")
        self.pinned_left -= nbytes
        return torch.zeros(nbytes, dtype=torch.uint8)

    def copy(self, out: Tensor, source: Tensor) -> None:
        self.queued.append((out, source))

    def settle(self) -> None:
        for out, source in self.queued:
            out.copy_(source)
        self.queued.clear()

    def trim(self) -> None:
        self.trimmed += 1
        self.driver.left += self.trim_frees


@pytest.fixture
def driver() -> HostDriver:
    return HostDriver()


@pytest.fixture
def memory(driver: HostDriver) -> HostMemory:
    return HostMemory(driver)


@pytest.fixture
def loaded() -> LoadedModel:
    oracle = tiny.make("qwen2")
    config = config_from_hf(oracle.config.to_dict() | {"architectures": ["Qwen2ForCausalLM"]})
    return load_random(config, torch.float32)


def asleep(loaded: LoadedModel, memory: HostMemory, **options: Any) -> Sleeper:
    return Sleeper(loaded, memory, piece_bytes=3 * STEP, **options)


def values(loaded: LoadedModel) -> list[Tensor]:
    return [one.clone() for one in parameters(loaded)]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) > 0 and all(
        torch.equal(one, other) for one, other in zip(some, others, strict=True)
    )


def logits(loaded: LoadedModel) -> Tensor:
    """Packs the weights for the CPU, so that they are no tensors any more."""
    return PagedModel(loaded.model, ops(), rows=1, max_tokens=32).step([tiny.tokens(12, seed=1)])


def test_weights_move_into_one_extent_and_compute_the_same(loaded: LoadedModel, memory: HostMemory) -> None:
    plain = logits(load_random(loaded.model.config, torch.float32))  # type: ignore[attr-defined]
    sleeper = asleep(loaded, memory)
    sleeper.sleep()
    sleeper.wake()
    everything = parameters(loaded)
    first, last = sleeper._extent.address, sleeper._extent.address + sleeper.nbytes
    assert all(first <= tensor.data_ptr() < last and tensor.data_ptr() % 64 == 0 for tensor in everything)
    assert torch.equal(logits(loaded), plain)


def test_sleep_gives_the_memory_back_and_wake_brings_all_of_it_to_the_same_place(
    loaded: LoadedModel, memory: HostMemory
) -> None:
    total, sleeper = memory.driver.left, asleep(loaded, memory)
    everything, before = parameters(loaded), values(loaded)
    places = [one.data_ptr() for one in everything]
    assert sleeper.sleep() == sleeper.nbytes
    assert memory.driver.left == total
    assert not any(torch.equal(one, value) for one, value in zip(everything, before, strict=True))
    sleeper.wake()
    assert [one.data_ptr() for one in everything] == places
    assert same(values(loaded), before)
    assert memory.driver.left == total - sleeper.nbytes


def test_sleep_and_wake_twice_are_the_same_as_once(loaded: LoadedModel, memory: HostMemory) -> None:
    sleeper = asleep(loaded, memory)
    sleeper.wake()
    sleeper.sleep()
    assert sleeper.sleep() == 0
    sleeper.wake()
    sleeper.wake()
    assert not sleeper.asleep


@pytest.mark.parametrize("keep_copy", [True, False])
def test_the_copy_is_made_once_if_it_is_kept(loaded: LoadedModel, memory: HostMemory, keep_copy: bool) -> None:
    sleeper, room = asleep(loaded, memory, keep_copy=keep_copy), memory.pinned_left
    before = values(loaded)
    for _ in range(2):
        sleeper.sleep()
        sleeper.wake()
    assert room - memory.pinned_left == sleeper.nbytes * (1 if keep_copy else 2)
    assert same(values(loaded), before)


def test_shared_memory_stays_shared(memory: HostMemory) -> None:
    whole = torch.arange(12.0).view(3, 4)
    holder = model_of(SimpleNamespace(whole=whole, rows=whole[1:], turned=whole.t()))
    Sleeper(holder, memory)
    whole[1, 2] = 99.0
    parts: Any = holder.model
    assert parts.rows[0, 2] == 99.0 == parts.turned[2, 1]
    assert parts.turned.stride() == (1, 4)


def model_of(model: object) -> LoadedModel:
    kept: Any = model
    return LoadedModel(
        model=kept, architecture="", revision="", quantisation="", weight_bytes=0, eos_tokens=(), linears=()
    )


def test_tensors_of_inference_mode_move_too(memory: HostMemory) -> None:
    with torch.inference_mode():
        weight = torch.ones(5)
    sleeper = Sleeper(model_of([weight]), memory)
    sleeper.sleep()
    sleeper.wake()
    assert weight.tolist() == [1.0] * 5


def test_weights_are_never_on_the_device_twice(
    loaded: LoadedModel, memory: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleeping, "TRIM_BYTES", 10 * STEP)
    sleeper = asleep(loaded, memory)
    assert all(ahead < 3 * STEP for ahead in memory.ahead)
    assert memory.trimmed > sleeper.nbytes // (20 * STEP)


def test_memory_is_mapped_in_pieces_of_whole_granules(driver: HostDriver) -> None:
    extent = Extent(driver, 7 * STEP - 5, piece_bytes=2 * STEP + 1)
    assert extent.nbytes == 7 * STEP
    first, second = extent.take(1), extent.take(3 * STEP)
    assert second - first == ALIGNMENT
    assert [call[1] for call in driver.calls if call[0] == "create"] == [3 * STEP, 3 * STEP]
    extent.take(3 * STEP)
    assert [size for _, size in extent.pieces()] == [3 * STEP, 3 * STEP, STEP]
    with pytest.raises(ValueError, match="do not fit"):
        extent.take(STEP)


def test_every_piece_is_created_mapped_allowed_and_let_go_in_this_order(driver: HostDriver) -> None:
    extent = Extent(driver, STEP)
    extent.take(10)
    extent.close()
    extent.close()
    order = ["reserve", "create", "map", "allow", "release", "unmap", "free"]
    assert [call[0] for call in driver.calls] == order
    assert not driver.handles and not driver.mapped and not driver.reserved


@pytest.mark.parametrize("call", ["create", "map", "allow"])
def test_a_piece_that_cannot_be_made_leaves_nothing_behind(driver: HostDriver, call: str) -> None:
    extent, left = Extent(driver, STEP), driver.left
    driver.fails[call] = 1
    with pytest.raises(DriverError, match=call):
        extent.take(10)
    assert not driver.handles and not driver.mapped
    assert driver.left == left
    assert extent.take(10) == extent.address


def test_too_little_memory_on_waking_is_a_typed_error_and_the_model_sleeps_on(
    loaded: LoadedModel, memory: HostMemory
) -> None:
    sleeper, before = asleep(loaded, memory), values(loaded)
    sleeper.sleep()
    missing = memory.driver.left - (sleeper.nbytes - 4 * STEP)
    memory.driver.left -= missing
    with pytest.raises(InferenceError, match="cannot be woken") as caught:
        sleeper.wake()
    assert caught.value.info.code == "out_of_memory"
    assert sleeper.asleep and not memory.driver.mapped
    memory.driver.left += missing
    sleeper.wake()
    assert same(values(loaded), before)


def test_waking_takes_what_torch_only_keeps(loaded: LoadedModel, memory: HostMemory) -> None:
    sleeper, before = asleep(loaded, memory), values(loaded)
    sleeper.sleep()
    trimmed, memory.trim_frees, memory.driver.left = memory.trimmed, memory.driver.left, 0
    sleeper.wake()
    assert memory.trimmed == trimmed + 1
    assert same(values(loaded), before)


@pytest.mark.parametrize("call", ["create", "map", "allow"])
def test_a_driver_that_fails_on_waking_leaves_the_model_asleep(
    loaded: LoadedModel, memory: HostMemory, call: str
) -> None:
    sleeper, before = asleep(loaded, memory), values(loaded)
    sleeper.sleep()
    memory.driver.fails[call] = 3
    with pytest.raises(InferenceError, match="CUDA_ERROR_UNKNOWN") as caught:
        sleeper.wake()
    assert caught.value.info.code == "device_error"
    assert sleeper.asleep and not memory.driver.mapped and not memory.driver.handles
    sleeper.wake()
    assert same(values(loaded), before)


def test_a_driver_that_fails_on_sleeping_is_slept_through(loaded: LoadedModel, memory: HostMemory) -> None:
    sleeper, before = asleep(loaded, memory), values(loaded)
    memory.driver.fails["unmap"] = 3
    with pytest.raises(InferenceError, match="cannot be given back"):
        sleeper.sleep()
    assert sleeper.asleep
    sleeper.wake()
    assert same(values(loaded), before)


def test_too_little_host_memory_leaves_the_model_awake(loaded: LoadedModel, memory: HostMemory) -> None:
    sleeper, before = asleep(loaded, memory), values(loaded)
    memory.pinned_left = 7 * STEP
    with pytest.raises(InferenceError, match="host has no room"):
        sleeper.sleep()
    assert not sleeper.asleep
    assert same(values(loaded), before)


def test_a_device_without_room_to_move_says_so_and_the_model_still_computes(
    loaded: LoadedModel, memory: HostMemory
) -> None:
    before = values(loaded)
    memory.driver.left = 20 * STEP
    assert sum(one.nbytes for one in before) > memory.driver.left
    with pytest.raises(InferenceError, match="cannot be moved") as caught:
        asleep(loaded, memory)
    assert caught.value.info.code == "out_of_memory"
    assert same(values(loaded), before)


def test_closing_gives_everything_back(loaded: LoadedModel, memory: HostMemory) -> None:
    total, sleeper = memory.driver.left, asleep(loaded, memory)
    sleeper.sleep()
    sleeper.close()
    assert memory.driver.left == total
    assert not memory.driver.reserved


def test_weights_in_main_memory_cannot_sleep(loaded: LoadedModel) -> None:
    with pytest.raises(InferenceError, match="cannot sleep"):
        sleeper_for(loaded, torch.device("cpu"))


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: object) -> None:
        self.a = a

    def method(self) -> None: ...


def test_tensors_are_found_wherever_they_are() -> None:
    one, two, three, four, five = (torch.ones(1) for _ in range(5))
    thing = [Slotted(one), {"x": (two, one)}, lambda: three, partial(print, four), Slotted([five]).method]
    thing.append(thing)
    assert [id(tensor) for tensor in parameters(thing)] == [id(tensor) for tensor in (one, two, three, four, five)]


class FakeCuda:
    """libcuda, as ctypes shows it: functions that note what they were given."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            if name == "cuGetErrorName":
                arguments[1]._obj.value = b"CUDA_ERROR_OUT_OF_MEMORY"
                return 0
            self.calls.append((name, arguments))
            if name == "cuMemCreate":
                properties = arguments[2]._obj
                self.calls.append(
                    (properties.type, properties.location.type, properties.location.id, properties.flags.usage)
                )
                arguments[0]._obj.value = 77
            return self.code

        self.__dict__[name] = function
        return function


def test_memory_is_asked_for_on_the_device_of_this_number() -> None:
    library = FakeCuda()
    assert CudaDriver(3, library).create(STEP) == 77
    assert library.calls[1] == (1, 1, 3, 0)


def test_a_failing_call_is_named() -> None:
    with pytest.raises(DriverError, match=r"cuMemMap failed: CUDA_ERROR_OUT_OF_MEMORY \(2\)") as caught:
        CudaDriver(0, FakeCuda(2)).map(0, STEP, 1)
    assert caught.value.out_of_memory


def test_structures_have_the_sizes_of_the_header() -> None:
    driver = CudaDriver(0, FakeCuda())
    assert ctypes.sizeof(driver._properties) == 32
    assert ctypes.sizeof(driver._access) == 12
    assert (type(driver._properties).location.offset, type(driver._properties).flags.offset) == (8, 24)


class Quiet:
    """A scheduler and a runner that have something to do, or not."""

    has_work = False

    def add(self, request: Request, now: float) -> None:
        self.has_work = True


def request() -> Request:
    return Request(id="r", model="m", continuation=Continuation(prompt=(1, 2), params=SamplingParams(), seed=1))


def instance(sleeper: Any) -> Instance:
    quiet: Any = Quiet()
    return Instance("m", 97, quiet, quiet, sleeper=sleeper)


def test_an_instance_sleeps_and_wakes(loaded: LoadedModel, memory: HostMemory) -> None:
    served = instance(asleep(loaded, memory))
    assert not served.asleep
    assert served.sleep() == memory.driver.reserved[min(memory.driver.reserved)][0]
    assert served.asleep
    served.wake()
    assert not served.asleep


def test_an_instance_that_works_does_not_sleep(loaded: LoadedModel, memory: HostMemory) -> None:
    served = instance(asleep(loaded, memory))
    served.scheduler.has_work = True  # type: ignore[misc]
    with pytest.raises(InferenceError, match="m is working"):
        served.sleep()
    assert not served.asleep


def test_an_instance_that_cannot_sleep_says_so() -> None:
    served = instance(None)
    for call in (served.sleep, served.wake):
        with pytest.raises(InferenceError, match="m cannot sleep"):
            call()
    assert not served.asleep


def test_requests_for_a_sleeping_model_are_refused(loaded: LoadedModel, memory: HostMemory) -> None:
    served = instance(asleep(loaded, memory))
    served.sleep()
    core = EngineCore([served], SystemClock())
    core.add(request())
    (delta,) = core.step()
    assert delta.error is not None and delta.error.status == 503
    assert "m sleeps" in delta.error.message
    served.wake()
    core.add(request())
    assert served.busy
