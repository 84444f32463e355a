"""One line per record, which nobody outside can forge, in either form."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from inference_stack.telemetry.logs import FORWARDED, LOGGER, set_up_logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging is the interpreter's; leave it as it was."""
    loggers = [logging.getLogger(name) for name in (LOGGER, *FORWARDED)]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (logger.handlers, logger.level, logger.propagate) in zip(loggers, before, strict=True):
        logger.disabled = False


def logged(as_json: bool, level: str = "info") -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    return set_up_logs(level, as_json, stream), stream


def test_json_lines_carry_the_fields() -> None:
    log, stream = logged(as_json=True)
    log.info("ended", extra={"fields": {"request": "r1", "tokens": 3}})
    line = json.loads(stream.getvalue())
    assert (line["message"], line["level"], line["request"], line["tokens"]) == ("ended", "info", "r1", 3)


def test_text_lines_carry_the_fields() -> None:
    log, stream = logged(as_json=False)
    log.warning("ended", extra={"fields": {"request": "r1", "seconds": 0.123456}})
    assert stream.getvalue().endswith("warning ended request=r1 seconds=0.1235\n")


def test_a_value_cannot_forge_a_line() -> None:
    log, stream = logged(as_json=False)
    log.info("ended", extra={"fields": {"request": "x\nerror forged a=b"}})
    assert stream.getvalue().count("\n") == 1
    assert r"'x\nerror forged a=b'" in stream.getvalue()


def test_tracebacks_are_kept() -> None:
    for as_json in (True, False):
        log, stream = logged(as_json)
        try:
            raise ValueError("deep")
        except ValueError:
            log.exception("failed")
        assert "ValueError: deep" in stream.getvalue()


def test_levels_below_are_silent() -> None:
    log, stream = logged(as_json=False, level="warning")
    log.info("quiet")
    assert stream.getvalue() == ""


def test_a_second_set_up_replaces_the_first() -> None:
    _, first = logged(as_json=False)
    log, second = logged(as_json=False)
    log.info("once")
    logging.getLogger(f"{LOGGER}.gateway.dispatch").info("child")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 2
