"""How the interpreter behaves in a process that serves many streams from one loop."""

from __future__ import annotations

import gc
import sys

COLLECTOR_THRESHOLDS = (20_000, 20, 50)
"""Net new containers between collections of the youngest generation, and how many of those until the older ones' turn."""

SWITCH_SECONDS = 0.001
"""How long a thread may keep the interpreter's lock from another. Every message of a gRPC link changes threads."""


def tune_interpreter() -> None:
    """Called once everything long-lived exists: the collector never looks at it again, and at live streams rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    sys.setswitchinterval(SWITCH_SECONDS)
