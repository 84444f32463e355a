"""The gateway's end of a link: `dial` a node."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, Final

import grpc
import grpc.aio

from inference_stack.core.errors import SERVER_ERROR, ErrorInfo, InferenceError
from inference_stack.core.seams import Link, LinkClosed
from inference_stack.wire.codec import ProtocolError
from inference_stack.wire.grpc.ends import GatewayEnd, parse
from inference_stack.wire.grpc.link import GrpcLink
from inference_stack.wire.grpc.prompts import MAX_TOKENS_UNDER_WAY
from inference_stack.wire.grpc.protocol import CHANNEL_OPTIONS, LINK_KEY, PROMPTS, SERVICE, TALK, pb, spoken
from inference_stack.wire.grpc.queues import BACKLOG_BYTES
from inference_stack.wire.grpc.tls import Tls, client_credentials
from inference_stack.wire.messages import WIRE_VERSION, FromNode, Submit, ToNode

DIAL_SECONDS: Final = 5.0


async def dial(
    address: str,
    tls: Tls | None = None,
    *,
    server_name: str = "",
    wire_version: int = WIRE_VERSION,
    timeout: float = DIAL_SECONDS,
    backlog: int = BACKLOG_BYTES,
) -> Link[ToNode, FromNode]:
    """A new link to the node at HOST:PORT; the first message on it shall be `Attach`. The node's certificate must be for HOST, or
    for `server_name` where HOST is only one of the addresses of that name. `backlog`: bytes that may wait to be sent.

    Raises `LinkClosed`, with the reason, for a node that cannot be reached, does not answer within `timeout` seconds or is not
    trusted; `InferenceError` when trying again is of no use: certificates missing, or versions too far apart (`wire_version`).
    """
    credentials = client_credentials(address, tls or Tls())
    options = [*CHANNEL_OPTIONS, *([("grpc.ssl_target_name_override", server_name)] if server_name else [])]
    channel = (
        grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, options=options)
    )
    try:
        return await asyncio.wait_for(_open(channel, address, wire_version, backlog), timeout)
    except BaseException as error:
        await channel.close()
        if isinstance(error, grpc.aio.AioRpcError):
            raise _refusal(address, error) from error
        if isinstance(error, TimeoutError):
            raise LinkClosed(f"{address} did not answer within {timeout:g} s") from error
        if isinstance(error, ProtocolError):
            raise LinkClosed(f"{address} is no node: {error}") from error
        raise


async def _open(channel: Any, address: str, wire_version: int, backlog: int) -> GrpcLink:
    metadata = ((LINK_KEY, secrets.token_hex(16)),)
    talk = channel.stream_stream(f"/{SERVICE}/{TALK}")(metadata=metadata)
    try:
        await talk.write(pb.ToNode(hello=pb.Hello(wire_version=wire_version)).SerializeToString())
        answer = await talk.read()
    except asyncio.InvalidStateError as error:
        raise LinkClosed(f"{address} cannot be reached: {await talk.details()}") from error
    if answer is grpc.aio.EOF:
        raise ProtocolError("it ended the link without a word")
    welcome = parse(pb.FromNode, answer)
    if welcome.WhichOneof("kind") != "welcome":
        raise ProtocolError("its first message is no welcome")
    version = spoken(welcome.welcome.wire_version, wire_version)
    prompts = channel.stream_unary(f"/{SERVICE}/{PROMPTS}")(metadata=metadata)
    end = GatewayEnd()
    link = DialledLink(end, channel, talk, address, version, backlog)
    link.write_to(talk.write)
    link.read_from(talk.read, end.decode)
    link.run(end.prompts.run(prompts.write))
    return link


class DialledLink(GrpcLink):
    """The gateway's end: it owns the connection, and bounds prompts too."""

    def __init__(self, end: GatewayEnd, channel: Any, talk: Any, address: str, version: int, backlog: int) -> None:
        super().__init__(end, address, version, backlog)
        self._prompts = end.prompts
        self._channel = channel
        self._talk = talk

    async def send(self, message: Any) -> None:
        """Deliver in order, without waiting. Raises `LinkClosed`."""
        if isinstance(message, Submit) and self._prompts.waiting_tokens > MAX_TOKENS_UNDER_WAY:
            self.finish("the other side does not read prompts")
        await super().send(message)

    async def close(self) -> None:
        """Both ends see `LinkClosed` from now on. Idempotent."""
        await super().close()
        await self._channel.close()

    async def _hang_up(self) -> None:
        await self._talk.done_writing()
        await self.over()


def _refusal(address: str, error: grpc.aio.AioRpcError) -> Exception:
    details = error.details() or error.code().name
    if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
        return InferenceError(
            ErrorInfo(message=f"{address}: {details}", type=SERVER_ERROR, code="wire_version", status=503)
        )
    return LinkClosed(f"{address} cannot be reached: {details}")
