"""A client for Inference Stack and other OpenAI-compatible servers, blocking and asynchronous.

Streams survive broken connections: they are resumed, through the same server or another one, without a token lost or repeated.
"""

from inference_stack_client.client import AsyncClient, Client
from inference_stack_client.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ClientError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestTimeoutError,
    RequestTooLargeError,
    ResumeDivergedError,
    StreamInterruptedError,
    UnprocessableEntityError,
)
from inference_stack_client.objects import Object
from inference_stack_client.resources import RawResponse
from inference_stack_client.stream import AsyncStream, Stream

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncClient",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
    "Client",
    "ClientError",
    "ConflictError",
    "InternalServerError",
    "NotFoundError",
    "Object",
    "PermissionDeniedError",
    "RateLimitError",
    "RawResponse",
    "RequestTimeoutError",
    "RequestTooLargeError",
    "ResumeDivergedError",
    "Stream",
    "StreamInterruptedError",
    "UnprocessableEntityError",
]
__version__ = "0.1.0"
