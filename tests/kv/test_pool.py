"""Block pools: order of use, fences, eviction, integrity; and that planted errors are found."""

from __future__ import annotations

import pytest

from inference_stack.kv.lists import LinkedLists
from inference_stack.kv.pool import BlockPool
from inference_stack.kv.slabs import ArenaGeometry, SlabPool


class Evicted(list[bytes]):
    pass


def pools(count: int = 1, slabs: int = 2, per_slab: int = 2) -> tuple[list[BlockPool], list[bytes], SlabPool]:
    slab_pool = SlabPool(ArenaGeometry(slab_bytes=1024, slab_count=slabs))
    evicted: list[bytes] = []
    made = [BlockPool(f"p{n}", per_slab, slab_pool, principal=n, evicted=evicted.extend) for n in range(count)]
    return made, evicted, slab_pool


def taken(pool: BlockPool) -> int:
    block = pool.take()
    assert block is not None
    return block


def remembered(pool: BlockPool, name: bytes, fence: int | None = None) -> int:
    block = taken(pool)
    pool.remember(block, name)
    pool.release(block, fence)
    return block


def test_blocks_are_distinct_and_end_when_slabs_end() -> None:
    (pool,), _, _ = pools()
    blocks = [taken(pool) for _ in range(4)]
    assert sorted(blocks) == [0, 1, 2, 3] and pool.take() is None
    pool.check(dict.fromkeys(blocks, 1))


def test_a_fenced_block_is_not_taken_before_its_step_retired() -> None:
    (pool,), _, _ = pools(slabs=1, per_slab=1)
    block = taken(pool)
    pool.release(block, fence=7)
    assert pool.take() is None
    pool.retire(6)
    assert pool.take() is None
    pool.retire(7)
    assert pool.take() == block


def test_a_fenced_block_that_was_hit_and_freed_again_waits_for_the_later_fence() -> None:
    (pool,), _, _ = pools(slabs=1, per_slab=1)
    block = taken(pool)
    pool.remember(block, b"x")
    pool.release(block, fence=1)
    pool.hit(block)
    pool.release(block, fence=2)
    pool.retire(1)
    assert pool.fenced == 1 and pool.take() is None
    pool.retire(2)
    assert pool.cached == 1


def test_free_blocks_go_before_cached_ones_and_the_least_recently_used_first() -> None:
    (pool,), evicted, _ = pools(slabs=1, per_slab=4)
    blocks = [taken(pool) for _ in range(4)]
    for name, block in zip((b"old", b"new"), blocks[:2], strict=True):
        pool.remember(block, name)
    for block in blocks:
        pool.release(block, None)
    assert {taken(pool), taken(pool)} == set(blocks[2:]) and evicted == []
    taken(pool)
    assert evicted == [b"old"]


def test_what_was_hit_outlives_what_was_not() -> None:
    (pool,), evicted, _ = pools(slabs=1, per_slab=2)
    popular = remembered(pool, b"popular")
    pool.hit(popular)
    pool.release(popular, None)
    remembered(pool, b"once")
    taken(pool)
    assert evicted == [b"once"]


def test_even_the_popular_ages() -> None:
    (pool,), evicted, _ = pools(slabs=1, per_slab=2)
    popular = remembered(pool, b"popular")
    pool.hit(popular)
    pool.release(popular, None)
    for number in range(10):
        remembered(pool, b"%d" % number)
    assert b"popular" in evicted


def test_another_pool_reclaims_a_slab_of_cached_blocks() -> None:
    (one, two), evicted, slabs = pools(count=2, slabs=1)
    remembered(one, b"x")
    assert two.take() is not None
    assert evicted == [b"x"] and one.total == 0
    slabs.check()
    one.check({})


def test_an_empty_slab_is_given_back() -> None:
    (pool,), _, slabs = pools()
    block = taken(pool)
    pool.release(block, None)
    assert slabs.free == 2 and pool.total == 0


def test_a_double_free_is_caught() -> None:
    (pool,), _, _ = pools()
    block = taken(pool)
    pool.release(block, None)
    with pytest.raises(RuntimeError, match="freed twice"):
        pool.release(block, None)


def test_a_leak_is_caught() -> None:
    (pool,), _, _ = pools()
    block = taken(pool)
    with pytest.raises(RuntimeError, match=f"block {block} has 1 references, but block tables hold 0"):
        pool.check({})


def test_a_block_that_vanished_from_its_list_is_caught() -> None:
    (pool,), _, _ = pools()
    block = taken(pool)
    pool._lists.pop(4, 1)
    with pytest.raises(RuntimeError, match="wrong list"):
        pool.check({block: 1})


def test_a_wrong_tally_is_caught() -> None:
    (pool,), _, _ = pools()
    block = taken(pool)
    pool._tally[0] += 1
    with pytest.raises(RuntimeError, match="do not add up"):
        pool.check({block: 1})


def test_remembering_a_block_that_nobody_uses_is_an_error() -> None:
    (pool,), _, _ = pools()
    with pytest.raises(RuntimeError, match="without being used"):
        pool.remember(0, b"x")


def test_linked_lists_refuse_a_node_twice_and_a_stranger() -> None:
    lists = LinkedLists(3, 2)
    lists.extend(0, [1])
    with pytest.raises(RuntimeError, match="already"):
        lists.extend(1, [1])
    with pytest.raises(RuntimeError, match="no list"):
        lists.remove(2)
    assert lists.members(0) == [1] and lists.members(1) == []


def test_linked_lists_pop_the_oldest_and_no_more_than_there_are() -> None:
    lists = LinkedLists(6, 2)
    lists.extend(1, [4, 0, 5])
    assert lists.pop(1, 2) == [4, 0] and lists.members(1) == [5]
    assert lists.pop(1, 2) == [5] and lists.pop(1, 1) == [] and lists.members(1) == []
    lists.extend(1, [0, 4])
    assert lists.members(1) == [0, 4]


def test_the_least_key_goes_first_over_several_lists() -> None:
    lists, keys = LinkedLists(6, 3), [1, 3, 2, 2, 5, 9]
    lists.extend(0, [0, 1])
    lists.extend(1, [2, 4])
    lists.extend(2, [3, 5])
    order = []
    while len(order) < 6:
        k, limit = lists.least(3, keys)
        order += lists.pop(k, 6 - len(order), keys, limit)
    assert order == [0, 2, 3, 1, 4, 5]
    with pytest.raises(RuntimeError, match="empty"):
        lists.least(3, keys)


def test_a_block_freed_twice_behind_one_fence_becomes_idle_once() -> None:
    (pool,), _, _ = pools(slabs=1, per_slab=2)
    block = remembered(pool, b"x", fence=3)
    pool.hit(block)
    pool.release(block, fence=3)
    pool.retire(3)
    assert pool.cached == 1
    pool.check({})
