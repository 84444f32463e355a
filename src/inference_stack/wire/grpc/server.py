"""The node's end of links: `LinkServer` waits for gateways and hands over a link for each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio

from inference_stack.core.errors import InferenceError, invalid
from inference_stack.core.seams import Link
from inference_stack.wire.codec import ProtocolError
from inference_stack.wire.grpc.ends import NodeEnd, parse
from inference_stack.wire.grpc.link import GrpcLink
from inference_stack.wire.grpc.protocol import LINK_KEY, PROMPTS, SERVER_OPTIONS, SERVICE, TALK, pb, spoken
from inference_stack.wire.grpc.queues import BACKLOG_BYTES
from inference_stack.wire.grpc.tls import Tls, server_credentials
from inference_stack.wire.messages import WIRE_VERSION, FromNode, ToNode

HELLO_SECONDS: Final = 10.0
"""How long a new peer may take for its first words."""
STOP_SECONDS: Final = 1.0
"""How long calls may take to end once their links are closed."""
OnLink = Callable[[Link[FromNode, ToNode], str], Awaitable[None]]

log = logging.getLogger(__name__)


class LinkServer:
    """Listens at HOST:PORT (port 0 takes a free one). `on_link(link, peer)` runs for the lifetime of one gateway's link, which is
    closed when it returns; `peer` is the name in the gateway's certificate, or its address where there are none.
    """

    def __init__(
        self,
        listen: str,
        tls: Tls | None,
        on_link: OnLink,
        *,
        wire_version: int = WIRE_VERSION,
        backlog: int = BACKLOG_BYTES,
    ) -> None:
        self.port = 0
        """Where it listens, once started."""
        self._listen = listen
        self._tls = tls or Tls()
        self._on_link = on_link
        self._version = wire_version
        self._backlog = backlog
        self._server: Any = None
        self._links: dict[str, tuple[GrpcLink, NodeEnd, str]] = {}
        self._served: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises `InferenceError` when the address is taken, or beyond this machine without certificates."""
        credentials = server_credentials(self._listen, self._tls)
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        handlers = {
            TALK: grpc.stream_stream_rpc_method_handler(self._talk),
            PROMPTS: grpc.stream_unary_rpc_method_handler(self._read_prompts),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(self._listen)
            else:
                self.port = self._server.add_secure_port(self._listen, credentials)
        except RuntimeError as error:
            raise InferenceError(invalid(f"Cannot listen at {self._listen}: {error}").info) from error
        await self._server.start()

    async def stop(self) -> None:
        """Close every link, wait for what serves it, and listen no more."""
        await asyncio.gather(*(link.close() for link, _, _ in list(self._links.values())))
        await asyncio.gather(*self._served)
        if self._server is not None:
            await self._server.stop(grace=STOP_SECONDS)

    async def _talk(self, _: Any, context: Any) -> None:
        """One gateway's main stream."""
        key = dict(context.invocation_metadata()).get(LINK_KEY, "")
        version = await self._greet(context)
        if not key or key in self._links:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{LINK_KEY} is missing or taken")
        end = NodeEnd()
        link = GrpcLink(end, _peer_name(context), version, self._backlog)
        self._links[key] = link, end, context.peer()
        try:
            await context.write(pb.FromNode(welcome=pb.Welcome(wire_version=self._version)).SerializeToString())
            link.write_to(context.write)
            link.read_from(context.read, end.decode)
            task = asyncio.create_task(self._serve(link))
            self._served.add(task)
            task.add_done_callback(self._served.discard)
            await link.over()
        finally:
            del self._links[key]
            link.finish("the gateway is gone")

    async def _greet(self, context: Any) -> int:
        """The version that is spoken with a new peer; one that says no proper hello is refused."""
        try:
            data = await asyncio.wait_for(context.read(), HELLO_SECONDS)
            first = parse(pb.ToNode, b"" if data is grpc.aio.EOF else data)
            if first.WhichOneof("kind") != "hello":
                raise ProtocolError("the first message is no hello")
            return spoken(first.hello.wire_version, self._version)
        except (ProtocolError, TimeoutError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no hello: {error}")
        except InferenceError as error:
            log.warning("A gateway at %s was refused: %s", context.peer(), error)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        raise AssertionError("abort raises")

    async def _serve(self, link: GrpcLink) -> None:
        try:
            await self._on_link(link, link.peer)
        except Exception:
            log.exception("Serving the link with %s failed.", link.peer)
        finally:
            await link.close()

    async def _read_prompts(self, _: Any, context: Any) -> bytes:
        """The second stream of a link: it must come over the same connection as the first."""
        link, end, address = self._links.get(dict(context.invocation_metadata()).get(LINK_KEY, ""), (None, None, ""))
        if link is None or end is None or address != context.peer():
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such link")
        else:
            link.read_from(context.read, end.decode_part)
            await link.over()
        return b""


def _peer_name(context: Any) -> str:
    names = context.auth_context().get("x509_common_name")
    return str(names[0].decode()) if names else str(context.peer())
