"""Errors as values: what went wrong, in the words and the status a client sees.

An `ErrorInfo` crosses processes and ends in OpenAI's error JSON; `InferenceError` carries one where raising is natural.
"""

from __future__ import annotations

from dataclasses import dataclass

INVALID_REQUEST = "invalid_request_error"
NOT_FOUND = "not_found_error"
RATE_LIMIT = "rate_limit_error"
SERVER_ERROR = "server_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """One typed error. `status` is HTTP's; `code` is stable and machine-readable; `retry_after` is in seconds."""

    message: str
    type: str = INVALID_REQUEST
    code: str | None = None
    param: str | None = None
    status: int = 400
    retry_after: float | None = None


class InferenceError(Exception):
    """An `ErrorInfo` on its way to the client."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.message)
        self.info = info


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> InferenceError:
    """The client's input is wrong (400)."""
    return InferenceError(ErrorInfo(message=message, param=param, code=code))


def context_length_exceeded(limit: int, prompt: int, completion: int, param: str = "messages") -> InferenceError:
    """The prompt plus the requested completion does not fit the model's context (400)."""
    message = (
        f"This model's maximum context length is {limit} tokens. However, you requested {prompt + completion} tokens "
        f"({prompt} in the prompt, {completion} in the completion). Please reduce the length of the prompt or completion."
    )
    return InferenceError(ErrorInfo(message=message, param=param, code="context_length_exceeded"))


def model_not_found(model: str) -> InferenceError:
    """No such model is served here (404)."""
    return InferenceError(
        ErrorInfo(
            message=f"The model `{model}` does not exist or is not served here.",
            type=NOT_FOUND,
            code="model_not_found",
            param="model",
            status=404,
        )
    )


def unsupported_model(message: str) -> InferenceError:
    """The model's files name something this build cannot run; the message names it."""
    return InferenceError(ErrorInfo(message=message, code="unsupported_model"))


def queue_full(retry_after: float) -> InferenceError:
    """Admission refuses: the bounded queue is full (429); `retry_after` in seconds is predicted, at most 60."""
    return InferenceError(
        ErrorInfo(
            message="The queue is full. Please retry after the time given in the Retry-After header.",
            type=RATE_LIMIT,
            code="queue_full",
            status=429,
            retry_after=retry_after,
        )
    )


def unavailable(message: str, retry_after: float = 1.0) -> InferenceError:
    """Nothing can serve this now (503): still loading, or draining."""
    return InferenceError(
        ErrorInfo(message=message, type=SERVER_ERROR, code="unavailable", status=503, retry_after=retry_after)
    )


def deadline_exceeded() -> ErrorInfo:
    """The request's deadline passed before it finished (408 when nothing was sent yet)."""
    return ErrorInfo(
        message="The request's deadline passed before it was finished.",
        type=SERVER_ERROR,
        code="deadline_exceeded",
        status=408,
    )


def numerical_fault() -> ErrorInfo:
    """The model produced NaN or infinite logits for this request alone."""
    return ErrorInfo(
        message="The model produced non-finite logits for this request.",
        type=SERVER_ERROR,
        code="numerical_fault",
        status=500,
    )


def worker_crashed() -> ErrorInfo:
    """The request repeatedly brought a worker down, the last time while it ran alone."""
    return ErrorInfo(
        message="This request crashed a worker repeatedly, the last time while it ran alone; it was given up.",
        type=SERVER_ERROR,
        code="worker_crashed",
        status=500,
    )
