"""One comparison: start every contender once, then repetitions in which each answers the same prompts while the others rest.

The order rotates from repetition to repetition. A contender that cannot start, or fails later, stays in the result with its error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers import environments, machine, ratios, weights
from bench.peers.catalogue import OURS, PEERS, Contender
from bench.peers.scenarios import FULL, QUICK, Sizes, Words, batches, check, numbers, warm_up
from bench.peers.servers import Server, Site

from inference_stack.artifacts.files import ModelFiles
from inference_stack.frontend.load import load_frontend

Tell = Callable[[str], None]
Save = Callable[[dict[str, Any]], None]


@dataclass(kw_only=True)
class Seat:
    """A contender's place in the run: its server while it lives, and what was found."""

    contender: Contender
    server: Server | None = None
    error: str = ""
    rows: list[dict[str, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def fail(self, error: Exception) -> None:
        """Take the contender out of the rest of the run."""
        self.error = f"{type(error).__name__}: {error}"
        if self.server is not None:
            self.server.process.stop()
            self.server = None

    def as_dict(self) -> dict[str, Any]:
        """For the result file."""
        who = {"title": self.contender.title, "family": self.contender.family}
        found = ratios.summary(self.rows) if self.rows else {}
        return {**who, "error": self.error, **self.facts, "summary": found, "rows": self.rows}


FAILURES = (RuntimeError, OSError, ValueError, TimeoutError)
"""What a server may do to a run without ending it."""


def start(seat: Seat, site: Site, source: Path, words: Words, seed: int) -> None:
    """Bring a contender up, send it small batches, and see whether it rests afterwards."""
    contender = seat.contender
    try:
        for name in contender.environments:
            if not environments.installed(site.home, name):
                raise RuntimeError(f"not installed: python -m bench.peers install {contender.name}")
        seat.server = server = contender.start(site, weights.form(contender.form, site.home, source))
        for asked in warm_up(words, seed):
            check(asked, server.answer(asked))
        seat.facts = {"ready_s": server.ready_s, "command": server.process.command, "variables": server.process.extra}
        seat.facts["about"] = server.about()
        seat.facts["versions"] = (
            environments.versions(site.home, contender.environment) if contender.environment else {}
        )
        seat.facts["idle_cpu"] = server.process.rest()
        server.process.pause()
    except FAILURES as error:
        seat.fail(error)


def turn(seat: Seat, words: Words, sizes: Sizes, seed: int) -> None:
    """One repetition of one contender: every scenario, then the memory its processes hold."""
    server = seat.server
    if server is None:
        return
    row: dict[str, float] = {}
    try:
        server.process.resume()
        for scenario, asked in batches(words, sizes, seed).items():
            replies = server.answer(asked)
            check(asked, replies)
            row.update(numbers(scenario, replies))
        row.update(server.process.memory_mb())
        server.process.pause()
        seat.rows.append(row)
    except FAILURES as error:
        seat.fail(error)


@contextmanager
def seated(names: Sequence[str], site: Site, source: Path, words: Words, tell: Tell) -> Iterator[list[Seat]]:
    """All contenders, ours first, started one after the other; whatever runs is stopped at the end."""
    seats = [Seat(contender=OURS if name == "ours" else PEERS[name]) for name in names]
    try:
        for number, seat in enumerate(seats):
            start(seat, site, source, words, seed=1_000_000 + 1000 * number)
            tell(f"{seat.contender.name}: {seat.error or 'ready in {:.1f} s'.format(seat.facts['ready_s'])}")
        yield seats
    finally:
        for seat in seats:
            if seat.server is not None:
                seat.server.process.stop()


def order(seats: Sequence[Seat], repetition: int) -> list[Seat]:
    """Everybody's turn, beginning with another one each time."""
    shift = repetition % len(seats)
    return [*seats[shift:], *seats[:shift]]


def compare(seats: Sequence[Seat]) -> dict[str, Any]:
    """Ratios of ours to every peer that finished a repetition, and the targets. Empty without ours."""
    ours = next((seat for seat in seats if seat.contender is OURS and seat.rows), None)
    if ours is None:
        return {}
    found = {
        seat.contender.name: ratios.ratios(ours.rows, seat.rows) for seat in seats if seat is not ours and seat.rows
    }
    amounts = {name: value["median"] for name, value in ratios.summary(ours.rows).items()}
    targets = {name: ratios.peer_targets(PEERS[name].family, values) for name, values in found.items()}
    own = ratios.own_targets({**amounts, "ready_s": ours.facts["ready_s"]})
    return {"ratios": found, "targets": {"ours": own, **targets}}


def vocabulary(source: Path) -> Words:
    """Words for prompts, by the model's own tokenizer."""
    files = ModelFiles(kind="gguf", name=source.stem, root=source.parent, weights=(source,))
    tokenizer = load_frontend(files).tokenizer
    spellings = (tokenizer.token_bytes(token).decode(errors="ignore") for token in range(tokenizer.vocab_size))
    return Words(spellings, lambda text: tokenizer.encode(text, add_special_tokens=False))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run: contenders by name, how often, on which prompts."""

    names: Sequence[str]
    repeats: int
    quick: bool
    seed: int


def run(plan: Plan, site: Site, source: Path, tell: Tell, save: Save) -> dict[str, Any]:
    """The whole comparison as one JSON value; `save` gets it after each repetition, so that an interrupted run is not lost."""
    words, sizes, facts = vocabulary(source), QUICK if plan.quick else FULL, machine.describe()
    with seated(plan.names, site, source, words, tell) as seats:
        result: dict[str, Any] = {}
        for repetition in range(plan.repeats):
            for seat in order(seats, repetition):
                turn(seat, words, sizes, plan.seed + repetition)
                last = json.dumps({name: round(value, 1) for name, value in seat.rows[-1].items()}) if seat.rows else ""
                tell(f"{repetition + 1}/{plan.repeats} {seat.contender.name}: {seat.error or last}")
            result = {
                "machine": facts,
                "model": source.name,
                "quick": plan.quick,
                "repeats": repetition + 1,
                "threads": site.threads,
                "seed": plan.seed,
                "sizes": vars(sizes),
                "servers": {seat.contender.name: seat.as_dict() for seat in seats},
                **compare(seats),
            }
            save(result)
        return result
