"""How long a step takes: recursive least squares with forgetting over (1, tokens, rows, context).

Fed with what steps really took; predicts what a planned step would take. Outliers (a page fault, a busy neighbour) are
clipped to a few times the usual residual before they are believed. Knows no clock.
"""

from __future__ import annotations

from typing import Final

from inference_stack.core.stats import StepTimeModel

FORGETTING: Final = 0.995
CLIP: Final = 4.0
"""A residual beyond this many times the usual one counts as this many times."""
SCALE: Final = (1.0, 64.0, 16.0, 4096.0)
"""Typical sizes of the features: keeps the normal equations well conditioned."""
INITIAL_VARIANCE: Final = 1e4
MAX_VARIANCE: Final = 1e6
WARMUP: Final = 8
"""Observations that are believed unclipped."""
DENSE: Final = 256
STRIDE: Final = 4
"""After this many observations only every fourth is looked at: the fit is good by then, and this runs in every step."""


class StepTimeFit:
    """The fitted model of one instance. `prior` is believed until steps say otherwise.

    Four unknowns: plain floats are several times faster here than arrays.
    """

    def __init__(self, prior: StepTimeModel | None = None) -> None:
        self.model = prior or StepTimeModel()
        self.observations = 0
        model = self.model
        self._weights = [
            scale * value
            for scale, value in zip(SCALE, (model.base, model.per_token, model.per_row, model.per_context), strict=True)
        ]
        self._covariance = [[INITIAL_VARIANCE * (i == j) for j in range(4)] for i in range(4)]
        self._usual_residual = 0.0

    def observe(self, tokens: int, rows: int, context: int, seconds: float) -> None:
        """A step of this size took `seconds`. Non-positive times tell nothing and are ignored."""
        if not seconds > 0.0:
            return
        self.observations += 1
        if self.observations > DENSE and self.observations % STRIDE:
            return
        features = [value / scale for value, scale in zip((1, tokens, rows, context), SCALE, strict=True)]
        residual = self._clip(seconds - _dot(features, self._weights))
        spread = [_dot(row, features) for row in self._covariance]
        norm = 1.0 / (FORGETTING + _dot(features, spread))
        self._weights = [weight + s * norm * residual for weight, s in zip(self._weights, spread, strict=True)]
        self._forget(spread, norm)
        self.model = self._export(features)

    def _export(self, features: list[float]) -> StepTimeModel:
        """Coefficients without negative ones: no step gets shorter by doing more. What that cuts off goes to `base`, so that
        the model still says at `features` (the latest step) what the fit says."""
        kept = [max(weight, 0.0) for weight in self._weights]
        kept[0] = max(0.0, _dot(features, self._weights) - _dot(features, [0.0, *kept[1:]]))
        base, per_token, per_row, per_context = (weight / scale for weight, scale in zip(kept, SCALE, strict=True))
        return StepTimeModel(base=base, per_token=per_token, per_row=per_row, per_context=per_context)

    def _forget(self, spread: list[float], norm: float) -> None:
        """Covariance after the observation; bounded, so that long steady traffic does not make it blow up."""
        covariance = [
            [(value - s * norm * t) / FORGETTING for value, t in zip(row, spread, strict=True)]
            for row, s in zip(self._covariance, spread, strict=True)
        ]
        trace = sum(covariance[i][i] for i in range(4))
        if trace > MAX_VARIANCE:
            covariance = [[value * MAX_VARIANCE / trace for value in row] for row in covariance]
        self._covariance = covariance

    def _clip(self, residual: float) -> float:
        size = abs(residual)
        if self.observations <= WARMUP:
            self._usual_residual = max(self._usual_residual * 0.7, size)
            return residual
        limit = CLIP * self._usual_residual
        self._usual_residual += 0.05 * (min(size, 2.0 * limit + 1e-9) - self._usual_residual)
        return residual if size <= limit else limit * (1.0 if residual > 0 else -1.0)


def _dot(left: list[float], right: list[float]) -> float:
    return left[0] * right[0] + left[1] * right[1] + left[2] * right[2] + left[3] * right[3]
