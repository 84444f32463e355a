"""Structured logs on one stream: text for people, or one JSON object per line.

A record's facts travel as `extra={"fields": {...}}`, so that both forms carry the same. Knows no request and no model.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from typing import Final, TextIO

import msgspec

LOGGER: Final = "inference_stack"
WORD: Final = re.compile(r"[\w.:/+-]+")
FORWARDED: Final = ("uvicorn.error",)
"""Loggers of libraries whose records join our stream."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, the fields, and a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class TextFormatter(logging.Formatter):
    """`time level message key=value …`."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        facts = "".join(f" {name}={_shown(value)}" for name, value in getattr(record, "fields", {}).items())
        line = f"{when} {record.levelname.lower():7} {record.getMessage()}{facts}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _shown(value: object) -> str:
    """A value of one word stays bare; anything else, and so anything a client could forge a line with, is quoted."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if WORD.fullmatch(text) else ascii(text)


def set_up_logs(level: str, as_json: bool, stream: TextIO) -> logging.Logger:
    """Send our records (and the server's) of at least `level` to `stream`, replacing any earlier set-up."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # neither form shows them
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    for name in (LOGGER, *FORWARDED):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False
    return logging.getLogger(LOGGER)
