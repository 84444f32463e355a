"""Slab sizes, arena addresses, and who may take which slab."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.kv.slabs import ArenaGeometry, SlabPool, slab_size


def spec(layers: int, heads: int, head_dim: int, dtype: str = "float32") -> KvGroupSpec:
    return KvGroupSpec(name="g", layers=tuple(range(layers)), kv_heads=heads, head_dim=head_dim, dtype=dtype)


SMOLLM2 = spec(30, 3, 64)


def test_the_demo_models_slab_keeps_every_rule() -> None:
    choice = slab_size([SMOLLM2], 1 << 30)
    assert choice.slab_bytes == 32 << 20
    assert choice.slab_bytes // SMOLLM2.block_bytes >= 16
    assert choice.waste <= 0.03 and choice.note == ""


def test_a_smaller_slab_would_waste_too_much_or_hold_too_few() -> None:
    half = slab_size([SMOLLM2], 1 << 30).slab_bytes // 2
    blocks = half // SMOLLM2.block_bytes
    assert blocks < 16 or 1 - blocks * SMOLLM2.block_bytes / half > 0.03


def test_a_small_arena_falls_back_and_says_so() -> None:
    choice = slab_size([SMOLLM2], 8 * SMOLLM2.block_bytes)
    assert choice.slab_count >= 2
    assert "too small" in choice.note


def test_an_arena_without_room_for_every_group_is_refused() -> None:
    with pytest.raises(ValueError, match="do not hold one block"):
        slab_size([SMOLLM2, SMOLLM2], SMOLLM2.block_bytes)


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 8), st.sampled_from([32, 64, 80, 128])), min_size=1, max_size=3
    ),
    st.integers(24, 36),
)
def test_a_chosen_slab_is_a_power_of_two_that_holds_every_group(shapes: list[tuple[int, int, int]], bits: int) -> None:
    specs = [spec(*shape) for shape in shapes]
    try:
        choice = slab_size(specs, 1 << bits)
    except ValueError:
        assert (1 << bits) // len(specs) < 2 * max(s.block_bytes for s in specs)
        return
    assert choice.slab_bytes & (choice.slab_bytes - 1) == 0
    assert choice.slab_bytes <= 256 << 20
    assert all(s.block_bytes <= choice.slab_bytes for s in specs)
    assert choice.slab_count * choice.slab_bytes <= 1 << bits
    assert choice.note or choice.waste <= 0.03


@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from([16, 48, 80]), st.integers(1, 5))
def test_units_of_all_blocks_and_layers_are_disjoint_and_inside_the_arena(
    layers: int, heads: int, head_dim: int, slabs: int
) -> None:
    group = spec(layers, heads, head_dim, "float16")
    geometry = ArenaGeometry(slab_bytes=1 << (3 * group.block_bytes).bit_length(), slab_count=slabs)
    places = geometry.group(group)
    entries = places.entry_of(np.arange(slabs * places.blocks_per_slab))
    starts = np.add.outer(
        entries * places.granule_bytes, np.array([places.layer_offset(layer) for layer in range(layers)])
    )
    ordered = np.sort(starts.ravel())
    assert (np.diff(ordered) >= group.unit_bytes).all()
    assert ordered[-1] + group.unit_bytes <= geometry.arena_bytes
    assert places.granule_bytes == math.gcd(geometry.slab_bytes, group.unit_bytes)
    assert places.layer_offset(1) % places.granule_bytes == 0


def test_a_layers_region_of_a_slab_is_contiguous() -> None:
    places = ArenaGeometry(slab_bytes=1 << 20, slab_count=2).group(spec(4, 2, 32))
    first = places.entry_of(np.arange(places.blocks_per_slab)) * places.granule_bytes
    assert (np.diff(first) == places.unit_bytes).all()


def test_a_group_larger_than_a_slab_is_refused() -> None:
    with pytest.raises(ValueError, match="exceeds a slab"):
        ArenaGeometry(slab_bytes=1024, slab_count=2).group(SMOLLM2)


class Holder:
    """A pool as the slab pool sees it."""

    def __init__(self, live: int, cached: int, principal: object = "one") -> None:
        self.principal = principal
        self.load = (live, cached)
        self.surrendered: list[int] = []

    def slab_load(self, slab: int) -> tuple[int, int]:
        return self.load

    def surrender(self, slab: int) -> None:
        self.surrendered.append(slab)


def slab_pool(count: int) -> SlabPool:
    return SlabPool(ArenaGeometry(slab_bytes=1024, slab_count=count))


def test_reclaim_takes_the_slab_with_the_least_cached() -> None:
    slabs = slab_pool(3)
    busy, rich, poor, needy = Holder(1, 0), Holder(0, 9), Holder(0, 2), Holder(0, 0)
    taken = {holder: slabs.take(holder) for holder in (busy, rich, poor)}
    assert slabs.take(needy) == taken[poor]
    assert poor.surrendered == [taken[poor]] and not rich.surrendered
    slabs.check()


def test_slabs_in_use_are_never_reclaimed() -> None:
    slabs = slab_pool(1)
    assert slabs.take(Holder(1, 0)) == 0
    assert slabs.take(Holder(0, 0)) is None


def test_a_claim_makes_everybody_else_wait() -> None:
    slabs = slab_pool(2)
    one, two = Holder(0, 0, "one"), Holder(0, 0, "two")
    slabs.claim("one")
    slabs.claim("two")
    assert slabs.take(two) is None and slabs.take(one) is not None
    slabs.unclaim("one")
    assert slabs.take(one) is None and slabs.take(two) is not None


def test_giving_back_what_one_does_not_own_is_an_error() -> None:
    slabs = slab_pool(1)
    slab = slabs.take(Holder(0, 0))
    assert slab is not None
    with pytest.raises(RuntimeError, match="does not own"):
        slabs.give_back(slab, Holder(0, 0))
