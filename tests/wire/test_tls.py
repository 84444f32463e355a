"""Links that prove who is who: real handshakes with right and wrong certificates."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from inference_stack.cli.certs import Authority, issue, write_authority
from inference_stack.core.errors import InferenceError
from inference_stack.core.seams import LinkClosed
from inference_stack.wire.addresses import is_loopback
from inference_stack.wire.grpc.dial import dial
from inference_stack.wire.grpc.server import LinkServer
from inference_stack.wire.grpc.tls import Tls
from inference_stack.wire.messages import Beat

NOW = datetime.now(UTC)
NODE = ["node-1", "localhost", "127.0.0.1"]
BEAT = Beat(number=1, heard=0)


class Office:
    """An authority in a folder, and certificates of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.authority: Authority = write_authority(folder, NOW)

    def tls(self, hosts: list[str], *, server: bool, end: timedelta = timedelta(days=1), ca: str = "") -> Tls:
        begin = NOW - timedelta(days=2)
        certificate, key = issue(self.authority, hosts, server=server, begin=begin, end=NOW + end)
        base = self.folder / f"{hosts[0]}-{server}"
        base.with_suffix(".crt").write_bytes(certificate)
        base.with_suffix(".key").write_bytes(key)
        ca = ca or str(self.folder / "ca.crt")
        return Tls(ca=ca, cert=str(base.with_suffix(".crt")), key=str(base.with_suffix(".key")))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("ours") / "ca")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("foreign") / "ca")


Listen = Callable[[Tls], Awaitable[tuple[int, asyncio.Queue[str]]]]


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    """A node that echoes on a free port; it notes the peers that got in."""
    async with AsyncExitStack() as stack:

        async def start(tls: Tls) -> tuple[int, asyncio.Queue[str]]:
            peers: asyncio.Queue[str] = asyncio.Queue()

            async def echo(link: Any, peer: str) -> None:
                peers.put_nowait(peer)
                try:
                    while True:
                        await link.send(await link.receive())
                except LinkClosed:
                    return

            server = LinkServer("127.0.0.1:0", tls, echo)
            await server.start()
            stack.push_async_callback(server.stop)
            return server.port, peers

        yield start


async def talk(port: int, tls: Tls | None, host: str = "127.0.0.1", server_name: str = "") -> None:
    link = await dial(f"{host}:{port}", tls, server_name=server_name)
    await link.send(BEAT)
    assert await link.receive() == BEAT
    await link.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_gateway_and_a_node_of_one_authority_talk(ours: Office, listen: Listen, host: str) -> None:
    port, peers = await listen(ours.tls(NODE, server=True))
    await talk(port, ours.tls(["gateway-1"], server=False), host)
    assert await peers.get() == "gateway-1"


async def test_a_node_may_be_dialled_by_address_and_checked_by_name(ours: Office, listen: Listen) -> None:
    port, _ = await listen(ours.tls(["node-2"], server=True))
    gateway = ours.tls(["gateway-1"], server=False)
    await talk(port, gateway, server_name="node-2")
    with pytest.raises(LinkClosed):
        await talk(port, gateway)


async def test_a_gateway_of_another_authority_is_refused(ours: Office, foreign: Office, listen: Listen) -> None:
    port, peers = await listen(ours.tls(NODE, server=True))
    with pytest.raises(LinkClosed):
        await talk(port, foreign.tls(["gateway-1"], server=False, ca=str(ours.folder / "ca.crt")))
    assert peers.empty()


async def test_a_node_of_another_authority_is_refused(ours: Office, foreign: Office, listen: Listen) -> None:
    port, peers = await listen(foreign.tls(NODE, server=True, ca=str(ours.folder / "ca.crt")))
    with pytest.raises(LinkClosed, match=r"(?i)certificate"):
        await talk(port, ours.tls(["gateway-1"], server=False))
    assert peers.empty()


async def test_an_expired_gateway_is_refused(ours: Office, listen: Listen) -> None:
    port, peers = await listen(ours.tls(NODE, server=True))
    with pytest.raises(LinkClosed):
        await talk(port, ours.tls(["gateway-old"], server=False, end=timedelta(days=-1)))
    assert peers.empty()


async def test_an_expired_node_is_refused(ours: Office, listen: Listen) -> None:
    port, peers = await listen(ours.tls(["node-old", "127.0.0.1"], server=True, end=timedelta(days=-1)))
    with pytest.raises(LinkClosed, match=r"(?i)certificate"):
        await talk(port, ours.tls(["gateway-1"], server=False))
    assert peers.empty()


async def test_a_node_with_another_name_is_refused(ours: Office, listen: Listen) -> None:
    port, peers = await listen(ours.tls(["node-3", "example.org"], server=True))
    with pytest.raises(LinkClosed):
        await talk(port, ours.tls(["gateway-1"], server=False))
    assert peers.empty()


async def test_a_gateway_without_a_certificate_is_refused(ours: Office, listen: Listen) -> None:
    port, peers = await listen(ours.tls(NODE, server=True))
    with pytest.raises(LinkClosed):
        await talk(port, None)
    assert peers.empty()


async def test_a_node_may_not_pose_as_a_gateway(ours: Office, listen: Listen) -> None:
    port, peers = await listen(ours.tls(NODE, server=True))
    with pytest.raises(LinkClosed):
        await talk(port, ours.tls(["node-4"], server=True))
    assert peers.empty()


async def test_a_gateway_may_not_pose_as_a_node(ours: Office, listen: Listen) -> None:
    port, peers = await listen(ours.tls(["gateway-2", "127.0.0.1"], server=False))
    with pytest.raises(LinkClosed, match=r"(?i)certificate"):
        await talk(port, ours.tls(["gateway-1"], server=False))
    assert peers.empty()


async def test_beyond_this_machine_certificates_are_needed() -> None:
    with pytest.raises(InferenceError, match="beyond this machine") as refusal:
        await dial("192.0.2.1:7000")
    assert refusal.value.info.code == "tls_required"
    with pytest.raises(InferenceError, match="beyond this machine"):
        await LinkServer("0.0.0.0:0", None, lambda link, peer: asyncio.sleep(0)).start()


async def test_doing_without_certificates_is_loud(caplog: pytest.LogCaptureFixture) -> None:
    server = LinkServer("0.0.0.0:0", Tls(insecure=True), lambda link, peer: asyncio.sleep(0))
    with caplog.at_level(logging.WARNING):
        await server.start()
    await server.stop()
    assert any("INSECURE" in record.message for record in caplog.records)


@pytest.mark.parametrize("tls", [Tls(ca="a"), Tls(cert="b", key="c")])
async def test_half_of_the_files_is_an_error(tls: Tls) -> None:
    with pytest.raises(InferenceError, match="all three"):
        await dial("127.0.0.1:1", tls)


async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    name = str(tmp_path / "none.pem")
    with pytest.raises(InferenceError, match=r"none\.pem"):
        await dial("127.0.0.1:1", Tls(ca=name, cert=name, key=name))


@pytest.mark.parametrize(
    ("address", "local"),
    [
        *[(name, True) for name in ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1")],
        *[(name, False) for name in ("0.0.0.0:1", "[::]:1", "example.org:1", ":1", "localhost.example.org:1")],
    ],
)
def test_what_this_machine_is(address: str, local: bool) -> None:
    assert is_loopback(address) is local
