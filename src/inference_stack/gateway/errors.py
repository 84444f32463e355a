"""Errors on their way out: OpenAI's error JSON, the status, and the headers that tell a client when to come back.

Every refusal of the gateway passes here. Knows no endpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from inference_stack.core.errors import INVALID_REQUEST, NOT_FOUND, SERVER_ERROR, ErrorInfo, InferenceError

CLIENT_CLOSED = 499
"""What logs and metrics call a request whose client went away; nothing is sent."""


class ErrorObject(msgspec.Struct):
    """What went wrong, as OpenAI says it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(msgspec.Struct):
    """The body of every answer that is not a success."""

    error: ErrorObject


def error_body(info: ErrorInfo) -> bytes:
    """OpenAI's error JSON."""
    return msgspec.json.encode(ErrorReply(ErrorObject(info.message, info.type, info.param, info.code)))


def error_response(info: ErrorInfo, headers: Mapping[str, str] | None = None) -> Response:
    """The answer for `info`; a known wait goes into Retry-After (whole seconds, rounded up) and retry-after-ms."""
    sent = dict(headers or {})
    if info.retry_after is not None:
        sent["retry-after"] = str(max(1, math.ceil(info.retry_after)))
        sent["retry-after-ms"] = str(max(1, math.ceil(info.retry_after * 1000)))
    return Response(error_body(info), info.status, sent, "application/json")


def refuse(status: int, message: str, *, param: str | None = None, code: str | None = None) -> InferenceError:
    """The request cannot be taken as it is."""
    kind = NOT_FOUND if status == 404 else INVALID_REQUEST
    return InferenceError(ErrorInfo(message=message, type=kind, param=param, code=code, status=status))


def internal_error(request_id: str) -> ErrorInfo:
    """Something here is broken; the log has the traceback under this request id."""
    message = f"The server had an error while processing your request (request id {request_id})."
    return ErrorInfo(message=message, type=SERVER_ERROR, code="internal_error", status=500)
