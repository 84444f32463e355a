"""Chat completions: from the request to a job, and from pieces to OpenAI's objects and chunks.

Knows the chat API's words; how tokens are made and how bytes are sent is elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET
from starlette.datastructures import Headers

from inference_stack.core.errors import invalid
from inference_stack.gateway.choice import Choice, Piece
from inference_stack.gateway.context import Gateway
from inference_stack.gateway.decode import UNSUPPORTED, unsupported
from inference_stack.gateway.headers import qos
from inference_stack.gateway.job import Job, check_size
from inference_stack.gateway.logprobs import chat_logprobs, prompt_ranks
from inference_stack.gateway.params import (
    chat_budget,
    check_prompt,
    check_streaming,
    sampling_params,
    seed_of,
    text_options,
)
from inference_stack.gateway.progress import Origin, beginning
from inference_stack.gateway.render import MARKER, event, json_string, shown_finish, split_event
from inference_stack.gateway.replies import (
    AnswerMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatLogprobs,
    ChunkChoice,
    Delta,
)
from inference_stack.gateway.schema import ChatRequest
from inference_stack.gateway.text import chat_options, conversation


async def chat_job(
    gateway: Gateway, body: ChatRequest, headers: Headers, request_id: str, arrival: float, source: Origin | None
) -> Job:
    """The job that answers `body`. Raises `InferenceError` for everything that can be known to be wrong."""
    model, frontend = gateway.served(body.model)
    _check(body)
    n = body.n or 1
    begun = beginning(gateway, source, model, "chatcmpl")
    check_size(gateway, model, 1, n, begun.resumed)
    urgency = qos(headers, body.priority, arrival)
    prompt = await conversation(frontend, body.messages, chat_options(body), begun.created)
    check_prompt(prompt, model, "messages")
    budget = chat_budget(body, model, len(prompt))
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    seeds = begun.seeds or (seed_of(body),)
    return Job(
        id=begun.id,
        request_id=request_id,
        created=begun.created,
        model=begun.model,
        frontend=frontend,
        prompts=(prompt,),
        echoes=("",),
        seeds=seeds,
        n=n,
        limit=budget,
        params=sampling_params(body, model, budget, logprobs, body.prompt_logprobs),
        options=text_options(body, model),
        qos=urgency,
        arrival=arrival,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        return_token_ids=bool(body.return_token_ids),
        progress=begun.progress(gateway, seeds, n),
    )


def _check(body: ChatRequest) -> None:
    """What no schema can say."""
    if body.store:
        raise unsupported("store", UNSUPPORTED["store"])
    if body.top_logprobs and not body.logprobs:
        message = "Invalid value for 'top_logprobs': it is only allowed when 'logprobs' is true."
        raise invalid(message, param="top_logprobs", code="invalid_value")
    check_streaming(body)
    if body.continue_final_message and body.messages[-1].__struct_config__.tag != "assistant":
        message = "The last message must be the assistant's when 'continue_final_message' is true."
        raise invalid(message, param="continue_final_message", code="invalid_value")
    if body.continue_final_message and body.add_generation_prompt:
        message = "Only one of 'continue_final_message' and 'add_generation_prompt' can be true."
        raise invalid(message, param="add_generation_prompt", code="invalid_value")


class ChatRenderer:
    """Chat completion objects and chunks of one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._null_usage = None if job.include_usage else UNSET
        self._fast: dict[int, tuple[bytes, bytes]] = {}

    def _chunk(self, choices: list[ChunkChoice]) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._job.id,
            created=self._job.created,
            model=self._job.model.name,
            system_fingerprint=self._job.model.numerics_id,
            choices=choices,
            usage=self._null_usage,
        )

    def opening(self, choice: Choice) -> bytes:
        """The chunk that names the role."""
        template = self._chunk([ChunkChoice(choice.index, Delta(content=MARKER), None, None)])
        self._fast[choice.index] = split_event(template)
        delta = Delta(role="assistant", content="", refusal=None)
        return event(self._chunk([ChunkChoice(choice.index, delta, None, None)]))

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        """The content, then the reason where it ended."""
        logprobs = self._logprobs(piece)
        ids = list(piece.tokens) if self._job.return_token_ids else UNSET
        if piece.entries or ids:
            delta = Delta(content=piece.text)
            sent = event(self._chunk([ChunkChoice(choice.index, delta, logprobs, None, ids)]))
        elif piece.text:
            before, after = self._fast[choice.index]
            sent = before + json_string(piece.text) + after
        else:
            sent = b""
        if piece.finish is None:
            return sent
        return sent + event(self._chunk([ChunkChoice(choice.index, Delta(), None, shown_finish(piece.finish))]))

    def closing(self) -> bytes:
        """The usage, where it was asked for."""
        if not self._job.include_usage:
            return b""
        chunk = self._chunk([])
        chunk.usage = self._job.usage()
        return event(chunk)

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        wanted = self._job.params.logprobs
        return None if wanted is None else chat_logprobs(piece.entries, wanted)

    def whole(self, pieces: Mapping[int, list[Piece]]) -> ChatCompletion:
        """The chat completion object."""
        job = self._job
        answer = ChatCompletion(
            id=job.id,
            created=job.created,
            model=job.model.name,
            choices=[self._choice(choice, pieces[choice.index]) for choice in job.choices],
            usage=job.usage(),
            system_fingerprint=job.model.numerics_id,
        )
        if job.params.prompt_logprobs is not None:
            found = job.scored(job.choices[0])
            answer.prompt_logprobs = prompt_ranks(job.frontend.tokenizer, found, job.params.prompt_logprobs)
        if job.return_token_ids:
            answer.prompt_token_ids = list(job.prompts[0])
        return answer

    def _choice(self, choice: Choice, pieces: list[Piece]) -> ChatChoice:
        entries = [entry for piece in pieces for entry in piece.entries]
        wanted = self._job.params.logprobs
        return ChatChoice(
            choice.index,
            AnswerMessage(content="".join(piece.text for piece in pieces)),
            None if wanted is None else chat_logprobs(entries, wanted),
            shown_finish(pieces[-1].finish),
            [token for piece in pieces for token in piece.tokens] if self._job.return_token_ids else UNSET,
        )
