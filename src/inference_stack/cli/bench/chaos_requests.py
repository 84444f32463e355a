"""What is asked while things break, and what "the same bytes" means for the answers.

Every request has a seed, so it has one right answer: the one given when nothing breaks. Knows JSON; knows neither sockets nor time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

CHAT: Final = "/chat/completions"
TEXT: Final = "/completions"
WORDS: Final = ("sea", "ship", "storm", "harbour", "light", "rope", "sail", "wind", "night", "map", "island", "captain")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request. `kind` is what is special about it."""

    kind: str
    path: str
    body: dict[str, Any]

    @property
    def streamed(self) -> bool:
        """Whether the answer comes piece by piece."""
        return bool(self.body.get("stream"))


def _text(dice: random.Random, words: int) -> str:
    return " ".join(dice.choices(WORDS, k=words))


def _chat(dice: random.Random, **fields: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {
        "messages": [{"role": "user", "content": f"Tell me of {_text(dice, dice.randint(4, 60))}."}],
        **fields,
    }


def _completion(dice: random.Random, **fields: Any) -> tuple[str, dict[str, Any]]:
    return TEXT, {"prompt": [dice.randrange(100, 20_000) for _ in range(dice.randint(8, 160))], **fields}


Make = Callable[[random.Random], tuple[str, dict[str, Any]]]
KINDS: Final[Mapping[str, Make]] = {
    "greedy": lambda dice: _chat(dice, temperature=0),
    "seeded": lambda dice: _chat(dice, temperature=1, top_p=0.9),
    "two choices": lambda dice: _chat(dice, temperature=1, n=2),
    "logprobs": lambda dice: _chat(dice, temperature=1, logprobs=True, top_logprobs=3),
    "stop": lambda dice: _chat(dice, temperature=1),
    "penalties": lambda dice: _chat(
        dice, temperature=0.8, presence_penalty=0.5, frequency_penalty=0.5, repetition_penalty=1.1
    ),
    "text": lambda dice: _completion(dice, temperature=0),
    "echo": lambda dice: (TEXT, {"prompt": _text(dice, 20), "temperature": 1, "echo": True}),
    "echoed logprobs": lambda dice: _completion(dice, temperature=1, echo=True, logprobs=2),
    "prompt logprobs": lambda dice: _completion(dice, temperature=1, prompt_logprobs=2, stream=False),
    "two prompts": lambda dice: (TEXT, {"prompt": [_text(dice, 5), _text(dice, 30)], "temperature": 1, "n": 2}),
}


def catalogue(model: str, count: int, shortest: int, longest: int, dice: random.Random) -> list[Case]:
    """`count` requests of all kinds in turn, with answers of `shortest` to `longest` tokens and various priorities."""
    cases = []
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        path, special = KINDS[kind](dice)
        common = {
            "model": model,
            "max_tokens": dice.randint(shortest, longest),
            "ignore_eos": True,
            "seed": dice.randrange(1 << 31),
            "priority": dice.choice((-100, 0, 0, 100)),
            "stream": True,
            "return_token_ids": True,
        }
        body = common | special
        if body["stream"] and dice.random() < 0.7:
            body["stream_options"] = {"include_usage": True}
        cases.append(Case(kind=kind, path=path, body=body))
    return cases


def stopped(case: Case, answer: Transcript) -> Case:
    """The same request with a stop string that its answer runs into past the middle."""
    text = answer.choices[0]["text"]
    middle = len(text) // 2
    return replace(case, body=case.body | {"stop": [text[middle : middle + 6]]})


@dataclass
class Transcript:
    """An answer without its chunk borders: per choice text, token ids, logprobs and finish reason; and the usage."""

    choices: dict[int, dict[str, Any]] = field(default_factory=dict)
    usage: tuple[int, int] | None = None
    id: str = ""
    changed: str = ""
    _constant: tuple[Any, ...] | None = field(default=None, compare=False, repr=False)

    def take(self, part: Mapping[str, Any]) -> None:
        """A chunk of a stream, or a whole answer. `changed` names what should have stayed constant and did not."""
        constant = (part.get("id"), part.get("created"), part.get("model"))
        if self._constant is None:
            self._constant, self.id = constant, str(constant[0])
        elif constant != self._constant:
            self.changed = f"{self._constant} became {constant}"
        if usage := part.get("usage"):
            self.usage = usage["prompt_tokens"], usage["completion_tokens"]
        for choice in part.get("choices") or ():
            self._choice(choice)

    def _choice(self, choice: Mapping[str, Any]) -> None:
        mine = self.choices.setdefault(choice["index"], {"text": "", "tokens": [], "logprobs": {}, "finish": None})
        said = choice.get("delta") or choice.get("message") or {}
        mine["text"] += (said.get("content") or "") + (choice.get("text") or "")
        mine["tokens"] += choice.get("token_ids") or []
        for name, entries in (choice.get("logprobs") or {}).items():
            if entries is not None:
                mine["logprobs"].setdefault(name, []).extend(entries)
        for name in ("prompt_logprobs", "prompt_token_ids", "stop_reason"):
            if choice.get(name) is not None:
                mine[name] = choice[name]
        mine["finish"] = choice.get("finish_reason") or mine["finish"]

    def tokens(self) -> int:
        """Tokens of all choices so far."""
        return sum(len(choice["tokens"]) for choice in self.choices.values())

    def difference(self, twin: Transcript) -> str:
        """How this answer differs from its undisturbed twin; empty when it does not."""
        if self.changed:
            return f"inside the stream, {self.changed}"
        if self.usage != twin.usage:
            return f"usage {self.usage} instead of {twin.usage}"
        if self.choices.keys() != twin.choices.keys():
            return f"choices {sorted(self.choices)} instead of {sorted(twin.choices)}"
        for index, mine in self.choices.items():
            other = twin.choices[index]
            for name in mine.keys() | other.keys():
                if mine.get(name) != other.get(name):
                    return f"choice {index}, {name}: {_parting(mine.get(name), other.get(name))}"
        return ""


def _parting(mine: Any, other: Any) -> str:
    """Where two values part."""
    if not (isinstance(mine, str | list) and isinstance(other, str | list)):
        return f"{str(mine)[:80]} instead of {str(other)[:80]}"
    at = next((place for place, pair in enumerate(zip(mine, other, strict=False)) if pair[0] != pair[1]), None)
    place = min(len(mine), len(other)) if at is None else at
    here = f"{str(mine[place : place + 8])[:80]!r} instead of {str(other[place : place + 8])[:80]!r}"
    return f"from {place} on (of {len(mine)} and {len(other)}), {here}"
