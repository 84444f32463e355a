"""`istack simulate` as a person uses it: a file in, a page and numbers out, mistakes named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inference_stack.cli.main import app
from inference_stack.core.errors import InferenceError

FLEET = """
nodes: {count: 2, cost: {linear: {base: 0.01, per_token: 0.0001}}, kv_memory: 64MiB}
kv: {layers: 4, kv_heads: 2, head_dim: 32}
engine: {max_running: 8}
workload: {kind: poisson, rate: 4, duration: 10, content: {kind: independent}}
"""


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    return path


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["simulate", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_page_and_numbers_are_written(fleet: Path) -> None:
    said = run(str(fleet), "--json", "numbers.json")
    page = Path("simulation.html").read_text()
    assert "ended well, 0 refused" in said and "TTFT" in said
    assert page.startswith("<!DOCTYPE html>") or page.startswith("<!doctype html>")
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    numbers = json.loads(Path("numbers.json").read_text())
    assert numbers["summary"]["requests"]["total"] > 20


def test_seeds_differ_and_repeat(fleet: Path) -> None:
    for seed, name in (("1", "a"), ("1", "b"), ("2", "c")):
        run(str(fleet), "--seed", seed, "--json", f"{name}.json", "--report", f"{name}.html")
    first, again, other = (json.loads(Path(f"{name}.json").read_text())["summary"]["latency"] for name in "abc")
    assert first == again != other


def test_two_fleets_are_compared(fleet: Path) -> None:
    slower = fleet.with_name("slower.yaml")
    slower.write_text(FLEET.replace("base: 0.01", "base: 0.02"))
    said = run(str(fleet), "--compare", str(slower), "--json", "n.json")
    page = Path("simulation.html").read_text()
    assert "fleet" in said and "slower" in said
    assert "fleet" in page and "slower" in page
    assert Path("n-fleet.json").exists() and Path("n-slower.json").exists()


def test_the_smallest_fleet_is_found(fleet: Path) -> None:
    said = run(str(fleet), "--find", "ttft_p95=0.35,share=0.99", "--most", "16")
    assert "4 nodes: meets it" in said and "\n3 nodes" in said and Path("simulation.html").exists()


def test_an_slo_out_of_reach_is_said_so(fleet: Path) -> None:
    done = CliRunner().invoke(app, ["simulate", str(fleet), "--find", "itl_p50=0.001", "--most", "2"])
    assert done.exit_code == 1
    assert "no fleet of up to 2 nodes meets it" in done.output


def test_a_run_that_is_cut_short_says_so(fleet: Path) -> None:
    run(str(fleet), "--until", "3")
    assert "partial" in Path("simulation.html").read_text().lower()


def test_ctrl_c_gives_the_partial_report(fleet: Path) -> None:
    fleet.write_text(FLEET.replace("duration: 10", "duration: 1000000"))
    command = [sys.executable, "-c", "from inference_stack.cli.main import main; main()", "simulate", str(fleet)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    time.sleep(4)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 0, said
    assert "partial" in Path("simulation.html").read_text().lower()


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("workload:", "workloads:", "workload"),
        ("max_running: 8", "max_runing: 8", "max_running"),
        ("kind: poisson", "kind: poison", "kind"),
        ("kv_memory: 64MiB", "kv_memory: lots", "kv_memory"),
        (", kv_memory: 64MiB", "", "kv_memory"),
        ("kv: {layers: 4, kv_heads: 2, head_dim: 32}", "", "kv"),
        ("linear: {base: 0.01, per_token: 0.0001}", "hardware: h900, model: llama-3.1-8b", "h100"),
    ],
)
def test_a_mistake_is_named(fleet: Path, before: str, after: str, named: str) -> None:
    assert before in FLEET
    fleet.write_text(FLEET.replace(before, after))
    with pytest.raises(InferenceError, match=named):
        CliRunner().invoke(app, ["simulate", str(fleet)], catch_exceptions=False)
