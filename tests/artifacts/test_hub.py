"""Hugging Face ids through the real client, against a small hub on this machine. The client reads its environment when
it is imported, so each case runs in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.artifacts.fake_hub import serving

REPO = "some-org/tiny-model"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"not read here" * 1000,
    "tokenizer.json": b"{ }",
    "pytorch_model.bin": b"pickle",
    "original/consolidated.safetensors": b"second copy",
    "tiny.Q8_0.gguf": b"GGUF",
    "tiny.F16.gguf": b"GGUF",
    "modeling_custom.py": b"print()",
}
PROGRAM = """
import json, sys
from pathlib import Path
from inference_stack.artifacts.resolve import resolve
from inference_stack.core.errors import InferenceError
seen = []
try:
    files = resolve(sys.argv[1], Path("cache"), progress=lambda *event: seen.append(event))
    found = {"kind": files.kind, "name": files.name, "weights": [path.name for path in files.weights], "progress": seen}
except InferenceError as error:
    found = {"code": error.info.code, "message": error.info.message}
print(json.dumps(found))
"""


def resolve(model: str, home: Path, endpoint: str, offline: bool = False) -> dict[str, object]:
    changes = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1" if offline else "0"}
    command = [sys.executable, "-c", PROGRAM, model]
    ran = subprocess.run(command, env={**os.environ, **changes}, cwd=home, capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_a_repository_is_fetched_without_pickles_code_or_second_copies(tmp_path: Path) -> None:
    with serving(REPO, FILES) as (endpoint, fetched):
        found = resolve(REPO, tmp_path, endpoint)
    assert (found["kind"], found["name"], found["weights"]) == ("safetensors", REPO, ["model.safetensors"])
    assert sorted(fetched) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert found["progress"]


def test_a_gguf_file_is_fetched_alone(tmp_path: Path) -> None:
    with serving(REPO, FILES) as (endpoint, fetched):
        found = resolve(f"{REPO}:tiny.Q8_0.gguf", tmp_path, endpoint)
    assert (found["kind"], found["name"], found["weights"]) == ("gguf", REPO, ["tiny.Q8_0.gguf"])
    assert fetched == ["tiny.Q8_0.gguf"]


def test_what_was_fetched_serves_offline(tmp_path: Path) -> None:
    with serving(REPO, FILES) as (endpoint, _):
        resolve(REPO, tmp_path, endpoint)
    assert resolve(REPO, tmp_path, "http://127.0.0.1:9", offline=True)["kind"] == "safetensors"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with serving(REPO, FILES) as (endpoint, _):
        found = resolve(f"{REPO}:other.gguf", tmp_path, endpoint)
    assert "other.gguf" in str(found["message"])


def test_an_unknown_repository_and_an_unreachable_hub_say_what_to_do(tmp_path: Path) -> None:
    with serving(REPO, FILES) as (endpoint, _):
        unknown = resolve("some-org/nothing", tmp_path, endpoint)
    unreachable = resolve("some-org/nothing", tmp_path, "http://127.0.0.1:9")
    for found in (unknown, unreachable):
        assert found["code"] == "model_download_failed"
        assert "some-org/nothing" in str(found["message"]) and "HF_HOME" in str(found["message"])
