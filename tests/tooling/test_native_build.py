"""The native extension as others build it: from the sdist, without a compiler, and with sanitizers watching the op tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
EXTENSION = "inference_stack/ops/cpu/_native"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def run(*command: str | Path, **environment: str) -> str:
    """What a command printed. Fails the test with its output when it fails."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def build(source: Path, out: Path, *options: str, **environment: str) -> list[str]:
    """Names of the files in the wheel that pip makes of `source`."""
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", out, *options, source, **environment)
    (wheel,) = out.glob("inference_stack-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "files")
        return archive.namelist()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files alone."""
    folder = tmp_path_factory.mktemp("clean")
    files = subprocess.check_output(["git", "ls-files", "-z"], cwd=REPOSITORY).decode().split("\0")
    for name in filter(None, files):
        if (REPOSITORY / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    return folder


def test_a_wheel_from_the_sdist_has_the_kernels(clean: Path, tmp_path: Path) -> None:
    script = "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))"
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv)
    run(venv / "bin/pip", "install", "--quiet", "scikit-build-core==1.1.2", "nanobind==3.1.0")
    subprocess.run([venv / "bin/python", "-c", script, tmp_path], cwd=clean, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    names = build(source, tmp_path / "wheel")
    assert any(name.startswith(EXTENSION) and name.endswith(".so") for name in names)
    assert not any("csrc" in name for name in names)


def test_without_a_compiler_the_package_installs_and_says_what_is_missing(clean: Path, tmp_path: Path) -> None:
    names = build(clean, tmp_path, CXX="/bin/false", CC="/bin/false")
    assert not any(name.endswith(".so") for name in names)
    probe = (
        "import sys; sys.meta_path[:] = [one for one in sys.meta_path if 'ScikitBuild' not in type(one).__name__];"
        "from inference_stack.ops.registry import build_ops; from inference_stack.ops.workspace import Workspace;"
        "print(build_ops(Workspace(max_tokens=4, max_samples=4)).explain()['linear'])"
    )
    said = run(sys.executable, "-c", probe, PYTHONPATH=str(tmp_path / "files"))
    assert "reference: the only one" in said
    assert "native kernels are not built" in said and "install gcc or clang" in said


def test_kernels_are_clean_under_sanitizers(clean: Path, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the sanitizers' runtime is g++'s")
    names = build(clean, tmp_path, "--config-settings", "cmake.define.ISTACK_SANITIZE=ON")
    assert any(name.endswith(".so") for name in names)
    libraries = [run(compiler, f"-print-file-name={name}").strip() for name in ("libasan.so", "libubsan.so")]
    run(
        sys.executable, "-c", SANITIZED, tmp_path / "files/inference_stack/ops/cpu", REPOSITORY / "tests/ops",
        PYTHONPATH=str(tmp_path / "files"), LD_PRELOAD=":".join(libraries),
        ASAN_OPTIONS="detect_leaks=0:abort_on_error=1", OMP_NUM_THREADS="1",
    )  # fmt: skip


SANITIZED = """
import sys
sys.meta_path[:] = [one for one in sys.meta_path if "ScikitBuild" not in type(one).__name__]
from inference_stack.ops.cpu import _native
assert _native.__file__.startswith(sys.argv[1]), _native.__file__
import pytest
names = ("test_quantised_linear", "test_native_attention", "test_native_sampler", "test_recording",
         "test_rows_norms_activation")
files = [f"{sys.argv[2]}/{name}.py" for name in names]
sys.exit(pytest.main(["-q", "-x", "-p", "no:faulthandler", "-p", "no:cacheprovider", *files]))
"""
"""Runs the op tests against the package in another folder, also where this one is installed editable."""
