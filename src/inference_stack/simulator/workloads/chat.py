"""Conversations: every turn repeats all that was said before it, questions and answers, and adds a question.

turn 1   system · question 1
turn 2   system · question 1 · answer 1 · question 2        some time after answer 1 has ended
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from inference_stack.simulator.api import Segment
from inference_stack.simulator.workloads.contents import Ask, shared_prompt
from inference_stack.simulator.workloads.distributions import Distribution, Lognormal, whole
from inference_stack.simulator.workloads.streams import Streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """Multi-turn chat under one system prompt. `think` is seconds between an answer's end and the next question.

    A session ends before a turn that would be longer than `max_context` tokens, answer included; 0 sets no limit. The defaults are
    round numbers to start from.
    """

    system_tokens: int = 200
    turns: Distribution = Lognormal(3, 0.8, 1, 20)
    question: Distribution = Lognormal(60, 1.0, 4, 4000)
    answer: Distribution = Lognormal(200, 0.8, 1, 2000)
    think: Distribution = Lognormal(20, 1.0, 0, 600)
    max_context: int = 0

    def mean_turns(self) -> float:
        """Turns of a session if `max_context` ends none early."""
        return max(1.0, self.turns.mean())

    def sessions(self, streams: Streams, rng: np.random.Generator) -> Iterator[Iterable[Ask]]:
        system = shared_prompt(self.system_tokens, streams)
        while True:
            yield self._session(system, streams, rng)

    def _session(self, prompt: tuple[Segment, ...], streams: Streams, rng: np.random.Generator) -> Iterator[Ask]:
        length, pause = sum(piece.length for piece in prompt), 0.0
        for _ in range(whole(self.turns, rng)):
            question = Segment(streams.fresh(), 0, whole(self.question, rng))
            prompt, length = (*prompt, question), length + question.length
            output, seed = whole(self.answer, rng), streams.fresh()
            if self.max_context and length + output > self.max_context:
                return
            yield Ask(prompt, output, seed, pause)
            # The answer stands in its own stream where it stood in the sequence: right behind the prompt.
            prompt, length = (*prompt, Segment(seed, length, output)), length + output
            pause = self.think.draw(rng)
