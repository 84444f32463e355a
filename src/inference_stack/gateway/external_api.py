"""What is said to an OpenAI-compatible server in vLLM's dialect, and what its answers mean. Pure: bytes in, bytes out.

    Request ─▶ body of POST /v1/completions: token ids, numbers        `return_token_ids` makes its chunks carry token ids, and
    TokenDelta ◀─ chunks: token_ids, logprobs, finish_reason, usage    `return_tokens_as_token_ids` names logprobs' tokens by id

Knows neither sockets nor when to try again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from inference_stack.core.errors import INVALID_REQUEST, SERVER_ERROR, ErrorInfo, InferenceError, invalid
from inference_stack.core.request import Continuation, FinishReason, Request, SamplingParams
from inference_stack.core.step import TokenDelta, TokenLogprob

CLIENTS_FAULT: Final = frozenset((400, 408, 413, 422))
"""Statuses that say something about the request; all others say something about the server."""
FINISHES: Final = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
ID_PREFIX: Final = "token_id:"
MESSAGE_CHARS: Final = 500
LONGEST_DEADLINE_MS: Final = 86_400_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """What this gateway knows of a model by its own files; the server's must be the same one. `max_model_len` 0: unknown."""

    name: str
    architecture: str
    vocab_size: int
    max_model_len: int
    eos_tokens: tuple[int, ...]


class Refusal(Exception):
    """The server does not do it, for reasons of its own: another may. `status` is what it said, 0 where it said nothing."""

    def __init__(self, reason: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.retry_after = retry_after


class Unreachable(Refusal):
    """No connection to the server can be made."""


class NoTokenIds(Refusal):
    """It answers with text alone."""


class NoLogprobs(Refusal):
    """Its log-probabilities do not say which tokens they belong to."""


def unsupported(request: Request, logprobs: bool) -> InferenceError | None:
    """Why an external server cannot be asked for this, if it cannot; one that gives `logprobs`, or one that does not."""
    params = request.continuation.params
    if params.prompt_logprobs is not None:
        what, param = "Log-probabilities of the prompt are", "prompt_logprobs"
    elif params.logprobs is not None and not logprobs:
        what, param = "Log-probabilities are", "logprobs"
    elif request.adapter:
        what, param = "Adapters are", "model"
    else:
        return None
    message = f"{what} not available from the external server that serves this model."
    return invalid(message, param=param, code="unsupported_parameter")


def request_body(request: Request, eos_tokens: Sequence[int]) -> bytes:
    """The body that asks for the rest of a completion. Everything is said, since a server's defaults may come from anywhere; the
    model's own end tokens too, so that it stops where every other node does."""
    known = request.continuation
    params = known.params
    ends = () if params.ignore_eos else eos_tokens
    body: dict[str, Any] = {
        "model": request.model,
        "prompt": [*known.prompt, *known.emitted],
        "max_tokens": params.max_tokens - len(known.emitted),
        "min_tokens": max(0, params.min_tokens - len(known.emitted)),
        "stop_token_ids": list(dict.fromkeys((*params.stop_token_ids, *ends))),
        "ignore_eos": params.ignore_eos,
        "seed": noise_seed(known),
        "include_stop_str_in_output": True,  # otherwise the token that stops has no log-probability with some servers
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        **_sampling(params),
    }
    if params.logprobs is not None:
        body |= {"logprobs": params.logprobs, "return_tokens_as_token_ids": True}
    if request.cache_salt:
        body["cache_salt"] = request.cache_salt
    return msgspec.json.encode(body)


def _sampling(params: SamplingParams) -> dict[str, Any]:
    return {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or -1,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in params.logit_bias.items()},
    }


def noise_seed(known: Continuation) -> int:
    """The seed to ask with, a signed 64-bit integer: the request's own for a first choice from its start. Others get one derived
    from it: servers count a request's noise from its first token, and must not draw the same again."""
    seed = known.seed
    if known.choice or known.emitted:
        text = f"{known.seed}:{known.choice}:{len(known.emitted)}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    return seed - 2**64 if seed >= 2**63 else seed


def one_token(model: str, logprobs: bool) -> Request:
    """The cheapest request that shows whether token ids come back, those of `logprobs` too."""
    params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=1 if logprobs else None, ignore_eos=True)
    return Request(id="check", model=model, continuation=Continuation(prompt=(0,), params=params, seed=0))


def urgency(request: Request) -> dict[str, str]:
    """Headers that tell a server which understands them how urgent it is. Deadlines are seconds from now."""
    qos = request.qos
    headers = {"x-priority": str(max(-100, min(100, qos.priority)))}
    deadlines = {
        "x-deadline-ms": qos.deadline,
        "x-ttft-deadline-ms": None if request.continuation.emitted else qos.ttft_deadline,
    }
    for name, seconds in deadlines.items():
        if seconds is not None:
            headers[name] = f"{min(max(seconds * 1000, 1.0), LONGEST_DEADLINE_MS):.3f}"
    return headers


# -- answers


class _Card(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


class _Logprobs(msgspec.Struct):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    text: str | None = ""
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_cards = msgspec.json.Decoder(_Cards)
_chunk = msgspec.json.Decoder(_Chunk)


def offered(body: bytes) -> dict[str, int | None]:
    """The context length of each model that `GET /v1/models` lists, where it is said. Raises `Refusal`."""
    try:
        return {card.id: card.max_model_len for card in _cards.decode(body).data}
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refusal(f"its list of models cannot be read: {error}") from error


def answer_error(status: int, body: bytes, retry_after: str | None) -> InferenceError | Refusal:
    """What an answer other than 200 means: an `InferenceError` where the request is at fault."""
    found = _error_fields(body)
    message = str(found.get("message") or f"status {status}")[:MESSAGE_CHARS]
    if status not in CLIENTS_FAULT:
        return Refusal(f"it answers {status}: {message}", status, _seconds(retry_after))
    code, param = found.get("code"), found.get("param")
    kind = SERVER_ERROR if status == 408 else INVALID_REQUEST
    return InferenceError(
        ErrorInfo(
            message=message,
            type=kind,
            code=code if isinstance(code, str) else None,
            param=param if isinstance(param, str) else None,
            status=status,
        )
    )


def _error_fields(body: bytes) -> Mapping[str, Any]:
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return {"message": body[:MESSAGE_CHARS].decode(errors="replace").strip()}
    found = parsed.get("error", parsed) if isinstance(parsed, dict) else {}
    return found if isinstance(found, dict) else {"message": str(found)}


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After in seconds; a date is not worth a clock."""
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:
        return None


class Reply:
    """One streamed answer. Tokens are passed on with their log-probabilities, which may come later than they do; the last ones
    wait for the usage behind them, which knows the prefix hit."""

    def __init__(self, request: Request, vocab_size: int) -> None:
        self._id, self._attempt = request.id, request.attempt
        self._prompt = len(request.continuation.prompt)
        self._alternatives = request.continuation.params.logprobs
        self._vocab_size = vocab_size
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._cached: int | None = None
        self._finish: FinishReason | None = None

    def take(self, data: bytes) -> TokenDelta | None:
        """The news in one event, if any. Raises `Refusal` for an error in mid-stream, and for what cannot be understood."""
        try:
            chunk = _chunk.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Refusal(f"its stream cannot be read: {error}") from error
        if chunk.error is not None:
            raise _mid_stream(data)
        if chunk.usage is not None and chunk.usage.prompt_tokens_details is not None:
            cached = chunk.usage.prompt_tokens_details.cached_tokens
            self._cached = None if cached is None else min(cached, self._prompt)
        for choice in chunk.choices:
            self._add(choice)
        if self._finish is not None:
            return None
        count = len(self._tokens) if self._alternatives is None else min(len(self._tokens), len(self._logprobs))
        return self._delta(count) if count else None

    def end(self) -> TokenDelta:
        """The last news, once the stream has ended. Raises `Refusal` where it ended too early."""
        if self._finish is None:
            raise Refusal("its stream ended before the completion did")
        if self._alternatives is not None and len(self._logprobs) != len(self._tokens):
            raise NoLogprobs("it did not give every token's log-probability")
        delta = self._delta(len(self._tokens))
        delta.finish, delta.cached_tokens = self._finish, self._cached
        return delta

    def _delta(self, count: int) -> TokenDelta:
        delta = TokenDelta(self._id, self._attempt, tuple(self._tokens[:count]), tuple(self._logprobs[:count]))
        del self._tokens[:count], self._logprobs[:count]
        return delta

    def _add(self, choice: _Choice) -> None:
        if choice.token_ids is None and choice.text:
            raise NoTokenIds("it does not return token ids; it cannot be a node")
        for token in choice.token_ids or ():
            if not 0 <= token < self._vocab_size:
                raise Refusal(f"it emitted token {token}, which the model does not have: it serves another one")
        self._tokens += choice.token_ids or ()
        if self._alternatives is not None and choice.logprobs is not None:
            self._logprobs += _logprobs(choice.logprobs, self._alternatives)
        if choice.finish_reason is not None:
            self._finish = FINISHES.get(choice.finish_reason)
            if self._finish is None:
                raise Refusal(f"it ended the completion for the reason {choice.finish_reason[:40]!r}")


def _mid_stream(data: bytes) -> InferenceError | Refusal:
    """An error inside a stream. The request was accepted, so whatever its status is said to be, it is the server's trouble; but for
    a deadline, which is passed everywhere."""
    found = _error_fields(data)
    message = str(found.get("message") or "no reason given")[:MESSAGE_CHARS]
    if found.get("code") == "deadline_exceeded":
        return InferenceError(ErrorInfo(message=message, type=SERVER_ERROR, code="deadline_exceeded", status=408))
    return Refusal(f"its stream ended with an error: {message}")


def _logprobs(columns: _Logprobs, alternatives: int) -> list[TokenLogprob]:
    tops = columns.top_logprobs or [None] * len(columns.tokens)
    rows = zip(columns.tokens, columns.token_logprobs, tops, strict=False)
    return [_logprob(token, logprob, top or {}, alternatives) for token, logprob, top in rows if logprob is not None]


def _logprob(name: str, logprob: float, top: Mapping[str, float], alternatives: int) -> TokenLogprob:
    """One token's. The chosen token stands among the alternatives even where it is none; how far behind them is not said."""
    token = _token(name)
    best = sorted(((_token(other), value) for other, value in top.items()), key=lambda pair: -pair[1])[:alternatives]
    rank = next((place for place, (other, _) in enumerate(best, 1) if other == token), len(best) + 1)
    return TokenLogprob(token=token, logprob=logprob, rank=rank, top=tuple(best))


def _token(name: str) -> int:
    digits = name.removeprefix(ID_PREFIX)
    if digits == name or not digits.isdecimal():
        raise NoLogprobs("it does not name log-probabilities' tokens by id")
    return int(digits)
