"""The checks for cards, run on a CPU: they pass what is right, and notice what is not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.gpu.__main__ import main
from bench.gpu.bound import Bench
from bench.gpu.check import SECTIONS, run_section
from bench.gpu.findings import Findings, relative
from bench.gpu.place import Place

from inference_stack.ops.api import Linear
from inference_stack.ops.facade import BoundOps

CPU = Place(torch.device("cpu"), tiny=True)
ROOT = Path(__file__).parents[2]
BLOCKED = (
    "msgspec",
    "httpx",
    "yaml",
    "typer",
    "rich",
    "starlette",
    "prometheus_client",
    "psutil",
    "grpc",
    "pydantic",
    "zmq",
)


@pytest.mark.parametrize("name", sorted(set(SECTIONS) - {"engine"}))
def test_a_section_passes_on_the_reference(name: str) -> None:
    found = run_section(CPU, name, "reference", None)
    assert len(found) > 5
    assert [one for one in found if not one["ok"]] == []


def test_check_passes_on_an_engine_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    arguments = [
        "check",
        "--device",
        "cpu",
        "--tiny",
        "--kernels",
        "reference",
        "--sections",
        "engine",
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    written = json.loads(out.read_text())
    assert written["failed"] == 0
    assert written["checked"] > 5
    assert set(written["machine"]) >= {"date", "versions", "card", "command", "commit"}
    assert "check --device cpu" in written["machine"]["command"]


def _spoil(monkeypatch: pytest.MonkeyPatch, op: str, wrong: Any) -> None:
    right = getattr(BoundOps, op)
    monkeypatch.setattr(BoundOps, op, lambda self, *given: wrong(right(self, *given)))


def _unwritten(x: torch.Tensor) -> torch.Tensor:
    x[-1, -1] = torch.nan
    return x


@pytest.mark.parametrize(
    ("section", "op", "wrong"),
    [
        ("rows", "rmsnorm", lambda x: x * 1.02),
        ("rows", "act_mul", _unwritten),
        ("rows", "select", lambda x: x.roll(1, 0)),
        ("rope", "rope_store", lambda q: -q),
        ("attention", "attend", lambda o: o.roll(1, -1)),
        ("linear", "linear", lambda y: y + 0.1),
        ("experts", "experts", _unwritten),
        ("models", "attend", lambda o: o * 0.8),
    ],
)
def test_a_wrong_op_is_found(monkeypatch: pytest.MonkeyPatch, section: str, op: str, wrong: Any) -> None:
    _spoil(monkeypatch, op, wrong)
    assert [one for one in run_section(CPU, section, "reference", None) if not one["ok"]]


def test_a_wrong_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    right = BoundOps.sample
    monkeypatch.setattr(
        BoundOps, "sample", lambda self, *given: replace(s := right(self, *given), tokens_S=s.tokens_S ^ 1)
    )
    bad = [one["name"] for one in run_section(CPU, "sampler", "reference", None) if not one["ok"]]
    assert any("greedy" in name for name in bad)


def test_a_row_that_depends_on_its_neighbours_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = BoundOps.linear

    def wrong(self: BoundOps, x: torch.Tensor, weight: Linear) -> torch.Tensor:
        return right(self, x, weight) * (1 + 1e-6 * (len(x) > 4))

    monkeypatch.setattr(BoundOps, "linear", wrong)
    assert [one for one in run_section(CPU, "invariance", "reference", None) if not one["ok"]]


def test_what_breaks_is_a_finding_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: BoundOps, *given: object) -> torch.Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(BoundOps, "act_mul", broken)
    found = run_section(CPU, "rows", "reference", None)
    assert any("illegal memory access" in one["note"] for one in found)
    assert any(one["ok"] and one["name"].startswith("embed") for one in found)


def test_what_was_not_written_is_never_close() -> None:
    found, x = Findings(), torch.ones(3)
    found.close("x", torch.tensor([1.0, torch.nan, 1.0]), x, 1e9)
    found.close("shape", torch.ones(2), x, 1e9)
    assert [one.ok for one in found.all] == [False, False]


def test_errors_are_relative_to_the_whole() -> None:
    assert relative(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])) == pytest.approx(1 / 34**0.5)


def test_outputs_begin_spoilt() -> None:
    taken = Bench(CPU, "reference").ops().workspace.take((2, 3), torch.float32)
    assert taken.isnan().all()


IMPORTS = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in %r:
            raise ImportError(f"{name} is not on a bare machine")
sys.meta_path.insert(0, Blocked())
import importlib, pathlib
for path in sorted(pathlib.Path("bench/gpu").glob("*.py")):
    if path.stem != "__main__":
        importlib.import_module(f"bench.gpu.{path.stem}")
import bench.gpu.__main__ as command
sys.exit(command.main(%r))
"""


def test_a_bare_machine_can_run_it(tmp_path: Path) -> None:
    arguments = [
        "check",
        "--device",
        "cpu",
        "--tiny",
        "--kernels",
        "reference",
        "--sections",
        "rows",
        "--out",
        str(tmp_path / "x"),
    ]
    program = IMPORTS % (BLOCKED, arguments)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PYTHONPATH": "src:.", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
