"""Where a device's schedulers come from: recorded ones when the settings ask for it, plain ones otherwise.

One file per worker, since the instances of a device share its memory. Knows nothing of what is recorded.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from inference_stack.config.tree import EngineConfig
from inference_stack.core.errors import invalid
from inference_stack.core.stats import StepTimeModel
from inference_stack.kv.manager import KvManager
from inference_stack.kv.slabs import ArenaGeometry
from inference_stack.scheduler.limits import SchedulerLimits
from inference_stack.scheduler.recording import RecordedScheduler, Recorder
from inference_stack.scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    from inference_stack.wire.journal import JournalWriter

SUFFIX: Final = ".recording"
SALT_BYTES: Final = 32

log = logging.getLogger(__name__)


class Schedulers:
    """Makes the schedulers of one device. Raises `InferenceError` when their recording cannot be written."""

    def __init__(self, settings: EngineConfig, geometry: ArenaGeometry) -> None:
        self._journal: JournalWriter | None = None
        self._recorder: Recorder | None = None
        if settings.record:
            self._journal = _journal(Path(settings.record).expanduser(), int(settings.record_mb * (1 << 20)))
            salt = secrets.token_bytes(SALT_BYTES)
            self._recorder = Recorder(self._journal.append, geometry, salt, settings.record_tokens)

    @property
    def told(self) -> dict[str, str]:
        """Where they are recorded, for the account of start-up."""
        return {} if self._journal is None else {"recording": str(self._journal.path)}

    def make(self, limits: SchedulerLimits, kv: KvManager, prior: StepTimeModel) -> Scheduler:
        """The scheduler of one instance."""
        if self._recorder is None:
            return Scheduler(limits, kv, prior=prior)
        return RecordedScheduler(limits, kv, self._recorder, prior=prior)

    def close(self) -> None:
        """Write what has not been written. The schedulers may not be used after this."""
        if self._journal is not None:
            self._journal.close()
            if self._journal.trouble:
                log.warning("%s ended early: %s", self._journal.path, self._journal.trouble)


def _journal(folder: Path, limit: int) -> JournalWriter:
    from inference_stack.wire.journal import JournalWriter

    name = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}{SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return JournalWriter(folder / name, limit)
    except OSError as error:
        raise invalid(f"cannot record into {folder}: {error.strerror}", param="engine.record") from error
