"""Which nodes there are, from a text that says where to look; looked up again now and then.

    host:port          one node
    dns:name:port      every address that the name has
    openai:URL         an external OpenAI-compatible server: http(s)://host:port, and the path before /v1 if there is one
    file:path          one host:port or openai:URL a line; # begins a comment

A source that cannot be read keeps what it said last: a name server's bad minute must not take a fleet down.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inference_stack.core.errors import invalid
from inference_stack.core.seams import Clock

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})")
_EXTERNAL = re.compile(r"openai:https?://([^/]+)((?:/[A-Za-z0-9._~-]+)*)/?")


class Source(Protocol):
    """One place that says where nodes are."""

    async def look(self) -> frozenset[str]:
        """Their addresses now. Raises `OSError` or `ValueError` where that cannot be said."""
        ...


def address(text: str) -> str:
    """HOST:PORT as given, if it is one. Raises `ValueError`."""
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found[2]) < 65536:
        raise ValueError(f"not HOST:PORT: {text!r}")
    return text


def place(text: str) -> str:
    """A node's HOST:PORT, or an external server's openai:URL. Raises `ValueError`."""
    if not text.startswith("openai:"):
        return address(text)
    found = _EXTERNAL.fullmatch(text)
    if found is None:
        raise ValueError(f"not openai:http://HOST:PORT: {text!r}")
    if found[2].endswith("/v1"):
        raise ValueError(f"the URL is to end before /v1: {text!r}")
    address(found[1])
    return text.rstrip("/")


@dataclass(frozen=True)
class Static:
    """A node that was named."""

    where: str

    async def look(self) -> frozenset[str]:
        return frozenset((self.where,))


@dataclass(frozen=True)
class Name:
    """Every address of a name, such as a headless Kubernetes service."""

    host: str
    port: int

    async def look(self) -> frozenset[str]:
        found = await asyncio.get_running_loop().getaddrinfo(self.host, self.port, type=1)
        hosts = {str(entry[4][0]) for entry in found}
        return frozenset(f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}" for host in hosts)


@dataclass(frozen=True)
class File:
    """A file that others may change, best by renaming a new one over it."""

    path: Path

    async def look(self) -> frozenset[str]:
        text = await asyncio.to_thread(self.path.read_text, "utf-8")
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        return frozenset(place(line) for line in lines if line)


def sources(text: str) -> tuple[Source, ...]:
    """What `gateway.nodes` says. Raises `InferenceError`."""
    return tuple(_source(part.strip()) for part in text.split(",") if part.strip())


def _source(text: str) -> Source:
    kind, _, rest = text.partition(":")
    try:
        if kind == "file":
            return File(Path(rest).expanduser())
        if kind == "dns":
            host, _, port = address(rest).rpartition(":")
            return Name(host.strip("[]"), int(port))
        return Static(place(text))
    except ValueError as error:
        hint = "HOST:PORT, dns:NAME:PORT, openai:URL or file:PATH"
        raise invalid(
            f"gateway.nodes: {error}; expected {hint}", param="gateway.nodes", code="invalid_config"
        ) from None


class Discovery:
    """All sources together. `changed` is called with every node's address, at first and whenever they change."""

    def __init__(
        self,
        places: tuple[Source, ...],
        refresh_seconds: float,
        clock: Clock,
        changed: Callable[[frozenset[str]], None],
    ) -> None:
        self._last: dict[Source, frozenset[str]] = dict.fromkeys(places, frozenset())
        self._troubled: set[Source] = set()
        self._refresh = refresh_seconds
        self._clock = clock
        self._changed = changed

    async def run(self) -> None:
        """Look until cancelled."""
        told: frozenset[str] | None = None
        while True:
            await asyncio.gather(*(self._look(source) for source in self._last))
            now = frozenset().union(*self._last.values())
            if now != told:
                told = now
                self._changed(now)
            await self._clock.sleep(self._refresh)

    async def _look(self, source: Source) -> None:
        try:
            self._last[source] = await source.look()
            self._troubled.discard(source)
        except (OSError, ValueError) as error:
            if source not in self._troubled:
                log.warning("cannot tell where nodes are from %s: %s", source, error)
            self._troubled.add(source)
