"""Who changed what, when: one JSON object a line, appended to a file or, without one, logged."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

from inference_stack.core.errors import invalid
from inference_stack.core.seams import Clock

log = logging.getLogger(__name__)


class Audit:
    """`path` is opened once, for appending; empty: the log. Raises `InferenceError` when it cannot be written."""

    def __init__(self, path: str, clock: Clock) -> None:
        self._clock = clock
        try:
            self._file = Path(path).expanduser().open("a", encoding="utf-8") if path else None
        except OSError as error:
            raise invalid(
                f"cannot write {path}: {error.strerror}", param="admin.audit", code="invalid_config"
            ) from error

    def record(self, who: str, action: str, target: str, outcome: str, **details: object) -> None:
        """One change that was asked for, and what came of it."""
        at = datetime.fromtimestamp(self._clock.wall(), UTC).isoformat(timespec="milliseconds")
        entry = {"at": at, "who": who, "action": action, "target": target, "outcome": outcome, **details}
        if self._file is None:
            log.info("admin: %s %s", action, target, extra={"fields": entry})
            return
        print(json.dumps(entry), file=self._file, flush=True)
