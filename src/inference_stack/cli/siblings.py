"""Processes that serve one port together ask one another for what only all of them know: metrics, requests in flight.

One socket per process in a folder that only their user can enter. A line asks, the answer follows, the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

PATIENCE_SECONDS = 2.0
MAX_ANSWER_BYTES = 64 << 20

log = logging.getLogger(__name__)

Answers = Mapping[str, Callable[[], bytes]]


class Siblings:
    """Process `number` of `count`, which meet in `folder`. `answers` are what this one can be asked for, by name."""

    def __init__(self, folder: Path, number: int, count: int, answers: Answers) -> None:
        self._folder = folder
        self._number = number
        self._count = count
        self._answers = answers

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Answers the others inside."""
        path = self._path(self._number)
        path.unlink(missing_ok=True)  # of one that died
        server = await asyncio.start_unix_server(self._answer, path)
        try:
            yield
        finally:
            server.close()
            path.unlink(missing_ok=True)

    async def ask_all(self, question: str) -> dict[str, bytes]:
        """Every process's answer, by its number; those that do not answer in time are left out."""
        others = [number for number in range(self._count) if number != self._number]
        answers = await asyncio.gather(*(self._ask(number, question) for number in others))
        found = {str(number): answer for number, answer in zip(others, answers, strict=True) if answer is not None}
        return {str(self._number): self._answers[question](), **found}

    def _path(self, number: int) -> Path:
        return self._folder / str(number)

    async def _ask(self, number: int, question: str) -> bytes | None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._path(number), limit=MAX_ANSWER_BYTES)
                writer.write(f"{question}\n".encode())
                answer = await reader.read(-1)
                writer.close()
                return answer
        except (OSError, TimeoutError) as error:
            log.warning("process %d does not say its %s: %s", number, question, error)
            return None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                question = (await reader.readline()).decode(errors="replace").strip()
                if question in self._answers:
                    writer.write(self._answers[question]())
                    await writer.drain()
        writer.close()
