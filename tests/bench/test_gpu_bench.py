"""The measurements for cards, run end to end on a CPU with the smallest sizes, and the arithmetic in them."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.gpu import peer, plots, tune
from bench.gpu.__main__ import main
from bench.gpu.bound import Bench
from bench.gpu.check_linear import Sides
from bench.gpu.house import open_house, request, words, write_config
from bench.gpu.limits import Ceilings, Form, Limits
from bench.gpu.load import Load, online, quantile
from bench.gpu.place import Place, bounded
from bench.gpu.report import Budget, Report, table
from bench.gpu.serving import ORDINARY
from bench.gpu.shapes import kind
from bench.gpu.timing import MOST_SETS, cached, sets_for, summary, timed
from bench.gpu.watched import Timed, idle_share, timed_steps, watch

from inference_stack.models.config import config_from_hf
from inference_stack.ops.facade import BoundOps
from inference_stack.ops.humming import wheel as humming

CPU = Place(torch.device("cpu"), tiny=True)
SETTINGS: dict[str, Any] = {"max_running": 4, "max_model_len": 64, "kv_memory": "4MiB", "max_batch_tokens": 32}


def run(command: str, out: Path, *more: str) -> dict[str, Any]:
    assert main([command, "--device", "cpu", "--tiny", "--out", str(out), *more]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_the_probe_finds_ceilings(tmp_path: Path) -> None:
    found = run("probe", tmp_path / "probe.json")
    assert all(found["ceilings"][name] > 0 for name in ("bandwidth", "products"))
    assert {"copy (read and written)", "read (sum)"} <= set(found["probe"])
    assert [one["what"] for one in found["skipped"]] == ["fp8 product"]


def test_an_engine_is_measured_beside_its_limit(tmp_path: Path) -> None:
    found = run("engine", tmp_path / "engine.json", "--kernels", "reference", "--models", "qwen2.5-7b-w4g128")
    measured = found["models"]["qwen2.5-7b-w4g128"]["measured"]
    assert {"decode, batch 1", "prompt of 40", "mixed", "all at once", "as people send", "sleep"} <= set(measured)
    filtered = {name: one for name, one in measured.items() if "top_p 0.9, top_k 40" in name}
    assert [one["batch"] for one in filtered.values()] == [1, 3]
    assert all(one["sampling"] == ORDINARY for one in filtered.values())
    assert all(one["idle"] < 1 for name, one in measured.items() if name.startswith("decode"))
    for name, one in measured.items():
        assert "error" not in one, (name, one)
        if name != "sleep":
            assert one["tokens_per_s"] > 0
            assert 0 < one["ratio"] < 1
    assert found["models"]["qwen2.5-7b-w4g128"]["start"]["seconds"] > 0


def test_what_is_taken_only_by_name_is_measured_where_it_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report("ops", CPU, [], tmp_path / "ops.json")
    meter = tune.Meter(Bench(CPU, "triton", torch.float16), report, Budget(1.0), Ceilings(bandwidth=1e9, products=1e9))
    tune._named(meter, tune._linear, "linear", "humming")
    [skipped] = report.data["skipped"]
    assert skipped["what"] == "linear by humming" and "it runs on NVIDIA GPUs" in skipped["why"]
    monkeypatch.setattr(humming, "ROOT", "tests.ops.triton.fake_humming")
    monkeypatch.setattr(humming, "refuses_card", lambda *_: None)
    monkeypatch.setattr(tune, "Sides", lambda outputs, inputs: Sides(128, 128))
    tune._named(meter, tune._linear, "linear", "humming")
    assert set(report.data["ops"]) == {f"out 128×128, w4, humming, {rows} rows" for rows in (1, 3)}


def test_single_ops_are_measured(tmp_path: Path) -> None:
    found = run("ops", tmp_path / "ops.json", "--kernels", "reference")
    assert found["skipped"] == []
    for family in ("attention", "out 48×64", "experts", "rmsnorm", "sample top-p"):
        assert any(name.startswith(family) and one["ratio"] > 0 for name, one in found["ops"].items())


def test_without_peers_the_result_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "missing", lambda *names: f"{names[0]} is not here" if names else None)
    monkeypatch.setattr(peer, "apart", lambda given, seconds, tell: main(given))
    found = run("peer", tmp_path / "peer.json", "--kernels", "reference")
    assert [one["what"] for one in found["skipped"]] == ["transformers", "vllm"]
    assert found["ratios"] == {}
    assert list(found["engines"]) == ["ours"]


def test_ratios_are_ours_over_theirs(tmp_path: Path) -> None:
    report = Report("peer", CPU, [], tmp_path / "x.json")
    one = {"seconds": 2.0, "tokens_per_s": 1.0}
    slower = {"seconds": 3.0, "tokens_per_s": 1.0}
    peer._ratios(report, {"ours": {"scenarios": {"a": one}}, "vllm": {"scenarios": {"a": slower, "b": one}}})
    assert report.data["ratios"] == {"vllm": {"a": 1.5}}


@pytest.mark.slow
def test_transformers_is_a_peer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    found = peer.run_engine(CPU, "transformers", "llama-3.1-8b", {})
    assert all(one["tokens_per_s"] > 0 for one in found["scenarios"].values())


def test_pictures_show_every_ratio(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = {
        "machine": {"card": "a card", "date": "2026-01-01"},
        "models": {"m": {"measured": {"decode": {"ratio": 0.8}, "sleep": {}}}, "broken": {"error": "x"}},
        "ops": {"attention": {"ratio": 0.9, "cached": False}, "rmsnorm": {"ratio": 1.2, "cached": True}},
        "ratios": {"vllm": {"a": 1.1}},
    }
    assert plots.bars_of(result) == {
        "m": [("decode", 0.8)],
        "ops": [("attention", 0.9), ("rmsnorm, cached", 1.2)],
        "beside vllm": [("a", 1.1)],
    }
    path = tmp_path / "r.json"
    path.write_text(json.dumps(result))
    assert [made.name for made in plots.draw(path, tmp_path)] == ["r-m.png", "r-ops.png", "r-beside-vllm.png"]
    assert all(made.stat().st_size > 1000 for made in tmp_path.glob("*.png"))


def test_the_floor_is_that_of_the_steps_that_ran(tmp_path: Path) -> None:
    raw = kind("llama")
    house = open_house(CPU, write_config(raw, tmp_path / "m"), "reference", **SETTINGS)
    watched, limits = watch(house), Limits(config_from_hf(raw), Form(), Ceilings(bandwidth=1e9, products=1e12))
    house.run([request(house, words(40, 331), "r", max_tokens=3)])
    queries = [step[1].tolist() for step in watched.steps]
    assert queries == [[32], [8], [1], [1]]
    from bench.gpu.limits import Row

    wanted = [Row(32, 32, 0), Row(8, 40, 1), Row(1, 41, 1), Row(1, 42, 1)]
    assert watched.floor(limits) == pytest.approx(sum(limits.step([row]) for row in wanted))


def test_tokens_of_timed_steps_are_counted(tmp_path: Path) -> None:
    house = open_house(CPU, write_config(kind("llama"), tmp_path / "m"), "reference", **SETTINGS)
    watched = watch(house)
    limits = Limits(config_from_hf(kind("llama")), Form(), Ceilings(bandwidth=1e9, products=1e12))
    for name in "ab":
        house.add(request(house, words(8, 331), name, max_tokens=40))
    for _ in range(4):
        house.step()
    since = len(watched.steps)
    parts = timed_steps(house, watched, limits, 5, 2)
    assert [(part.steps, part.tokens) for part in parts] == [(5, 10), (5, 10)]
    assert sum(part.floor for part in parts) == pytest.approx(watched.floor(limits, since))
    assert sum(part.worked for part in parts) == pytest.approx(sum(watched.seconds[-10:]))
    house.drain()
    assert not house.core.has_work


def test_nothing_is_done_between_parts_of_timed_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = open_house(CPU, write_config(kind("llama"), tmp_path / "m"), "reference", **SETTINGS)
    watched = watch(house)
    retired: list[int] = []

    def counted(*given: object) -> float:
        retired.append(len(watched.seconds))
        return 1.0

    monkeypatch.setattr(watched, "floor", counted)
    house.add(request(house, words(8, 331), "a", max_tokens=40))
    house.step()
    limits = Limits(config_from_hf(kind("llama")), Form(), Ceilings(bandwidth=1e9, products=1e12))
    timed_steps(house, watched, limits, 3, 2)
    assert retired == [len(watched.seconds)] * 2
    house.drain()


def test_a_failing_request_ends_a_load(tmp_path: Path) -> None:
    house = open_house(CPU, write_config(kind("llama"), tmp_path / "m"), "reference", **SETTINGS)
    with pytest.raises(RuntimeError, match="1 requests failed"):
        online(house, Load(requests=1, rate=float("inf"), prompt=(200.0, 0.01), most=400), 331)


def test_loads_are_the_same_every_time_and_have_their_medians() -> None:
    load = Load(requests=400, rate=10.0)
    assert load.lengths() == load.lengths()
    assert 90 < quantile([prompt for prompt, _ in load.lengths()], 0.5) < 130
    assert load.arrivals()[0] == 0.0
    assert load.arrivals() == sorted(load.arrivals())
    assert 8 < 400 / load.arrivals()[-1] < 12
    assert set(Load(requests=3, rate=float("inf")).arrivals()) == {0.0}


def test_what_does_not_fit_is_skipped_and_said_to_be(tmp_path: Path) -> None:
    report = Report("x", CPU, [], tmp_path / "x.json")
    budget = Budget(0.01)
    assert budget.fits(report, "short", 0.1)
    assert not budget.fits(report, "long", 60.0)
    assert [one["what"] for one in json.loads(report.path.read_text())["skipped"]] == ["long"]


def test_a_report_is_strict_json_whatever_was_measured(tmp_path: Path) -> None:
    report = Report("x", CPU, ["x"], tmp_path / "x.json")
    report.put("found", {"a": float("inf"), "b": [float("nan")]})
    assert json.loads(report.path.read_text())["found"] == {"a": "inf", "b": ["nan"]}
    assert table([["a", "b"], ["long", "c"]]).splitlines() == ["a     b", "long  c"]


def test_the_middle_and_the_spread_of_runs() -> None:
    found = summary([5.0, 1.0, 3.0, 2.0, 100.0])
    assert (found.seconds, found.low, found.high, found.runs) == (3.0, 1.0, 100.0, 5)


def test_inputs_take_turns() -> None:
    seen: list[int] = []
    timed(seen.append, CPU, turns=2)
    assert set(seen) == {0, 1}
    assert sets_for(1, CPU) == 2


@pytest.mark.parametrize("nbytes", [4 << 20, 8 << 20, 33 << 20, 512 << 20])
def test_inputs_of_megabytes_are_not_found_in_the_cache(nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Place(torch.device("cuda"))
    monkeypatch.setattr(Place, "cache_bytes", 50 << 20)
    assert not cached(sets_for(nbytes, card) * nbytes, card)
    assert cached(MOST_SETS * 100_000, card)


def test_what_was_read_from_a_cache_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--kernels", "reference", "--only", "rows"
    assert not any(one["cached"] for one in run("ops", tmp_path / "a.json", *arguments)["ops"].values())
    assert "cached" not in capsys.readouterr().out
    monkeypatch.setattr(Place, "cache_bytes", 1 << 40)
    found = run("ops", tmp_path / "b.json", *arguments)["ops"]
    assert all(one["cached"] for one in found.values())
    assert capsys.readouterr().out.rpartition("op  ")[2].count("  cached\n") == len(found)


def test_the_device_is_idle_between_steps_only() -> None:
    parts = [Timed(seconds=2.0, worked=1.9, steps=4, tokens=4, floor=1.0), Timed(2.0, 2.0, 4, 4, 1.0)]
    assert idle_share(parts) == pytest.approx(0.025)


def test_attention_is_recorded_with_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: dict[str, set[int]] = {}
    layers: dict[str, set[int]] = {}
    right, time = BoundOps.attend, tune.Meter.time

    def attend(self: BoundOps, q: Any, kv: Any, step: Any, *rest: Any) -> Any:
        steps[asked[0]].add(id(step))
        layers[asked[0]].add(kv.offset_bytes)
        return right(self, q, kv, step, *rest)

    def noted(self: tune.Meter, name: str, *rest: Any, **more: Any) -> None:
        asked[:], steps[name], layers[name] = [name], set(), set()
        time(self, name, *rest, **more)

    asked: list[str] = []
    monkeypatch.setattr(BoundOps, "attend", attend)
    monkeypatch.setattr(tune.Meter, "time", noted)
    run("ops", tmp_path / "ops.json", "--kernels", "reference", "--only", "attention")
    assert len(steps) > 2
    assert {len(seen) for seen in steps.values()} == {1}
    assert {len(seen) for name, seen in layers.items() if "of a prompt" not in name} == {2}


FAMILY = """
import subprocess, sys, time
grandchild = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
held = open(sys.argv[1], "w")
subprocess.Popen([sys.executable, "-c", grandchild, sys.argv[2]], stdout=held)
if sys.argv[3] == "stays":
    time.sleep(600)
while not __import__("os").path.exists(sys.argv[2]):
    time.sleep(0.01)
sys.exit(7)
"""


@pytest.mark.parametrize(("child", "status"), [("stays", None), ("ends", 7)])
def test_what_a_command_started_ends_with_it(child: str, status: int | None, tmp_path: Path) -> None:
    held, ready = tmp_path / "held", tmp_path / "ready"
    os.mkfifo(held)
    reader = os.open(held, os.O_RDONLY | os.O_NONBLOCK)
    stop: Callable[[], bool] = ready.exists if child == "stays" else lambda: False
    assert bounded([sys.executable, "-c", FAMILY, str(held), str(ready), child], 100.0, stop) == status
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""  # only when neither of them is left to hold the other end
    os.close(reader)


def test_a_command_has_so_long_and_no_longer() -> None:
    assert bounded([sys.executable, "-c", "import time; time.sleep(600)"], 0.1) is None


def test_an_unknown_name_is_refused() -> None:
    for arguments in (["engine", "--models", "gpt-9"], ["check", "--sections", "luck"], ["ops", "--only", "luck"]):
        with pytest.raises(SystemExit, match="no "):
            main([*arguments, "--device", "cpu", "--tiny"])


def test_help_is_there_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    told = capsys.readouterr().out
    assert all(command in told for command in ("probe", "check", "weights", "ops", "engine", "peer", "plots"))
