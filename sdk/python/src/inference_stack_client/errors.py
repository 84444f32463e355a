"""What can go wrong, as types. Every error of the server carries its words, its code and the request's id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from inference_stack_client.objects import parse

RESUME_DIVERGED = "resume_diverged"


class ClientError(Exception):
    """Anything that this package raises."""


class APIConnectionError(ClientError):
    """The server could not be reached, or the connection broke."""


class APITimeoutError(APIConnectionError):
    """The server did not answer in time."""


class StreamInterruptedError(APIConnectionError):
    """A stream broke and could not be resumed: not in time, or not by this server."""


class APIError(ClientError):
    """The server says what is wrong. `code` is stable; `type`, `param` and `request_id` may be None."""

    def __init__(self, message: str, error: Mapping[str, Any], request_id: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.code: str | None = error.get("code")
        self.type: str | None = error.get("type")
        self.param: str | None = error.get("param")
        self.request_id = request_id


class ResumeDivergedError(APIError):
    """The server would go on with other words than the ones that were received. The stream has to be started again."""


class APIStatusError(APIError):
    """An answer with an error status. `response` is all of it."""

    def __init__(self, message: str, error: Mapping[str, Any], response: httpx.Response) -> None:
        super().__init__(message, error, response.headers.get("x-request-id"))
        self.status_code = response.status_code
        self.response = response


class BadRequestError(APIStatusError):
    """400"""


class AuthenticationError(APIStatusError):
    """401"""


class PermissionDeniedError(APIStatusError):
    """403"""


class NotFoundError(APIStatusError):
    """404"""


class RequestTimeoutError(APIStatusError):
    """408"""


class ConflictError(APIStatusError):
    """409"""


class RequestTooLargeError(APIStatusError):
    """413"""


class UnprocessableEntityError(APIStatusError):
    """422"""


class RateLimitError(APIStatusError):
    """429"""


class InternalServerError(APIStatusError):
    """500 and above"""


BY_STATUS: Mapping[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    408: RequestTimeoutError,
    409: ConflictError,
    413: RequestTooLargeError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def status_error(response: httpx.Response) -> APIError:
    """The error for an answer whose body was read."""
    error = _error_object(response)
    said = error.get("message") or response.text[:500] or response.reason_phrase
    if error.get("code") == RESUME_DIVERGED:
        return ResumeDivergedError(str(said), error, response.headers.get("x-request-id"))
    fallback = InternalServerError if response.status_code >= 500 else APIStatusError
    kind = BY_STATUS.get(response.status_code, fallback)
    return kind(f"{response.status_code}: {said}", error, response)


def _error_object(response: httpx.Response) -> Mapping[str, Any]:
    """OpenAI's error object; empty where a proxy answered with something else."""
    try:
        body = parse(response.content)
    except ValueError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def stream_error(error: Any, request_id: str | None) -> APIError:
    """The error that an event of a stream tells of."""
    known = error if isinstance(error, dict) else {"message": str(error)}
    kind = ResumeDivergedError if known.get("code") == RESUME_DIVERGED else APIError
    return kind(str(known.get("message") or "The stream ended with an error."), known, request_id)


def connection_error(error: httpx.TransportError) -> APIConnectionError:
    """httpx's error in our words."""
    if isinstance(error, httpx.TimeoutException):
        return APITimeoutError(f"The server did not answer in time ({type(error).__name__}).")
    return APIConnectionError(f"The connection failed: {str(error) or type(error).__name__}")
