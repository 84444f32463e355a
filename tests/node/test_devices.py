"""Which cores workers get, and what is told of GPUs."""

import os
import sys
import types
from pathlib import Path

import pytest

from inference_stack.core.errors import InferenceError
from inference_stack.core.stats import GpuStats
from inference_stack.node import agent, devices, spawn
from inference_stack.node.devices import CoreSet, Gpu, core_sets, gpu_ledger, gpus, host_memory
from inference_stack.node.gpus import GpuReader
from tests.node.world import world


@pytest.fixture
def six_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "own_cores", lambda: (0, 1, 2, 4, 5, 6, 7))


@pytest.mark.usefixtures("six_cores")
def test_cores_are_split_and_all_workers_have_as_many_threads() -> None:
    assert core_sets(3) == (CoreSet((0, 1, 2), 2), CoreSet((4, 5), 2), CoreSet((6, 7), 2))


@pytest.mark.usefixtures("six_cores")
def test_threads_can_be_asked_for() -> None:
    assert [one.threads for one in core_sets(2, threads=1)] == [1, 1]


@pytest.mark.usefixtures("six_cores")
def test_more_workers_than_cores_are_refused_unless_they_compute_nothing() -> None:
    with pytest.raises(InferenceError, match="8 workers do not fit on 7 cores"):
        core_sets(8)
    assert core_sets(8, pinned=False) == (CoreSet(),) * 8


def test_one_worker_may_use_every_core() -> None:
    assert core_sets(1, threads=3) == (CoreSet((), 3),)


@pytest.mark.parametrize(
    ("cores", "title"), [((), ""), ((3,), "core 3"), ((0, 1, 2), "cores 0-2"), ((0, 2), "cores 0,2")]
)
def test_sets_have_titles(cores: tuple[int, ...], title: str) -> None:
    assert CoreSet(cores).title == title


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are not chosen on this system")
def test_a_worker_is_born_on_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = os.sched_getaffinity(0), []

    class Child:
        def __init__(self, *arguments: object, **options: object) -> None:
            seen.append(os.sched_getaffinity(0))

    monkeypatch.setattr(spawn.subprocess, "Popen", Child)
    core = min(before)
    spawn.spawn("simulated", (core,)).sock.close()
    assert seen == [{core}]
    assert os.sched_getaffinity(0) == before


class FakeNvml(types.ModuleType):
    NVMLError = OSError
    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def __init__(self, driver: bool = True) -> None:
        super().__init__("fake_nvml")
        self.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
        self.driver, self.open = driver, 0
        self.busy, self.silent, self.asked = 50, set[str](), list[object]()

    def nvmlInit(self) -> None:
        if not self.driver:
            raise OSError("no driver")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return b"H200" if handle else "H100"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> types.SimpleNamespace:
        if handle and "memory" in self.silent:
            raise OSError("memory is not supported")
        return types.SimpleNamespace(total=100 + handle, free=50, used=50 + handle)

    def _answer(self, what: str, value: int) -> int:
        if what in self.silent:
            raise OSError(f"{what} is not supported")
        return value

    def nvmlDeviceGetUUID(self, handle: int) -> str | bytes:
        self._answer(f"card {handle}", 0)
        return f"GPU-{handle}".encode() if handle else "GPU-0"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(gpu=self._answer("utilisation", self.busy))

    def nvmlDeviceGetClockInfo(self, handle: int, clock: int) -> int:
        self.asked.append(("clock", clock))
        return self._answer("clock", 1980)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        self.asked.append(("temperature", sensor))
        return self._answer("temperature", 41)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return self._answer("power", 699_500)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "fake_nvml", fake)
    return fake


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "fake_nvml", nvml)
    assert gpus("fake_nvml") == (Gpu("H100", 100, 50), Gpu("H200", 101, 50))
    assert nvml.open == 0


def test_a_gpu_that_does_not_tell_its_memory_is_not_listed(nvml: FakeNvml) -> None:
    nvml.silent.add("memory")
    assert gpus("fake_nvml") == (Gpu("H100", 100, 50),)


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fake_nvml", FakeNvml(driver=False))
    assert gpus("fake_nvml") == ()


@pytest.mark.parametrize(("driver", "found"), [(True, None), (False, ())])
def test_without_the_library_a_driver_is_a_hint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: bool, found: tuple[Gpu, ...] | None
) -> None:
    monkeypatch.setattr(devices, "DRIVER", tmp_path if driver else tmp_path / "none")
    assert gpus("no_such_library") == found


def test_gpus_are_told_of_as_unused() -> None:
    ledger = gpu_ledger((Gpu("H200", 141, 140),))
    assert ledger.memory == (("GPU 0: H200: total", 141), ("GPU 0: H200: free", 140))
    assert "not used" in ledger.derived["GPU 0: H200"]
    assert "not used" not in gpu_ledger((Gpu("H200", 141, 140),), used=True).derived["GPU 0: H200"]
    assert "pip install" in gpu_ledger(None).derived["GPUs"]


def test_memory_of_the_machine_is_told() -> None:
    (_, total), (_, available) = host_memory()
    assert 0 < available <= total


def test_gpus_are_read_in_base_units(nvml: FakeNvml) -> None:
    first, second = GpuReader("fake_nvml").read()
    assert first == GpuStats(
        index=0,
        uuid="GPU-0",
        memory_used=50,
        memory_total=100,
        utilisation=0.5,
        sm_clock=1.98e9,
        temperature=41.0,
        power=699.5,
    )
    assert (second.index, second.uuid, second.memory_used) == (1, "GPU-1", 51)
    assert set(nvml.asked) == {("clock", 1), ("temperature", 0)}


def test_nvml_is_opened_once_and_again_after_it_was_closed(nvml: FakeNvml) -> None:
    reader = GpuReader("fake_nvml")
    reader.read()
    reader.read()
    assert nvml.open == 1
    reader.close()
    reader.close()
    assert nvml.open == 0
    assert reader.read()


@pytest.mark.parametrize("what", ["utilisation", "clock", "temperature", "power"])
def test_a_number_that_a_card_does_not_tell_is_left_out(nvml: FakeNvml, what: str) -> None:
    nvml.silent.add(what)
    gpu = GpuReader("fake_nvml").read()[0]
    missing = [name for name in ("utilisation", "sm_clock", "temperature", "power") if getattr(gpu, name) is None]
    assert missing == [what.replace("clock", "sm_clock")]


def test_a_card_that_does_not_answer_is_left_out(nvml: FakeNvml, caplog: pytest.LogCaptureFixture) -> None:
    nvml.silent.add("card 0")
    reader = GpuReader("fake_nvml")
    assert [gpu.index for gpu in reader.read()] == [1]
    reader.read()
    assert caplog.text.count("GPUs cannot be read") == 1


def test_a_driver_that_is_gone_is_told_once_and_tried_again(nvml: FakeNvml, caplog: pytest.LogCaptureFixture) -> None:
    reader = GpuReader("fake_nvml")
    nvml.driver = False
    assert reader.read() == reader.read() == ()
    assert caplog.text.count("no driver") == 1
    nvml.driver = True
    assert len(reader.read()) == 2


def test_a_driver_that_fails_later_is_opened_anew(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> int:
        raise OSError("the GPU is lost")

    reader = GpuReader("fake_nvml")
    reader.read()
    with monkeypatch.context() as broken:
        broken.setattr(nvml, "nvmlDeviceGetCount", lost)
        assert reader.read() == ()
    assert nvml.open == 0
    assert len(reader.read()) == 2


def test_without_the_library_nothing_is_read() -> None:
    assert GpuReader("no_such_library").read() == ()


async def test_a_node_tells_what_its_gpus_do_every_few_seconds(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: (Gpu("H200", 141, 140),))
    monkeypatch.setattr(agent, "GpuReader", lambda: GpuReader("fake_nvml"))
    async with world(monkeypatch) as scene:
        gateway = await scene.gateway(ready=0)
        state = await gateway.state(lambda state: bool(state.gpus))
        assert state.gpus[0].utilisation == 0.5
        nvml.busy = 90
        await scene.clock.pass_time(agent.GPU_SECONDS)
        state = await gateway.state(lambda state: state.gpus[0].utilisation != 0.5)
        assert state.gpus[1].utilisation == pytest.approx(0.9)


async def test_a_node_without_gpus_reads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: ())
    monkeypatch.setattr(agent, "GpuReader", lambda: pytest.fail("there is nothing to read"))
    async with world(monkeypatch) as scene:
        gateway = await scene.gateway(ready=0)
        await scene.clock.pass_time(2 * agent.GPU_SECONDS)
        assert (await gateway.state(lambda state: True)).gpus == ()


async def test_a_node_outlives_a_library_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        reads = 0

        def read(self) -> tuple[object, ...]:
            self.reads += 1
            raise TypeError("a driver of tomorrow")

    reader = Broken()
    monkeypatch.setattr(devices, "gpus", lambda: (Gpu("H200", 141, 140),))
    monkeypatch.setattr(agent, "GpuReader", lambda: reader)
    async with world(monkeypatch) as scene:
        gateway = await scene.gateway(ready=0)
        await scene.clock.pass_time(3 * agent.GPU_SECONDS)
        assert (await gateway.state(lambda state: True)).gpus == ()
    assert reader.reads == 1
