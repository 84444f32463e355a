"""Whose request it is: tenants with their share of the traffic, their rights and their deadlines.

Knows nothing of what they ask.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One customer. `share` is of the traffic, relative to the others'; `weight` is of the service, as fair shares count it.

    Deadlines are seconds from a request's arrival (None: none).
    """

    name: str = ""
    share: float = 1.0
    weight: float = 1.0
    priority: int = 0
    ttft_deadline: float | None = None
    deadline: float | None = None


class TenantMix:
    """Draws tenants by their shares. No tenants at all: everything is the nameless one's."""

    def __init__(self, tenants: Sequence[Tenant]) -> None:
        self._tenants = tuple(tenants) or (Tenant(),)
        self._edges = list(itertools.accumulate(tenant.share for tenant in self._tenants))

    def draw(self, rng: np.random.Generator) -> Tenant:
        """The tenant of the next request."""
        if len(self._tenants) == 1:
            return self._tenants[0]
        place = bisect.bisect_right(self._edges, rng.random() * self._edges[-1])
        return self._tenants[min(place, len(self._tenants) - 1)]
