"""What requests contain, where each stands alone: independent prompts, retrieval (RAG), code completion.

A content is an endless supply of sessions; here every session is one request. The defaults are round numbers to start from. Knows
no arrival times.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from inference_stack.simulator.api import Segment
from inference_stack.simulator.workloads.distributions import Distribution, Lognormal, whole
from inference_stack.simulator.workloads.streams import Streams


class Ask(NamedTuple):
    """One request of a session. `seed` numbers its answer's stream; `pause` is seconds since the answer before it, if any."""

    prompt: tuple[Segment, ...]
    output_tokens: int
    seed: int
    pause: float = 0.0


class Content(Protocol):
    """An endless supply of sessions, each of requests that follow one another."""

    def mean_turns(self) -> float:
        """Requests in a session, on average."""
        ...

    def sessions(self, streams: Streams, rng: np.random.Generator) -> Iterator[Iterable[Ask]]:
        """One session after the other; a session is to be used up before the next is asked for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Independent:
    """Prompts that share nothing."""

    prompt: Distribution = Lognormal(1000, 0.6, 1, 16_000)
    answer: Distribution = Lognormal(130, 0.9, 1, 2000)

    def mean_turns(self) -> float:
        return 1.0

    def sessions(self, streams: Streams, rng: np.random.Generator) -> Iterator[Iterable[Ask]]:
        while True:
            yield (_ask((), self.prompt, self.answer, streams, rng),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rag:
    """Retrieval: a system prompt shared by all, one document of a pool, then the question.

    The document ranked k is asked about in proportion to 1 / k^zipf.
    """

    system_tokens: int = 200
    documents: int = 1000
    zipf: float = 1.0
    document: Distribution = Lognormal(2000, 0.6, 100, 16_000)
    question: Distribution = Lognormal(40, 0.8, 4, 1000)
    answer: Distribution = Lognormal(150, 0.8, 1, 2000)

    def mean_turns(self) -> float:
        return 1.0

    def sessions(self, streams: Streams, rng: np.random.Generator) -> Iterator[Iterable[Ask]]:
        system = shared_prompt(self.system_tokens, streams)
        pool = _Pool(self.documents, self.zipf, self.document, streams, rng)
        while True:
            yield (_ask((*system, pool.draw(rng)), self.question, self.answer, streams, rng),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Code completion: a repository's common beginning, a long piece of the file at hand, a short answer.

    The repository ranked k is worked on in proportion to 1 / k^zipf.
    """

    repositories: int = 20
    zipf: float = 0.5
    repository: Distribution = Lognormal(2000, 0.5, 100, 16_000)
    file: Distribution = Lognormal(1500, 0.9, 30, 8000)
    answer: Distribution = Lognormal(13, 1.0, 1, 500)

    def mean_turns(self) -> float:
        return 1.0

    def sessions(self, streams: Streams, rng: np.random.Generator) -> Iterator[Iterable[Ask]]:
        pool = _Pool(self.repositories, self.zipf, self.repository, streams, rng)
        while True:
            yield (_ask((pool.draw(rng),), self.file, self.answer, streams, rng),)


def shared_prompt(tokens: int, streams: Streams) -> tuple[Segment, ...]:
    """A system prompt of that many tokens; none for 0."""
    return (Segment(streams.fresh(), 0, tokens),) if tokens else ()


class _Pool:
    """Pieces of text that prompts have in common, drawn by Zipf's law."""

    def __init__(
        self, size: int, zipf: float, length: Distribution, streams: Streams, rng: np.random.Generator
    ) -> None:
        self._pieces = [Segment(streams.fresh(), 0, whole(length, rng)) for _ in range(size)]
        self._edges = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -zipf)

    def draw(self, rng: np.random.Generator) -> Segment:
        place = int(np.searchsorted(self._edges, rng.random() * self._edges[-1], side="right"))
        return self._pieces[min(place, len(self._pieces) - 1)]


def _ask(
    shared: tuple[Segment, ...],
    own: Distribution,
    answer: Distribution,
    streams: Streams,
    rng: np.random.Generator,
) -> Ask:
    prompt = (*shared, Segment(streams.fresh(), 0, whole(own, rng)))
    return Ask(prompt, whole(answer, rng), streams.fresh())
