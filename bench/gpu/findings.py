"""What a check found: relative errors against bounds, bits that are equal or not, and what broke on the way."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked. `error` and `bound` are relative, where there is something to measure."""

    name: str
    ok: bool
    error: float | None = None
    bound: float | None = None
    note: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Findings:
    """Everything that one section of the checks found."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    @property
    def failed(self) -> list[Finding]:
        """What is not as it should be."""
        return [one for one in self.all if not one.ok]

    def say(self, name: str, ok: bool, note: str = "") -> None:
        """Something is so, or is not."""
        self.all.append(Finding(name, ok, note=note))

    def close(self, name: str, out: Tensor, reference: Tensor, bound: float) -> None:
        """‖out − reference‖ / ‖reference‖ is below the bound. What is not a number where the reference is one never is."""
        if out.shape != reference.shape:
            self.say(name, False, f"shape {tuple(out.shape)} instead of {tuple(reference.shape)}")
            return
        found = relative(out, reference)
        note = "" if found == found else f"{int((~torch.isfinite(out)).sum())} of {out.numel()} are not finite"
        self.all.append(Finding(name, found < bound, found, bound, note))

    def same(self, name: str, one: Tensor, other: Tensor) -> None:
        """Equal bit for bit. NaN is not: nothing that is compared should hold one."""
        one, other = one.detach().cpu(), other.detach().cpu()
        if one.shape != other.shape or one.dtype != other.dtype:
            self.say(name, False, f"{one.dtype} {tuple(one.shape)} beside {other.dtype} {tuple(other.shape)}")
            return
        differ = int((one != other).sum())
        note = "" if not differ else f"{differ} of {one.numel()} differ, by {relative(one, other):.1e} in all"
        self.say(name, differ == 0, note)

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """What is raised inside becomes a finding, so that the checks behind it are still made."""
        try:
            yield
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {error}"[:600]
            self.say(name, False, f"{told} ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})")


def relative(out: Tensor, reference: Tensor) -> float:
    """‖out − reference‖ / ‖reference‖ in float64."""
    wanted = reference.detach().cpu().to(torch.float64)
    difference = (out.detach().cpu().to(torch.float64) - wanted).norm()
    return float(difference / wanted.norm().clamp_min(1e-300))
