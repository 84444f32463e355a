"""Text completions: prompts of text or token ids, echo, and scoring with `max_tokens: 0`.

Knows the completion API's words; how tokens are made and how bytes are sent is elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import UNSET, UnsetType
from starlette.datastructures import Headers

from inference_stack.core.errors import invalid
from inference_stack.core.fleet import ModelInfo
from inference_stack.frontend.completion import TokenEntry, prompt_entries
from inference_stack.frontend.load import Frontend
from inference_stack.gateway.choice import Choice, Piece
from inference_stack.gateway.context import Gateway
from inference_stack.gateway.decode import UNSUPPORTED, unsupported
from inference_stack.gateway.headers import qos
from inference_stack.gateway.job import Job, check_size
from inference_stack.gateway.logprobs import prompt_ranks, text_logprobs
from inference_stack.gateway.params import (
    check_length,
    check_prompt,
    check_streaming,
    completion_budget,
    sampling_params,
    seed_of,
    text_options,
)
from inference_stack.gateway.progress import Origin, beginning
from inference_stack.gateway.render import MARKER, event, json_string, shown_finish, split_event
from inference_stack.gateway.replies import PromptLogprobs, TextChoice, TextCompletion, TextLogprobs
from inference_stack.gateway.schema import CompletionRequest
from inference_stack.gateway.text import decoded, encoded


async def completion_job(
    gateway: Gateway, body: CompletionRequest, headers: Headers, request_id: str, arrival: float, source: Origin | None
) -> Job:
    """The job that answers `body`. Raises `InferenceError` for everything that can be known to be wrong."""
    model, frontend = gateway.served(body.model)
    _check(body)
    given = _prompts(body)
    n = body.n or 1
    begun = beginning(gateway, source, model, "cmpl")
    check_size(gateway, model, len(given), n, begun.resumed)
    urgency = qos(headers, body.priority, arrival)
    limit = completion_budget(body)
    prompts = [await _tokens(frontend, model, prompt, limit) for prompt in given]
    scored = body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        scored = max(body.logprobs, scored or 0)
    seeds = begun.seeds or [seed_of(body) for _ in prompts]
    return Job(
        id=begun.id,
        request_id=request_id,
        created=begun.created,
        model=begun.model,
        frontend=frontend,
        prompts=prompts,
        echoes=await _echoes(frontend, body, given),
        seeds=seeds,
        n=n,
        limit=limit,
        params=sampling_params(body, model, max(1, limit), body.logprobs, scored),
        options=text_options(body, model),
        qos=urgency,
        arrival=arrival,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        return_token_ids=bool(body.return_token_ids),
        progress=begun.progress(gateway, seeds, len(prompts) * n),
    )


def _check(body: CompletionRequest) -> None:
    """What no schema can say."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise unsupported("best_of", UNSUPPORTED["best_of"])
    check_streaming(body)


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    """One text, several, one list of token ids, or several: as a list of prompts."""
    if isinstance(body.prompt, str):
        return [body.prompt]
    if all(isinstance(part, int) for part in body.prompt):
        return [[part for part in body.prompt if isinstance(part, int)]]
    prompts = [part for part in body.prompt if isinstance(part, str | list)]
    if len(prompts) != len(body.prompt) or len({type(part) for part in prompts}) != 1:
        message = "Invalid type for 'prompt': expected a string, an array of strings, an array of token ids, or an array of arrays of token ids, but got a mixed array instead."  # noqa: E501
        raise invalid(message, param="prompt", code="invalid_type")
    return prompts


async def _tokens(frontend: Frontend, model: ModelInfo, prompt: str | list[int], limit: int) -> tuple[int, ...]:
    tokens = tuple(prompt) if isinstance(prompt, list) else await encoded(frontend, prompt)
    check_prompt(tokens, model, "prompt")
    check_length(model, len(tokens), max(1, limit), "prompt")
    return tokens


async def _echoes(frontend: Frontend, body: CompletionRequest, given: Sequence[str | list[int]]) -> list[str]:
    """The prompts as the client wrote them, or the texts of their token ids; nothing where no echo is wanted."""
    if not body.echo:
        return [""] * len(given)
    skip = body.skip_special_tokens is not False
    return [part if isinstance(part, str) else await decoded(frontend, part, skip) for part in given]


class CompletionRenderer:
    """Text completion objects of one job, whole or as chunks."""

    def __init__(self, job: Job, body: CompletionRequest) -> None:
        self._job = job
        self._echo = bool(body.echo)
        self._ranked = body.prompt_logprobs
        self._as_ids = bool(body.return_tokens_as_token_ids)
        self._null_usage = None if job.include_usage else UNSET
        self._fast: dict[int, tuple[bytes, bytes]] = {}

    def _chunk(self, choices: list[TextChoice]) -> TextCompletion:
        return TextCompletion(
            id=self._job.id,
            created=self._job.created,
            model=self._job.model.name,
            system_fingerprint=self._job.model.numerics_id,
            choices=choices,
            usage=self._null_usage,
        )

    def opening(self, choice: Choice) -> bytes:
        """The prompt, where it is to be echoed."""
        template = self._chunk([TextChoice(MARKER, choice.index, None, None)])
        self._fast[choice.index] = split_event(template)
        ids = list(self._job.prompts[choice.prompt_index]) if self._job.return_token_ids else UNSET
        if not self._echo and ids is UNSET:
            return b""
        logprobs = self._columns(self._prompt_entries(choice))
        text = self._job.echoes[choice.prompt_index]
        return event(self._chunk([TextChoice(text, choice.index, logprobs, None, prompt_token_ids=ids)]))

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        """The text, and the reason where it ended."""
        ids = list(piece.tokens) if self._job.return_token_ids else UNSET
        if piece.finish is not None or piece.entries or ids:
            finish = None if piece.finish is None else shown_finish(piece.finish)
            logprobs = self._columns(piece.entries)
            return event(self._chunk([TextChoice(piece.text, choice.index, logprobs, finish, token_ids=ids)]))
        if piece.text:
            before, after = self._fast[choice.index]
            return before + json_string(piece.text) + after
        return b""

    def closing(self) -> bytes:
        """The usage, where it was asked for."""
        if not self._job.include_usage:
            return b""
        chunk = self._chunk([])
        chunk.usage = self._job.usage()
        return event(chunk)

    def whole(self, pieces: Mapping[int, list[Piece]]) -> TextCompletion:
        """The text completion object."""
        answer = self._chunk([self._choice(choice, pieces[choice.index]) for choice in self._job.choices])
        answer.usage = self._job.usage()
        return answer

    def _choice(self, choice: Choice, pieces: list[Piece]) -> TextChoice:
        entries = [*self._prompt_entries(choice), *(entry for piece in pieces for entry in piece.entries)]
        ids = self._job.return_token_ids
        return TextChoice(
            self._job.echoes[choice.prompt_index] + "".join(piece.text for piece in pieces),
            choice.index,
            self._columns(entries),
            shown_finish(pieces[-1].finish),
            self._ranks(choice),
            [token for piece in pieces for token in piece.tokens] if ids else UNSET,
            list(self._job.prompts[choice.prompt_index]) if ids else UNSET,
        )

    def _prompt_entries(self, choice: Choice) -> tuple[TokenEntry, ...]:
        if not self._echo or self._job.params.logprobs is None:
            return ()
        prompt = self._job.prompts[choice.prompt_index]
        skip = self._job.options.skip_special_tokens
        tokenizer = self._job.frontend.tokenizer
        return prompt_entries(tokenizer, prompt, self._job.scored(choice), skip_special_tokens=skip)[1]

    def _columns(self, entries: Sequence[TokenEntry]) -> TextLogprobs | None:
        wanted = self._job.params.logprobs
        return None if wanted is None else text_logprobs(entries, wanted, self._as_ids)

    def _ranks(self, choice: Choice) -> PromptLogprobs | UnsetType:
        if self._ranked is None:
            return UNSET
        return prompt_ranks(self._job.frontend.tokenizer, self._job.scored(choice), self._ranked)
