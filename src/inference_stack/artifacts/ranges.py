"""Ranges of files read into memory that is there already, from any number of threads at once.

Reading says how far a file goes, mapping does not: a file that was cut short is an error here and not a bus error. Knows bytes.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from inference_stack.artifacts.failures import unreadable
from inference_stack.core.errors import unsupported_model


class RangeReader:
    """Files that are opened when first read and stay open until `close`."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()

    def read(self, path: Path, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `offset`. Raises a typed error when the file ends before or cannot be read."""
        try:
            self._fill(self._opened(path), offset, into)
        except EOFError:
            raise unsupported_model(
                f"{path} ends before the {len(into)} bytes from {offset} on. Is the download complete?"
            ) from None
        except OSError as error:
            raise unreadable(f"{path} cannot be read: {error}") from error

    def close(self) -> None:
        """Close every file. What is read later opens them again."""
        with self._lock:
            files, self._files = list(self._files.values()), {}
        for file in files:
            os.close(file)

    def _opened(self, path: Path) -> int:
        with self._lock:
            if path not in self._files:
                self._files[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            return self._files[path]

    @staticmethod
    def _fill(file: int, offset: int, into: memoryview) -> None:
        done = 0
        while done < len(into):
            got = os.preadv(file, [into[done:]], offset + done)
            if not got:
                raise EOFError
            done += got
