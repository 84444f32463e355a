"""Memory that the device and the workspace take: zeroed, aligned, usable to its last byte."""

from __future__ import annotations

import mmap

import pytest

from inference_stack.ops.host_memory import HUGE_PAGE, host_bytes


@pytest.mark.parametrize("nbytes", [1, 4096, HUGE_PAGE - 1, HUGE_PAGE + 3])
def test_memory_is_zero_writable_and_begins_on_a_huge_page(nbytes: int) -> None:
    memory = host_bytes(nbytes)
    assert memory.shape == (nbytes,) and not memory.any()
    memory.fill_(7)
    assert memory.sum(dtype=int) == 7 * nbytes
    assert memory.data_ptr() % HUGE_PAGE == 0


def test_two_pieces_do_not_overlap() -> None:
    one, other = host_bytes(100), host_bytes(100)
    one.fill_(1)
    assert not other.any()


def test_a_system_without_huge_pages_is_served_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    memory = host_bytes(5000)
    assert memory.shape == (5000,) and not memory.any()
