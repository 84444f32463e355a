import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from inference_stack.config.flags import flags


def istack(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inference_stack.cli.main", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ISTACK_")}
    return subprocess.run(command, capture_output=True, text=True, env={**clean, **environ}, timeout=60)


def test_help_lists_every_command() -> None:
    text = istack("--help").stdout
    assert all(f"  {name}" in text for name in ("serve", "run", "pull", "models", "bench", "config", "version"))


def test_help_of_serve_has_every_flag() -> None:
    text = istack("serve", "--help").stdout
    assert all(flag in text for flag in flags())


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from inference_stack.cli.main import run_app; sys.argv = ['istack', '--help']\n"
        "run_app()\n"
        "heavy = {'torch', 'numpy', 'httpx', 'rich', 'starlette', 'tokenizers', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_the_effective_settings_are_printed_as_yaml(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("server: {port: 1, host: file}")
    done = istack(
        "config",
        "--config",
        str(tmp_path / "c.yaml"),
        "--port",
        "3",
        "--no-prefix-cache",
        "m",
        ISTACK_LOG__LEVEL="debug",
    )
    shown = yaml.safe_load(done.stdout)
    assert (shown["server"]["port"], shown["server"]["host"]) == (3, "file")
    assert shown["engine"]["prefix_cache"] is False
    assert shown["log"]["level"] == "debug"
    assert shown["models"] == [{"model": "m", "name": ""}]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("serve",), "no model is named"),
        (("serve", "x", "--port", "99999"), "--port: server.port: expected at most 65535"),
        (("serve", "x", "--log-level", "loud"), "expected one of debug"),
        (("serve", "./missing.gguf"), "missing.gguf"),
        (("pull", "nonesuch"), "nonesuch"),
        (("config", "--config", "missing.yaml"), "missing.yaml: No such file"),
        (("run", "--url", "http://127.0.0.1:9", "m", "hi"), "no answer from"),
        (("bench", "serve", "--url", "http://127.0.0.1:9"), "no server at"),
        (("bench", "serve", "--api", "smoke"), "expected one of completions, chat"),
    ],
)
def test_a_failure_is_one_line_and_a_status(arguments: tuple[str, ...], expected: str) -> None:
    done = istack(*arguments)
    assert done.returncode == 1
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_unknown_variable_stops_the_start() -> None:
    assert "Did you mean ISTACK_SERVER__PORT" in istack("config", ISTACK_SERVER__PROT="1").stderr


def test_the_version_is_the_packages() -> None:
    assert istack("version").stdout.startswith("istack 0.")


def test_known_models_are_listed(tmp_path: Path) -> None:
    text = istack("models", "--cache-dir", str(tmp_path)).stdout
    assert "smollm2" in text
    assert "istack pull smollm2" in text


@pytest.mark.model
def test_pulling_what_is_here_says_where_it_lies(demo_model: Path) -> None:
    assert str(demo_model) in istack("pull", "smollm2").stdout
