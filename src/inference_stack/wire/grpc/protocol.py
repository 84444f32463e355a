"""What both ends agree on before the first message: names of the calls, versions, and how the connection is kept."""

from __future__ import annotations

from typing import Any, Final

from inference_stack.core.errors import SERVER_ERROR, ErrorInfo, InferenceError
from inference_stack.wire.grpc import fleet_pb2
from inference_stack.wire.messages import WIRE_VERSION

pb: Any = fleet_pb2
SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["Fleet"].full_name
TALK: Final = "Talk"
PROMPTS: Final = "Prompts"
LINK_KEY: Final = "istack-link"
"""The metadata that ties the two streams of a link together."""
MAX_MESSAGE_BYTES: Final = 256 << 20

_COMMON: Final[list[tuple[str, Any]]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A dead peer is noticed by missing beats; this is for what beats do not see, such as a half-open connection at the end.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
CHANNEL_OPTIONS: Final[list[tuple[str, Any]]] = [
    *_COMMON,
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    # One connection for each link, whose fate it shares.
    ("grpc.use_local_subchannel_pool", 1),
]
SERVER_OPTIONS: Final[list[tuple[str, Any]]] = [
    *_COMMON,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]


def spoken(theirs: int, ours: int = WIRE_VERSION) -> int:
    """The version that two peers speak. Raises `InferenceError` with the code `wire_version` when they are too far apart."""
    if abs(theirs - ours) > 1:
        message = (
            f"The other side speaks wire version {theirs}, and this one {ours}: only adjacent versions work together. "
            "Upgrade the older side."
        )
        raise InferenceError(ErrorInfo(message=message, type=SERVER_ERROR, code="wire_version", status=503))
    return min(theirs, ours)
