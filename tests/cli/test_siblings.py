"""Processes behind one port answer for one another; a dead one is left out."""

import contextlib
from pathlib import Path

from inference_stack.cli.siblings import Siblings


def sibling(folder: Path, number: int, count: int = 3) -> Siblings:
    return Siblings(folder, number, count, {"name": lambda: f"process {number}".encode()})


async def test_everybody_answers(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for number in range(3):
            await stack.enter_async_context(sibling(tmp_path, number).listening())
        answers = await sibling(tmp_path, 1).ask_all("name")
    assert answers == {str(number): f"process {number}".encode() for number in range(3)}


async def test_who_is_not_there_is_left_out(tmp_path: Path) -> None:
    async with sibling(tmp_path, 0).listening():
        assert await sibling(tmp_path, 1).ask_all("name") == {"0": b"process 0", "1": b"process 1"}


async def test_a_successor_takes_the_place_of_one_that_died(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("left behind")
    async with sibling(tmp_path, 0).listening():
        assert (await sibling(tmp_path, 1, 2).ask_all("name"))["0"] == b"process 0"


async def test_large_answers_arrive_whole(tmp_path: Path) -> None:
    big = bytes(5 << 20)
    one = Siblings(tmp_path, 0, 2, {"big": lambda: big})
    async with one.listening():
        answers = await Siblings(tmp_path, 1, 2, {"big": lambda: b""}).ask_all("big")
    assert answers["0"] == big
