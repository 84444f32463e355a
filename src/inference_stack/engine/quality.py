"""How well a model predicts a text, and how far it is from another one: perplexity, KL divergence, agreement.

    perplexity     exp of the mean negative log-probability of each next token, in nats
    divergence     mean over positions of Σ p log(p / q): what is lost by using q, the model, where p, the reference, is right
    agreement      part of the positions where both think the same token most probable

Every window begins anew. Reads all logits, not the few that an API reports. Knows tokens, no text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_stack.artifacts.files import Progress, silent
from inference_stack.core.errors import invalid
from inference_stack.engine.subject import Subject

Windows = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What was measured over `positions`. `divergence` is in nats, `agreement` a fraction; both compare with the reference."""

    positions: int
    perplexity: float
    reference: float
    divergence: float
    worst: float
    agreement: float

    @property
    def increase(self) -> float:
        """Perplexity over the reference's, less one."""
        return self.perplexity / self.reference - 1


class _Sums:
    """Running sums of one comparison."""

    def __init__(self) -> None:
        self.positions = 0
        self.loss = self.reference_loss = self.divergence = self.worst = 0.0
        self.agreed = 0

    def add(self, logits_TV: Tensor, reference_TV: Tensor, next_T: Tensor) -> None:
        model, reference = logits_TV.log_softmax(-1), reference_TV.log_softmax(-1)
        chosen = next_T[:, None]
        divergence_T = (reference.exp() * (reference - model)).sum(-1, dtype=torch.float64)
        self.positions += len(next_T)
        self.loss -= model.gather(1, chosen).sum(dtype=torch.float64).item()
        self.reference_loss -= reference.gather(1, chosen).sum(dtype=torch.float64).item()
        self.divergence += divergence_T.sum().item()
        self.worst = max(self.worst, divergence_T.max().item())
        self.agreed += int((model.argmax(-1) == reference.argmax(-1)).sum())

    def quality(self) -> Quality:
        count = self.positions
        return Quality(
            positions=count,
            perplexity=math.exp(self.loss / count),
            reference=math.exp(self.reference_loss / count),
            divergence=self.divergence / count,
            worst=self.worst,
            agreement=self.agreed / count,
        )


def compare(model: Subject, reference: Subject, windows: Windows, progress: Progress = silent) -> Quality:
    """Measure `model` against `reference` over windows of tokens.

    Raises `invalid` where the two have vocabularies of different size, or where no window has two tokens.
    """
    ours, theirs = model.loaded.model.vocab_size, reference.loaded.model.vocab_size
    if ours != theirs:
        raise invalid(f"The models have vocabularies of {ours} and {theirs} tokens; they cannot be compared.")
    sums, done = _Sums(), 0
    total = sum(len(window) for window in windows)
    for window in windows:
        pairs = zip(_predictions(model, window), _predictions(reference, window), strict=True)
        for (logits_TV, next_T), (reference_TV, _) in pairs:
            sums.add(logits_TV, reference_TV, next_T)
        done += len(window)
        progress("comparing", done, total)
    if not sums.positions:
        raise invalid("The text is too short to measure anything: no window of it has two tokens.")
    return sums.quality()


def perplexity(model: Subject, windows: Windows, progress: Progress = silent) -> float:
    """Perplexity alone. Raises `invalid` where no window has two tokens."""
    loss, count, done = 0.0, 0, 0
    for window in windows:
        for logits_TV, next_T in _predictions(model, window):
            chosen = logits_TV.log_softmax(-1).gather(1, next_T[:, None])
            loss -= chosen.sum(dtype=torch.float64).item()
            count += len(next_T)
        done += len(window)
        progress("reading", done, sum(len(window) for window in windows))
    if not count:
        raise invalid("The text is too short to measure anything: no window of it has two tokens.")
    return math.exp(loss / count)


def cut(tokens: Sequence[int], window: int, prefix: Sequence[int] = ()) -> list[list[int]]:
    """A text in windows of at most `window` tokens, each beginning with `prefix`."""
    size = window - len(prefix)
    return [[*prefix, *tokens[start : start + size]] for start in range(0, len(tokens), size)]


def _predictions(model: Subject, window: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits with the tokens that they predict; the window's last position predicts nothing that is known."""
    following, start = torch.tensor(window[1:], dtype=torch.int64), 0
    for logits_TV in model.logits(window):
        next_T = following[start : start + len(logits_TV)]
        start += len(logits_TV)
        if len(next_T):
            yield logits_TV[: len(next_T)], next_T
