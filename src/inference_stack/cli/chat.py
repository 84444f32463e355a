"""A conversation with an OpenAI-compatible server: streamed answers, and the history that makes the next one follow.

Knows HTTP and JSON; knows no terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from inference_stack.cli.sse import EventParser
from inference_stack.core.errors import ErrorInfo, InferenceError


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked of each answer. `model` empty: the first that the server has."""

    model: str = ""
    system: str = ""
    max_tokens: int = 1024
    temperature: float | None = None
    seed: int | None = None


@dataclass
class Conversation:
    """The messages so far. `system` is sent first when it says something."""

    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)

    def asking(self, question: str) -> list[dict[str, str]]:
        """The messages of a request for the answer to `question`."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.turns, {"role": "user", "content": question}]

    def answered(self, question: str, answer: str) -> None:
        """Remember one exchange."""
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def clear(self) -> None:
        """Forget the exchanges, keep the system prompt."""
        self.turns.clear()


def failure(status: int, body: bytes) -> InferenceError:
    """The error a server answered with."""
    try:
        said = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = body[:200].decode(errors="replace") or "no explanation"
    return InferenceError(ErrorInfo(message=f"the server answered {status}: {said}", status=status))


class ChatClient:
    """Talks to one server. Raises `InferenceError` for every failure, whether of the network or the server's own."""

    def __init__(self, url: str, options: Options) -> None:
        self._http = httpx.Client(
            base_url=url.rstrip("/").removesuffix("/v1"), timeout=httpx.Timeout(600.0, connect=5.0)
        )
        self._options = options
        self.usage: dict[str, Any] = {}

    def close(self) -> None:
        """Drop the connections."""
        self._http.close()

    def models(self) -> list[str]:
        """The names of the models that are served."""
        try:
            response = self._http.get("/v1/models")
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.status_code != 200:
            raise failure(response.status_code, response.content)
        return [str(model["id"]) for model in response.json()["data"]]

    def stream(self, model: str, messages: list[dict[str, str]]) -> Iterator[str]:
        """The answer's text as it comes. Closing the iterator early stops the answer in the server."""
        self.usage = {}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=self._body(model, messages)) as response:
                if response.status_code != 200:
                    raise failure(response.status_code, response.read())
                yield from self._text(response)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _body(self, model: str, messages: list[dict[str, str]]) -> dict[str, Any]:
        chosen = {"temperature": self._options.temperature, "seed": self._options.seed}
        return {
            "model": model,
            "messages": messages,
            "max_tokens": self._options.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in chosen.items() if value is not None},
        }

    def _text(self, response: httpx.Response) -> Iterator[str]:
        parser = EventParser()
        for chunk in response.iter_raw():
            for data in parser.feed(chunk):
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise failure(500, data)
                self.usage = event.get("usage") or self.usage
                for choice in event.get("choices", ()):
                    yield choice["delta"].get("content") or ""

    def _unreachable(self, error: httpx.TransportError) -> InferenceError:
        text = f"no answer from {self._http.base_url}: {str(error) or type(error).__name__}"
        return InferenceError(ErrorInfo(message=text, code="unreachable", status=503))
