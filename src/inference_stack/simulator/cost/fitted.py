"""A cost model learnt from measured steps: non-negative and robust least squares on relative errors.

    seconds = base + per_token tokens + per_row rows + per_context context + per_pair pairs
            + per_token_within min(tokens, knee) + per_token_beyond max(0, tokens - knee)

No step gets shorter by doing more. At the knee a token's price changes: up where a step turns from waiting for weights to
computing, down where kernels begin to work on whole blocks of tokens. Knows no device.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from inference_stack.core.errors import invalid
from inference_stack.simulator.cost.samples import StepSample, merge

FloatArray = npt.NDArray[np.float64]

HELD_OUT: Final = 5
"""One sample in so many is kept from the fit and judges it."""
LEAST_SAMPLES: Final = 20
KNEES: Final = (2, 4, 6, 8, 16, 32, 64, 128, 256)
KNEE_GAIN: Final = 0.98
"""A knee has to bring the mean error down to this share: simpler models win ties."""
ROUNDS: Final = 12
TOLERATED: Final = 1.5
"""Relative errors beyond this many times the median one count less and less (Huber's weights)."""
FORMAT: Final = "inference-stack-step-cost-1"
LARGEST: Final = 1e9
"""Of a coefficient: more is no time of a step, and would only overflow later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedCost:
    """Seconds of a step as a sum over its sizes. Coefficients are in seconds, none negative; `load_time` is of a cold start.

    Raises `InferenceError` for a coefficient that is negative or not a number.
    """

    base: float = 0.0
    per_token: float = 0.0
    per_row: float = 0.0
    per_context: float = 0.0
    per_pair: float = 0.0
    per_token_within: float = 0.0
    per_token_beyond: float = 0.0
    knee: int = 0
    load_time: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if type(value) not in (int, float) or not 0 <= value <= LARGEST:
                raise invalid(f"{each.name} must be a number from 0 to {LARGEST:g}, not {value!r}", param=each.name)

    def step_seconds(self, tokens: int, rows: int, context: int, pairs: int) -> float:
        """Seconds of one step, sizes as `api.CostModel` defines them."""
        return (
            self.base
            + self.per_token * tokens
            + self.per_row * rows
            + self.per_context * context
            + self.per_pair * pairs
            + self.per_token_within * min(tokens, self.knee)
            + self.per_token_beyond * max(0, tokens - self.knee)
        )

    def load_seconds(self) -> float:
        """Seconds of a cold start: not in the samples, so whoever knows has to say."""
        return self.load_time

    def save(self, path: Path) -> None:
        """Write the coefficients as JSON."""
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> FittedCost:
        """The model that `save` wrote. Raises `InferenceError` for a file that is not one."""
        try:
            plain = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise invalid(f"cannot read a fitted cost model: {path}: {error}", param="fitted") from None
        if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
            raise invalid(f"{path} is not a fitted cost model ({FORMAT})", param="fitted")
        return from_coefficients(plain, str(path))


def from_coefficients(plain: Mapping[str, Any], origin: str) -> FittedCost:
    """A model with given coefficients, those not given being 0. Raises `InferenceError` for a name that is none."""
    known = [each.name for each in fields(FittedCost)]
    for name in plain:
        if name not in known:
            raise invalid(f"{origin}: there is no coefficient {name!r}; known are {', '.join(known)}", param=str(name))
    return FittedCost(**plain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Relative errors of predicted seconds: |predicted - measured| / measured."""

    count: int
    median: float
    p90: float
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FitQuality:
    """How well a fit predicts the distinct steps it learnt from, and those it never saw."""

    in_sample: Errors
    held_out: Errors


def errors_of(cost: FittedCost, samples: Iterable[StepSample]) -> Errors:
    """How far predictions are from measured steps, of which there is at least one."""
    relative = np.array([abs(cost.step_seconds(*each.sizes) - each.seconds) / each.seconds for each in samples])
    median, p90 = np.percentile(relative, (50, 90))
    return Errors(count=len(relative), median=float(median), p90=float(p90), worst=float(relative.max()))


def fit(samples: Iterable[StepSample]) -> tuple[FittedCost, FitQuality]:
    """Learn from all but every fifth distinct step, and judge by those. Steps of the same sizes count as one, at their median time.

    Raises `InferenceError` for fewer than `LEAST_SAMPLES` distinct steps.
    """
    distinct = merge(samples)
    if len(distinct) < LEAST_SAMPLES:
        raise invalid(
            f"{len(distinct)} distinct steps are too few to fit; {LEAST_SAMPLES} are the least", param="samples"
        )
    held_out = distinct[HELD_OUT - 1 :: HELD_OUT]
    known = [each for number, each in enumerate(distinct, 1) if number % HELD_OUT]
    cost = _best(known)
    return cost, FitQuality(in_sample=errors_of(cost, known), held_out=errors_of(cost, held_out))


def _best(samples: list[StepSample]) -> FittedCost:
    """The fit without a knee, or with the knee that serves these samples clearly better."""
    best, least = _fitted(samples, None)
    limit = least * KNEE_GAIN - 1e-9
    largest = max(sample.tokens for sample in samples)
    for knee in (knee for knee in KNEES if knee < largest):
        cost, error = _fitted(samples, knee)
        if error < limit:
            best, limit = cost, error
    return best


def _fitted(samples: list[StepSample], knee: int | None) -> tuple[FittedCost, float]:
    """Coefficients for one knee, and their mean relative error."""
    table = np.array(samples, dtype=np.float64)
    tokens, rows, context, pairs, seconds = table.T
    columns = {"base": np.ones(len(table)), "per_row": rows, "per_context": context, "per_pair": pairs}
    if knee is None:
        columns["per_token"] = tokens
    else:
        columns["per_token_within"] = np.minimum(tokens, knee)
        columns["per_token_beyond"] = np.maximum(0.0, tokens - knee)
    coefficients, residual = _robust(np.stack(list(columns.values()), axis=1) / seconds[:, None])
    chosen: dict[str, Any] = dict(zip(columns, coefficients.tolist(), strict=True))
    return FittedCost(**chosen, knee=knee or 0), float(residual.mean())


def _robust(relative: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coefficients that bring rows closest to 1, and how far each stays from it. Those far away were disturbed: they count less."""
    weights = np.ones(len(relative))
    coefficients, residual = np.zeros(relative.shape[1]), weights
    for _ in range(ROUNDS):
        coefficients = _nonnegative(relative * weights[:, None], weights)
        residual = np.abs(relative @ coefficients - 1.0)
        limit = max(TOLERATED * float(np.median(residual)), 1e-9)
        weights = np.sqrt(limit / np.maximum(residual, limit))
    return coefficients, residual


def _nonnegative(matrix: FloatArray, target: FloatArray) -> FloatArray:
    """Least squares with no negative coefficient, exactly: the best of all sets of columns whose plain solution has none.

    Six columns make 63 sets of small normal equations. Columns are scaled, as context counts thousands where rows count ones.
    """
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0.0] = 1.0
    scaled = matrix / scale
    gram, moments = scaled.T @ scaled, scaled.T @ target
    best: FloatArray = np.zeros(len(scale))
    least = 0.0
    for size in range(1, len(scale) + 1):
        for chosen in combinations(range(len(scale)), size):
            part = np.ix_(chosen, chosen)
            solution = np.linalg.lstsq(gram[part], moments[list(chosen)])[0]
            loss = float(solution @ gram[part] @ solution - 2.0 * moments[list(chosen)] @ solution)
            if loss < least and (solution >= 0.0).all():
                best, least = np.zeros(len(scale)), loss
                best[list(chosen)] = solution
    best /= scale
    return best
