"""Which cores workers get, and what is told of GPUs."""

import os
import sys
import types
from pathlib import Path

import pytest

from inference_stack.core.errors import InferenceError
from inference_stack.node import devices, spawn
from inference_stack.node.devices import CoreSet, Gpu, core_sets, gpu_ledger, gpus, host_memory


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

    def __init__(self, driver: bool = True) -> None:
        super().__init__("fake_nvml")
        self.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
        self.driver, self.open = driver, 0

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
        return types.SimpleNamespace(total=100 + handle, free=50)


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "fake_nvml", nvml)
    assert gpus("fake_nvml") == (Gpu("H100", 100, 50), Gpu("H200", 101, 50))
    assert nvml.open == 0


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
    assert "pip install" in gpu_ledger(None).derived["GPUs"]


def test_memory_of_the_machine_is_told() -> None:
    (_, total), (_, available) = host_memory()
    assert 0 < available <= total
