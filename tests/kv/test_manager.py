"""KV memory of one instance: all groups or nothing, prefix hits, windows, fences, two models on one arena."""

from __future__ import annotations

from array import array

import pytest

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.kv.manager import NO_BLOCK, KvManager, Sequence
from inference_stack.kv.slabs import ArenaGeometry, SlabPool

FULL = KvGroupSpec(name="full", layers=(0,), kv_heads=1, head_dim=1)
WINDOW = KvGroupSpec(name="window", layers=(1,), kv_heads=1, head_dim=1, window=20)
PROMPT = list(range(5 * BLOCK_TOKENS))


def arena(slabs: int) -> SlabPool:
    return SlabPool(ArenaGeometry(slab_bytes=2 * FULL.block_bytes, slab_count=slabs))


def manager(*groups: KvGroupSpec, slabs: int = 10) -> KvManager:
    return KvManager("m", groups or (FULL,), arena(slabs))


def sequence(kv: KvManager, tokens: list[int] = PROMPT) -> Sequence:
    made = kv.sequence(kv.hasher.chain(kv.hasher.root(), tokens))
    kv.begin(made, kv.match(made, len(tokens)))
    return made


def computed(kv: KvManager, tokens: list[int] = PROMPT) -> Sequence:
    """A sequence whose tokens are all computed and published."""
    made = sequence(kv, tokens)
    assert kv.allocate(made, len(tokens) // BLOCK_TOKENS)
    kv.publish([(made, array("i", tokens), len(tokens) // BLOCK_TOKENS)])
    return made


def test_a_hit_shares_blocks_and_leaves_a_token_to_compute() -> None:
    kv = manager()
    first = computed(kv)
    second = sequence(kv)
    assert second.tables[0] == first.tables[0][:4]
    kv.check()


def test_a_freed_prompt_is_found_again() -> None:
    kv = manager()
    kv.free(computed(kv))
    usage = kv.usage()
    assert (usage.used, usage.cached) == (0, 5)
    assert sequence(kv).blocks == 4


def test_another_tenants_cache_is_not_used() -> None:
    kv = manager()
    kv.free(computed(kv))
    stranger = kv.sequence(kv.hasher.chain(kv.hasher.root(salt="other"), PROMPT), salt="other")
    assert kv.match(stranger, len(PROMPT)).blocks == 0


def test_without_a_prefix_cache_nothing_is_remembered() -> None:
    kv = KvManager("m", (FULL,), arena(10), prefix_cache=False)
    kv.free(computed(kv))
    assert kv.usage().cached == 0 and kv.index.snapshot().held == frozenset()


def test_allocation_is_all_groups_or_nothing() -> None:
    kv = manager(FULL, WINDOW, slabs=3)
    hog = sequence(kv, [])
    assert kv.allocate(hog, 2)
    assert not kv.allocate(hog, 3)
    assert [len(table) for table in hog.tables] == [2, 2]
    kv.check()


def test_a_window_frees_what_it_left_and_a_hit_needs_only_its_tail() -> None:
    kv = manager(FULL, WINDOW, slabs=20)
    first = computed(kv)
    kv.slide(first, len(PROMPT))
    assert first.tables[1][:3] == [NO_BLOCK] * 3 and NO_BLOCK not in first.tables[1][3:]
    kv.check()
    second = sequence(kv)
    assert second.blocks == 4 and second.tables[1][:2] == [NO_BLOCK] * 2
    kv.check()


def test_what_is_freed_with_a_step_in_flight_is_fenced_until_it_retires() -> None:
    kv = manager()
    running = sequence(kv, [])
    kv.allocate(running, 2)
    kv.planned(0)
    kv.free(running)
    assert kv.usage().fenced == 2
    kv.retire(0)
    assert kv.usage().fenced == 0


def test_a_computed_block_that_equals_a_remembered_one_stays_private() -> None:
    kv = manager()
    one = kv.sequence(kv.hasher.chain(kv.hasher.root(), PROMPT))
    two = kv.sequence(kv.hasher.chain(kv.hasher.root(), PROMPT))
    for each in (one, two):
        kv.begin(each, kv.match(each, 1))
        kv.allocate(each, 5)
    kv.publish([(one, array("i", PROMPT), 5)])
    kv.publish([(two, array("i", PROMPT), 5)])
    kv.free(two)
    kv.free(one)
    assert kv.usage().cached == 5
    kv.check()


def test_models_on_one_arena_trade_slabs() -> None:
    slabs = arena(3)
    one, two = KvManager("one", (FULL,), slabs), KvManager("two", (FULL,), slabs)
    one.free(computed(one))
    hog = two.sequence([])
    two.begin(hog, two.match(hog, 1))
    assert two.allocate(hog, 6)
    assert one.usage().cached == 0 and one.index.snapshot().held == frozenset()
    one.check()
    two.check()


def test_the_longest_sequence_accounts_for_windows_and_slabs() -> None:
    assert manager(slabs=4).capacity_tokens(10_000) == 8 * BLOCK_TOKENS
    assert manager(FULL, WINDOW, slabs=6).capacity_tokens(10_000) == 6 * BLOCK_TOKENS


def test_a_sequence_that_was_never_given_back_is_no_leak_but_a_lost_one_is() -> None:
    kv = manager()
    lost = computed(kv)
    kv.check()
    kv._live.discard(lost)
    with pytest.raises(RuntimeError, match=r"m/full: block \d has 1 references, but block tables hold 0"):
        kv.check()


def test_an_index_entry_for_the_wrong_block_is_caught() -> None:
    kv = manager()
    computed(kv)
    kv.pools[0]._hash[0], kv.pools[0]._hash[1] = kv.pools[0]._hash[1], kv.pools[0]._hash[0]
    with pytest.raises(RuntimeError, match="content is another"):
        kv.check()
