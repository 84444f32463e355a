"""The planned workspace: lifetimes follow tensors and views, addresses repeat, overflow is an error."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.ops.workspace import ALIGNMENT, FirstFit, Workspace, WorkspaceOverflow


def sealed(nbytes_per_token: int = 1024, max_tokens: int = 8) -> Workspace:
    workspace = Workspace(max_tokens=max_tokens, max_samples=2)
    kept = workspace.take((1, nbytes_per_token), torch.uint8)
    del kept
    workspace.seal()
    return workspace


def test_a_dropped_tensor_returns_its_range() -> None:
    workspace = sealed()
    tensor = workspace.take((8, 4), torch.float32)
    assert workspace.live == 1
    del tensor
    assert workspace.live == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_view_keeps_the_range_of_its_dropped_base(mode: type) -> None:
    workspace = sealed()
    with mode():
        base = workspace.take((8, 4), torch.float32)
        base.fill_(3.0)
        view = base[2:5].t()[1:]
        del base
        other = workspace.take((8, 4), torch.float32).fill_(7.0)
        assert workspace.live == 2
        assert torch.equal(view, torch.full((3, 3), 3.0))
        del view
        assert workspace.live == 1
    assert other.sum() == 7 * 32


def test_a_reshaped_and_retyped_view_keeps_the_range() -> None:
    workspace = sealed()
    view = workspace.take((4, 6), torch.float32).view(torch.int32).reshape(2, 12)[1]
    assert workspace.live == 1
    del view
    assert workspace.live == 0


def test_addresses_do_not_depend_on_the_number_of_tokens() -> None:
    workspace = sealed()

    def program(tokens: int) -> list[int]:
        a = workspace.take((tokens, 8), torch.float32)
        b = workspace.take((tokens, 4), torch.float32)
        addresses = [a.data_ptr(), b.data_ptr()]
        del a
        c = workspace.take((tokens, 2), torch.float64)
        return [*addresses, c.data_ptr()]

    assert program(1) == program(8) == program(3)


def test_addresses_are_aligned_and_disjoint() -> None:
    workspace = sealed()
    tensors = [workspace.take((2, width), torch.float32) for width in (1, 3, 7)]
    addresses = [tensor.data_ptr() for tensor in tensors]
    assert all(address % ALIGNMENT == 0 for address in addresses)
    assert len(set(addresses)) == 3


def test_measuring_one_token_plans_for_the_capacity() -> None:
    one, full = Workspace(max_tokens=64, max_samples=2), Workspace(max_tokens=64, max_samples=2)
    for workspace, tokens in ((one, 1), (full, 64)):
        a = workspace.take((tokens, 10), torch.float32)
        b = workspace.take((1, 100), torch.float32, rows="samples")
        del a, b
        workspace.seal()
    assert one.nbytes == full.nbytes > 64 * 40 + 2 * 400


def test_overflow_is_an_error_that_leaves_the_workspace_usable() -> None:
    workspace = sealed(nbytes_per_token=64)
    with pytest.raises(WorkspaceOverflow, match="bytes of workspace"):
        workspace.take((1, 1000), torch.float32)
    assert workspace.live == 0
    assert workspace.take((1, 16), torch.float32).shape == (1, 16)


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(WorkspaceOverflow, match="9 tokens"):
        sealed().take((9, 1), torch.float32)


def test_sealing_while_outputs_live_is_refused() -> None:
    workspace = Workspace(max_tokens=4, max_samples=1)
    kept = workspace.take((1, 4), torch.float32)
    with pytest.raises(RuntimeError, match="still referenced"):
        workspace.seal()
    del kept
    workspace.seal()
    with pytest.raises(RuntimeError, match="sealed already"):
        workspace.seal()


def test_rows_are_inherited_through_views() -> None:
    workspace = sealed()
    samples = workspace.take((2, 4), torch.float32, rows="samples")
    assert workspace.rows_of(samples[1:]) == "samples"
    assert workspace.rows_of(torch.zeros(1)) == "tokens"


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 5)), min_size=1, max_size=40))
def test_places_never_overlap(moves: list[tuple[int, int]]) -> None:
    places, live = FirstFit(), {}
    for size, victim in moves:
        start = places.take(size)
        live[start] = start + size
        spans = sorted(live.items())
        assert all(end <= following for (_, end), (following, _) in pairwise(spans))
        assert max(live.values()) <= places.peak
        if victim and len(live) >= victim:
            gone = spans[victim - 1][0]
            places.release(gone)
            del live[gone]
