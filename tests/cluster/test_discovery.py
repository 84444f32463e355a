"""Where nodes are: what is read, what is refused, and what is kept when a source fails."""

import asyncio
from pathlib import Path

import pytest

from inference_stack.cluster.discovery import Discovery, File, Name, Static, sources
from inference_stack.core.errors import InferenceError
from inference_stack.core.seams import SystemClock


def test_all_kinds_of_sources_are_read() -> None:
    assert sources("a:1, [::1]:2,dns:nodes.example:7000,file:/etc/nodes") == (
        Static("a:1"),
        Static("[::1]:2"),
        Name("nodes.example", 7000),
        File(Path("/etc/nodes")),
    )


def test_external_servers_are_named_by_their_urls() -> None:
    assert sources("openai:http://a:1/, openai:https://[::1]:2/team/x") == (
        Static("openai:http://a:1"),
        Static("openai:https://[::1]:2/team/x"),
    )


def test_an_external_url_ends_before_its_version() -> None:
    with pytest.raises(InferenceError, match="before /v1"):
        sources("openai:http://a:1/v1")


@pytest.mark.parametrize(
    "text", ["openai:a:1", "openai:http://a", "openai:ftp://a:1", "openai:http://u:p@a:1", "openai:http://a:1/?q"]
)
def test_what_is_no_servers_url_is_refused(text: str) -> None:
    with pytest.raises(InferenceError, match="HOST:PORT"):
        sources(text)


@pytest.mark.parametrize("text", ["a", "a:0", "a:70000", "http://a:1", "dns:a", ":1", "a b:1"])
def test_what_is_no_address_is_refused_with_the_words_that_would_be(text: str) -> None:
    with pytest.raises(InferenceError, match="HOST:PORT"):
        sources(text)


async def test_a_name_is_all_its_addresses() -> None:
    assert await Name("127.0.0.1", 7000).look() == {"127.0.0.1:7000"}
    assert "127.0.0.1:7000" in await Name("localhost", 7000).look()


async def test_a_file_may_have_comments_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    path.write_text("# rack 1\na:1\n\nb:2  # the slow one\nopenai:http://c:3\n")
    assert await File(path).look() == {"a:1", "b:2", "openai:http://c:3"}


async def next_call(calls: "asyncio.Queue[frozenset[str]]") -> frozenset[str]:
    return await asyncio.wait_for(calls.get(), 10)


async def test_changes_are_told_once_and_failures_keep_what_was_known(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    path.write_text("a:1\n")
    calls: asyncio.Queue[frozenset[str]] = asyncio.Queue()
    discovery = Discovery(sources(f"file:{path},z:9"), 0.01, SystemClock(), calls.put_nowait)
    task = asyncio.create_task(discovery.run())
    assert await next_call(calls) == {"a:1", "z:9"}
    path.write_text("this is no address\n")
    await asyncio.sleep(0.05)
    path.unlink()
    await asyncio.sleep(0.05)
    assert calls.empty()
    path.write_text("b:2\n")
    assert await next_call(calls) == {"b:2", "z:9"}
    task.cancel()


async def test_a_fleet_may_begin_with_nothing_known(tmp_path: Path) -> None:
    calls: asyncio.Queue[frozenset[str]] = asyncio.Queue()
    path = tmp_path / "later"
    task = asyncio.create_task(Discovery(sources(f"file:{path}"), 0.01, SystemClock(), calls.put_nowait).run())
    assert await next_call(calls) == frozenset()
    path.write_text("a:1")
    assert await next_call(calls) == {"a:1"}
    task.cancel()
