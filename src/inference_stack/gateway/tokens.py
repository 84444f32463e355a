"""Tokenising and detokenising for clients that want to see token ids. Nothing is generated."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from inference_stack.core.errors import InferenceError, invalid, unavailable
from inference_stack.core.fleet import ModelInfo
from inference_stack.frontend.load import Frontend
from inference_stack.gateway.body import read_json_body
from inference_stack.gateway.context import Gateway
from inference_stack.gateway.decode import decode_json
from inference_stack.gateway.generate import MIB
from inference_stack.gateway.params import check_prompt
from inference_stack.gateway.probes import json_response
from inference_stack.gateway.replies import Detokenized, Tokenized
from inference_stack.gateway.schema import DetokenizeRequest, TokenizeRequest
from inference_stack.gateway.text import chat_options, conversation, decoded, encoded, spelled

T = TypeVar("T")


class Tokens:
    """Handlers over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._tokenize = msgspec.json.Decoder(TokenizeRequest)
        self._detokenize = msgspec.json.Decoder(DetokenizeRequest)

    async def _read(self, request: Request, decoder: msgspec.json.Decoder[T]) -> T:
        limit = int(self._gateway.config.max_body_mb * MIB)
        return decode_json(await read_json_body(request.headers, request.receive, limit), decoder)

    def _model(self, name: str | None) -> tuple[ModelInfo, Frontend]:
        """The named model; the only one where none is named."""
        if name is not None:
            return self._gateway.served(name)
        served = self._gateway.dispatch.models()
        if not served:
            raise unavailable("No model is ready yet.")
        if len(served) > 1:
            raise _which_model()
        return self._gateway.served(next(iter(served)))

    async def tokenize(self, request: Request) -> Response:
        """The ids of `prompt`, or of `messages` as the model's template writes them."""
        body = await self._read(request, self._tokenize)
        model, frontend = self._model(body.model)
        if body.prompt is not None and body.messages is None:
            tokens = await encoded(frontend, body.prompt, body.add_special_tokens)
        elif body.messages is not None and body.prompt is None:
            tokens = await conversation(frontend, body.messages, chat_options(body), self._gateway.clock.wall())
        else:
            message = "Exactly one of 'prompt' and 'messages' is required."
            raise invalid(message, param="prompt", code="invalid_value")
        names = await spelled(frontend, tokens) if body.return_token_strs else None
        reply = Tokenized(count=len(tokens), max_model_len=model.max_model_len, tokens=list(tokens), token_strs=names)
        return json_response(reply)

    async def detokenize(self, request: Request) -> Response:
        """The text of `tokens`, special tokens included."""
        body = await self._read(request, self._detokenize)
        model, frontend = self._model(body.model)
        if body.tokens:
            check_prompt(body.tokens, model, "tokens")
        return json_response(Detokenized(await decoded(frontend, body.tokens)))


def _which_model() -> InferenceError:
    message = "Missing required parameter: 'model'. Several models are served."
    return invalid(message, param="model", code="missing_required_parameter")
