"""When requests arrive in an open loop: offsets in seconds from the start, repeatable by seed."""

from __future__ import annotations

import random
from itertools import accumulate


def offsets(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Arrival times with gamma-distributed gaps of mean 1/rate.

    `burstiness` is the gamma's shape: 1 is a Poisson process, less is burstier, more is steadier; infinity is a metronome.
    The first request arrives at 0.
    """
    if burstiness == float("inf"):
        return [index / rate for index in range(count)]
    noise = random.Random(seed)
    gaps = (noise.gammavariate(burstiness, 1.0 / (rate * burstiness)) for _ in range(count - 1))
    return list(accumulate(gaps, initial=0.0)) if count else []
