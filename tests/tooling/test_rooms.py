"""The rooms' import rules: that they are the design's, that they catch a violation, and that they hold at run time too."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
ROOMS = sorted(path.name for path in (ROOT / "src" / "inference_stack").iterdir() if (path / "__init__.py").is_file())
CORE = ["core", "policy", "kv", "scheduler", "ops", "models", "engine"]
LIGHT = {"torch", "numpy", "safetensors", "tokenizers", "jinja2"}


def test_every_room_but_the_command_line_has_a_contract() -> None:
    assert {contract["id"] for contract in CONTRACTS} == {*ROOMS, "torch-free"} - {"cli"}


def test_nothing_imports_the_command_line() -> None:
    rooms = [contract for contract in CONTRACTS if contract["id"] != "torch-free"]
    assert all("inference_stack.cli" in contract["forbidden_modules"] for contract in rooms)


LINT = """
import sys
from importlinter.cli import lint_imports_command
# An editable installation finds the real package wherever one looks.
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
lint_imports_command()
"""


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LINT, "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(folder)})


def package(folder: Path) -> Path:
    """A package with the rooms, all empty."""
    root = folder / "inference_stack"
    for room in ROOMS:
        (root / room).mkdir(parents=True)
        (root / room / "__init__.py").touch()
    (root / "__init__.py").touch()
    return root


def test_a_violation_planted_in_each_room_breaks_its_contract(tmp_path: Path) -> None:
    root = package(tmp_path)
    for contract in CONTRACTS:
        room, name = contract["source_modules"][0].split(".")[1], contract["id"].replace("-", "_")
        (root / room / f"planted_{name}.py").write_text(f"def f():\n    import {contract['forbidden_modules'][0]}\n")
    broken = lint(tmp_path)
    assert broken.returncode == 1
    assert f"Contracts: 0 kept, {len(CONTRACTS)} broken." in " ".join(broken.stdout.split())


def test_rooms_without_a_violation_keep_their_contracts(tmp_path: Path) -> None:
    package(tmp_path)
    kept = lint(tmp_path)
    assert kept.returncode == 0, kept.stdout


LOAD_ALL = """
import importlib, pkgutil, sys
import inference_stack
for room in sys.argv[1:]:
    package = importlib.import_module(f"inference_stack.{room}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name == "inference_stack.engine.worker":
            continue
        importlib.import_module(module.name)
"""


def load_all(rooms: list[str], then: str) -> str:
    done = subprocess.run([sys.executable, "-c", LOAD_ALL + then, *rooms], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("rooms", [[room.rpartition(".")[2] for room in CONTRACTS[-1]["source_modules"]]])
def test_torch_free_rooms_load_without_torch(rooms: list[str]) -> None:
    assert load_all(rooms, "print('torch' in sys.modules)") == "False"


def test_the_engine_core_loads_with_five_libraries() -> None:
    """All but the worker process's entry, which speaks the wire: `EngineCore` runs in-process without it."""
    heavy = "{'msgspec', 'starlette', 'uvicorn', 'httpx', 'pydantic', 'transformers', 'yaml', 'rich', 'typer', 'gguf', 'psutil'}"
    assert load_all(CORE, f"print(sorted({heavy} & set(sys.modules)))") == "[]"
