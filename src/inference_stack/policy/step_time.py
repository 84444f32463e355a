"""How long a step takes: recursive least squares with forgetting over (1, tokens, rows, context).

Fed with what steps really took; predicts what a planned step would take. Outliers (a page fault, a busy neighbour) are
clipped to a few times the usual residual before they are believed. Knows no clock.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from inference_stack.core.stats import StepTimeModel

FORGETTING: Final = 0.995
CLIP: Final = 4.0
"""A residual beyond this many times the usual one counts as this many times."""
SCALE: Final = np.array([1.0, 64.0, 16.0, 4096.0])
"""Typical sizes of the features: keeps the normal equations well conditioned."""
INITIAL_VARIANCE: Final = 1e4
MAX_VARIANCE: Final = 1e6
WARMUP: Final = 8
"""Observations that are believed unclipped."""


class StepTimeFit:
    """The fitted model of one instance. `prior` is believed until steps say otherwise."""

    def __init__(self, prior: StepTimeModel | None = None) -> None:
        prior = prior or StepTimeModel()
        self.observations = 0
        self._weights = SCALE * np.array([prior.base, prior.per_token, prior.per_row, prior.per_context])
        self._covariance = np.eye(4) * INITIAL_VARIANCE
        self._usual_residual = 0.0
        self.model = prior

    def observe(self, tokens: int, rows: int, context: int, seconds: float) -> None:
        """A step of this size took `seconds`. Non-positive times tell nothing and are ignored."""
        if not seconds > 0.0:
            return
        features = np.array([1.0, tokens, rows, context]) / SCALE
        residual = self._clip(seconds - float(features @ self._weights))
        spread = self._covariance @ features
        gain = spread / (FORGETTING + float(features @ spread))
        self._weights += gain * residual
        self._covariance = (self._covariance - np.outer(gain, spread)) / FORGETTING
        if float(self._covariance.trace()) > MAX_VARIANCE:
            self._covariance *= MAX_VARIANCE / float(self._covariance.trace())
        self.observations += 1
        self.model = self._export()

    def _clip(self, residual: float) -> float:
        size = abs(residual)
        if self.observations < WARMUP:
            self._usual_residual = max(self._usual_residual * 0.7, size) if self.observations else size
            return residual
        limit = CLIP * self._usual_residual
        self._usual_residual += 0.05 * (min(size, 2.0 * limit + 1e-9) - self._usual_residual)
        return residual if size <= limit else limit * (1.0 if residual > 0 else -1.0)

    def _export(self) -> StepTimeModel:
        """Non-negative coefficients: no step gets shorter by doing more."""
        base, per_token, per_row, per_context = np.maximum(self._weights / SCALE, 0.0).tolist()
        return StepTimeModel(base=base, per_token=per_token, per_row=per_row, per_context=per_context)
