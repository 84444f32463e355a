"""What the two ends of a link say: messages of `wire.messages` to bytes and back, with the link's own tables beneath.

Bytes that are no message, or one of a later version that this end does not know, are a `ProtocolError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from inference_stack.core.fleet import NodeState
from inference_stack.wire.codec import ProtocolError
from inference_stack.wire.grpc import fleet_pb2
from inference_stack.wire.grpc.handles import Handles
from inference_stack.wire.grpc.mirror import Mirror
from inference_stack.wire.grpc.prompts import Joiner, PromptSender
from inference_stack.wire.grpc.reports import decode_report, encode_report
from inference_stack.wire.messages import (
    Abort,
    Attach,
    Beat,
    DrainNode,
    LoadModel,
    Lost,
    StepReport,
    Submit,
    UnloadModel,
)

pb: Any = fleet_pb2
_attach = Mirror(Attach, pb.Attach)
_abort = Mirror(Abort, pb.Abort)
_beat = Mirror(Beat, pb.Beat)
_drain = Mirror(DrainNode, pb.DrainNode)
_load = Mirror(LoadModel, pb.LoadModel)
_unload = Mirror(UnloadModel, pb.UnloadModel)
_lost = Mirror(Lost, pb.Lost)
_state = Mirror(NodeState, pb.NodeState)


class End(Protocol):
    """One end's two directions."""

    def encode(self, message: Any) -> bytes:
        """The bytes of a message. Called in the order of sending."""
        ...

    def decode(self, data: bytes) -> Sequence[Any]:
        """The messages that are whole with this one. Raises `ProtocolError`."""
        ...


def parse(kind: Any, data: bytes) -> Any:
    """A protobuf message. Raises `ProtocolError`."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"not a message: {error}") from error


def _whole(decode: Callable[[Any], Sequence[Any]], envelope: Any) -> Sequence[Any]:
    """What `decode` makes of a message. Raises `ProtocolError` for one whose fields do not fit together."""
    try:
        return decode(envelope)
    except (ValueError, KeyError) as error:
        raise ProtocolError(f"not a message: {error}") from error


class GatewayEnd:
    """Sends `ToNode`, receives `FromNode`."""

    def __init__(self) -> None:
        self.handles = Handles()
        self.prompts = PromptSender(self.handles)

    def encode(self, message: Any) -> bytes:
        """The bytes of a message on the main stream."""
        data: bytes = self._envelope(message).SerializeToString()
        return data

    def _envelope(self, message: Any) -> Any:
        match message:
            case Submit():
                return pb.ToNode(submit=self.prompts.submit(message))
            case Abort():
                self.handles.forget(message.request_ids)
                self.prompts.abort(message.request_ids)
                return pb.ToNode(abort=_abort.to_proto(message))
            case Beat():
                return pb.ToNode(beat=_beat.to_proto(message))
            case Attach():
                return pb.ToNode(attach=_attach.to_proto(message))
            case DrainNode():
                return pb.ToNode(drain_node=_drain.to_proto(message))
            case LoadModel():
                return pb.ToNode(load_model=_load.to_proto(message))
            case UnloadModel():
                return pb.ToNode(unload_model=_unload.to_proto(message))
        raise TypeError(f"gateways do not send {type(message).__name__}")

    def decode(self, data: bytes) -> Sequence[Any]:
        """One message. Raises `ProtocolError`."""
        return _whole(self._messages, parse(pb.FromNode, data))

    def _messages(self, envelope: Any) -> Sequence[Any]:
        match envelope.WhichOneof("kind"):
            case "step_report":
                return (decode_report(envelope.step_report, self.handles),)
            case "lost":
                self.handles.drop(envelope.lost.handles)
                return (_lost.from_proto(envelope.lost),)
            case "node_state":
                return (_state.from_proto(envelope.node_state),)
            case "beat":
                return (_beat.from_proto(envelope.beat),)
        return ()  # a kind that a later version has added


class NodeEnd:
    """Sends `FromNode`, receives `ToNode`."""

    def __init__(self) -> None:
        self.handles = Handles()
        self._joiner = Joiner(self.handles)

    def encode(self, message: Any) -> bytes:
        """The bytes of a message."""
        data: bytes = self._envelope(message).SerializeToString()
        return data

    def _envelope(self, message: Any) -> Any:
        match message:
            case StepReport():
                return pb.FromNode(step_report=encode_report(message, self.handles))
            case Lost():
                lost = _lost.to_proto(message)
                lost.handles.extend(self.handles.of(message.request_ids))
                self.handles.forget(message.request_ids)
                return pb.FromNode(lost=lost)
            case NodeState():
                return pb.FromNode(node_state=_state.to_proto(message))
            case Beat():
                return pb.FromNode(beat=_beat.to_proto(message))
        raise TypeError(f"nodes do not send {type(message).__name__}")

    def decode(self, data: bytes) -> Sequence[Any]:
        """The messages that are whole now. Raises `ProtocolError`."""
        return _whole(self._messages, parse(pb.ToNode, data))

    def _messages(self, envelope: Any) -> Sequence[Any]:
        match envelope.WhichOneof("kind"):
            case "submit":
                return self._joiner.submit(envelope.submit)
            case "abort":
                abort = _abort.from_proto(envelope.abort)
                self.handles.forget(abort.request_ids)
                return (*self._joiner.abort(abort.request_ids), abort)
            case "beat":
                return (_beat.from_proto(envelope.beat),)
            case "attach":
                return (_attach.from_proto(envelope.attach),)
            case "drain_node":
                return (_drain.from_proto(envelope.drain_node),)
            case "load_model":
                return (_load.from_proto(envelope.load_model),)
            case "unload_model":
                return (_unload.from_proto(envelope.unload_model),)
        return ()  # a kind that a later version has added

    def decode_part(self, data: bytes) -> Sequence[Any]:
        """The requests that are whole with this part of a prompt. Raises `ProtocolError`."""
        return _whole(self._joiner.part, parse(pb.PromptPart, data))
