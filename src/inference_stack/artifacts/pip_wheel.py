"""Downloads one wheel as the user's pip would, but continues a broken download where it stopped.

    python -m inference_stack.artifacts.pip_wheel NAME VERSION FILE

pip finds the wheel and speaks to the server, so that its index, proxy, certificates and passwords apply; only the loop that
writes the file is here. It runs in a process of its own, because pip's parts are not meant to be imported by others: whatever
has changed in them ends as `CANNOT`, upon which the caller asks pip itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

PIECE_BYTES = 1 << 18
FRUITLESS_ATTEMPTS = 3
"""How often in a row a connection may break without having brought anything."""

DONE, CANNOT, BROKEN, DAMAGED = 0, 3, 4, 5
"""Exit statuses: the file is whole; pip must do it; some of it is kept for the next time; what came was wrong, and is gone."""


class Transfer:
    """One wheel at an address, and the file that it is written to."""

    def __init__(self, session: Any, url: str, file: IO[bytes]) -> None:
        self._session, self._url, self._file = session, url, file

    def attempt(self) -> bool:
        """Continue the file until the server is done. False if the connection broke."""
        have = self._file.seek(0, 2)
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
        with self._session.get(self._url, headers=headers, stream=True) as got:
            if got.status_code == 416:
                return have == _total(got)
            got.raise_for_status()
            if got.status_code != 206 and have:
                self._file.truncate(self._file.seek(0))
                have = 0
            total = _total(got)
            for piece in got.iter_content(PIECE_BYTES):
                have += self._file.write(piece)
                self._file.flush()
        return total is None or have == total


def _total(response: Any) -> int | None:
    """Bytes of the whole file, as the server says."""
    whole = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
    return int(whole) if whole.isdigit() else None


def download(session: Any, url: str, sha256: str | None, path: Path) -> int:
    """Bring the wheel to `path`, retrying as long as that helps; an exit status."""
    broken = importlib.import_module("pip._vendor.requests").RequestException
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        transfer, fruitless, whole = Transfer(session, url, file), 0, False
        while not whole and fruitless < FRUITLESS_ATTEMPTS:
            before = file.seek(0, 2)
            try:
                whole = transfer.attempt()
            except broken as error:
                sys.stderr.write(f"{error}\n")
            fruitless = 0 if file.seek(0, 2) > before else fruitless + 1
        if not whole:
            return BROKEN
        file.seek(0)
        if sha256 and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            path.unlink()
            return DAMAGED
    return DONE


def find(name: str, version: str) -> tuple[Any, Any]:
    """pip's session, and its link to the wheel (None where it knows no such wheel)."""
    command = importlib.import_module("pip._internal.commands").create_command("download")
    specifiers = importlib.import_module("pip._vendor.packaging.specifiers")
    options, _ = command.parse_args(
        ["--no-deps", "--only-binary", ":all:", "--no-input", "--quiet", f"{name}=={version}"]
    )
    importlib.import_module("pip._internal.cli.cmdoptions").check_dist_restriction(options)
    session = command._build_session(options)
    finder = command._build_package_finder(options, session)
    best = finder.find_best_candidate(name, specifiers.SpecifierSet(f"=={version}")).best_candidate
    return session, best.link if best else None


def main(arguments: Sequence[str]) -> int:
    """Download; an exit status."""
    name, version, path = arguments
    try:
        session, link = find(name, version)
    except Exception as error:  # pip's parts may have moved, and its own errors are many.
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return CANNOT
    if link is None or link.scheme not in ("http", "https"):
        return CANNOT
    try:
        return download(
            session, link.url_without_fragment, link.hash if link.hash_name == "sha256" else None, Path(path)
        )
    except BlockingIOError:
        return CANNOT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
