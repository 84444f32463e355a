"""Messages to msgpack and back: `[type name, fields]`, with numpy columns as dtype, shape and raw bytes.

Only the types listed here can be decoded; anything else on a wire is a `ProtocolError`.
"""

from __future__ import annotations

from typing import Any, get_origin

import msgspec
import numpy as np

from inference_stack.core.fleet import NodeState
from inference_stack.core.step import StepPlan, StepResult
from inference_stack.wire import messages

MESSAGE_TYPES: tuple[type, ...] = (
    messages.Configure,
    messages.Submit,
    messages.Abort,
    messages.Drain,
    messages.Hello,
    messages.Ready,
    messages.StepReport,
    messages.Heartbeat,
    messages.Fatal,
    messages.Lost,
    messages.Attach,
    messages.Beat,
    messages.DrainNode,
    messages.LoadModel,
    messages.UnloadModel,
    NodeState,
    StepPlan,
    StepResult,
)


class ProtocolError(Exception):
    """Bytes on a wire that are no message of ours."""


def _pack_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [value.dtype.str, list(value.shape), value.tobytes()]
    raise TypeError(f"cannot encode {type(value).__name__}")


def _unpack_array(kind: Any, value: Any) -> Any:
    if kind is np.ndarray or get_origin(kind) is np.ndarray:
        dtype, shape, data = value
        return np.frombuffer(data, dtype=np.dtype(dtype)).reshape(shape)
    raise TypeError(f"cannot decode into {kind}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_pack_array)
_envelope = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
    kind.__name__: msgspec.msgpack.Decoder(kind, dec_hook=_unpack_array) for kind in MESSAGE_TYPES
}


def encode(message: Any) -> bytes:
    """The bytes of one message."""
    return _encoder.encode((type(message).__name__, message))


def decode(data: bytes) -> Any:
    """The message in `data`. Raises `ProtocolError`."""
    try:
        name, fields = _envelope.decode(data)
        return _decoders[name].decode(fields)
    except (msgspec.MsgspecError, KeyError, ValueError, TypeError) as error:
        raise ProtocolError(f"not a message: {error}") from error
