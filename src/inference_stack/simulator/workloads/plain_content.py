"""Contents from plain mappings: the `content` of a workload, and the distributions in it.

What is left out keeps the content's own default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from inference_stack.simulator.workloads.chat import Chat
from inference_stack.simulator.workloads.contents import Code, Content, Independent, Rag
from inference_stack.simulator.workloads.distributions import Distribution, Fixed, Lognormal, Uniform
from inference_stack.simulator.workloads.reader import Reader


def content_from(reader: Reader) -> Content:
    """What `content` in that mapping describes by its `kind`. Raises `InferenceError` naming the key."""
    section = reader.section("content")
    content = _CONTENTS[section.choice("kind", _CONTENTS, "independent")](section)
    section.close()
    return content


def distribution_from(reader: Reader, key: str, default: Distribution, low: float = 1.0) -> Distribution:
    """What stands there: a number for a fixed value, or `kind` uniform or lognormal with its own keys; nothing below `low`."""
    if not reader.has(key):
        return default
    given = reader.either(key, low=low)
    if not isinstance(given, Reader):
        return Fixed(given)
    found = _DISTRIBUTIONS[given.choice("kind", _DISTRIBUTIONS)](given, low)
    given.close()
    return found


def _fixed(reader: Reader, low: float) -> Distribution:
    return Fixed(reader.number("value", low=low))


def _uniform(reader: Reader, low: float) -> Distribution:
    least = reader.number("low", low=low)
    return Uniform(least, reader.number("high", low=least))


def _lognormal(reader: Reader, low: float) -> Distribution:
    median, sigma = reader.number("median", above=0.0), reader.number("sigma")
    least = reader.number("low", low, low=low)
    return Lognormal(median, sigma, least, reader.number("high", math.inf, low=least))


def _independent(reader: Reader) -> Content:
    default = Independent()
    return Independent(
        prompt=distribution_from(reader, "prompt", default.prompt),
        answer=distribution_from(reader, "answer", default.answer),
    )


def _chat(reader: Reader) -> Content:
    default = Chat()
    return Chat(
        system_tokens=reader.whole("system_tokens", default.system_tokens),
        turns=distribution_from(reader, "turns", default.turns),
        question=distribution_from(reader, "question", default.question),
        answer=distribution_from(reader, "answer", default.answer),
        think=distribution_from(reader, "think", default.think, low=0.0),
        max_context=reader.whole("max_context", default.max_context),
    )


def _rag(reader: Reader) -> Content:
    default = Rag()
    return Rag(
        system_tokens=reader.whole("system_tokens", default.system_tokens),
        documents=reader.whole("documents", default.documents, low=1),
        zipf=reader.number("zipf", default.zipf),
        document=distribution_from(reader, "document", default.document),
        question=distribution_from(reader, "question", default.question),
        answer=distribution_from(reader, "answer", default.answer),
    )


def _code(reader: Reader) -> Content:
    default = Code()
    return Code(
        repositories=reader.whole("repositories", default.repositories, low=1),
        zipf=reader.number("zipf", default.zipf),
        repository=distribution_from(reader, "repository", default.repository),
        file=distribution_from(reader, "file", default.file),
        answer=distribution_from(reader, "answer", default.answer),
    )


_CONTENTS: Final[dict[str, Callable[[Reader], Content]]] = {
    "independent": _independent,
    "chat": _chat,
    "rag": _rag,
    "code": _code,
}
_DISTRIBUTIONS: Final[Mapping[str, Callable[[Reader, float], Distribution]]] = {
    "fixed": _fixed,
    "uniform": _uniform,
    "lognormal": _lognormal,
}
