"""Names of blocks, the longest usable prefix, and the event stream that rebuilds the index."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference_stack.core.request import BLOCK_TOKENS, Continuation, Request, SamplingParams
from inference_stack.kv.events import EventLog, apply
from inference_stack.kv.prefix import BlockHasher, PrefixIndex

TOKENS = tuple(range(4 * BLOCK_TOKENS + 3))


def test_names_are_128_bits_and_only_full_blocks_have_one() -> None:
    hasher = BlockHasher("m")
    names = hasher.chain(hasher.root(), TOKENS)
    assert len(names) == 4 and {len(name) for name in names} == {16}


def test_a_name_depends_on_everything_before_it() -> None:
    hasher = BlockHasher("m")
    changed = (99, *TOKENS[1:])
    assert not set(hasher.chain(hasher.root(), TOKENS)) & set(hasher.chain(hasher.root(), changed))


def test_model_adapter_tenant_and_key_separate_names() -> None:
    roots = [
        BlockHasher("m").root(),
        BlockHasher("n").root(),
        BlockHasher("m").root(adapter="a"),
        BlockHasher("m").root(salt="a"),
        BlockHasher("m", b"other key").root(),
    ]
    assert len(set(roots)) == len(roots)


def test_an_image_separates_names_from_its_block_on() -> None:
    hasher = BlockHasher("m")
    plain = hasher.chain(hasher.root(), TOKENS)
    with_image = hasher.chain(hasher.root(), TOKENS, {2: b"picture"})
    assert [a == b for a, b in zip(plain, with_image, strict=True)] == [True, True, False, False]


def test_a_requests_chain_covers_emitted_tokens() -> None:
    continuation = Continuation(prompt=TOKENS[:20], emitted=TOKENS[20:40], params=SamplingParams(), seed=0)
    hasher = BlockHasher("m")
    request = Request(id="r", model="m", continuation=continuation)
    assert hasher.request_chain(request) == hasher.chain(hasher.root(), TOKENS[:40])


NAMES = [bytes([index]) for index in range(12)]


def index_of(held: list[set[int]], windows: list[int | None]) -> PrefixIndex:
    index = PrefixIndex(windows, EventLog())
    for group, places in enumerate(held):
        for place in places:
            index.store(group, [(place, (NAMES[place], b"", b""))])
    return index


def longest_by_definition(held: list[set[int]], windows: list[int | None], limit: int) -> int:
    def usable(length: int) -> bool:
        for places, window in zip(held, windows, strict=True):
            oldest = 0 if window is None else max(0, length * BLOCK_TOKENS - window + 1)
            if any(place not in places for place in range(oldest // BLOCK_TOKENS, length)):
                return False
        return True

    return max(length for length in range(limit + 1) if usable(length))


@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 11), min_size=4), st.sampled_from([None, 1, 16, 17, 40, 100])),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 12),
)
def test_a_match_is_the_longest_usable_prefix(groups: list[tuple[set[int], int | None]], limit: int) -> None:
    held, windows = [places for places, _ in groups], [window for _, window in groups]
    match = index_of(held, windows).match(NAMES, limit)
    assert match.blocks == longest_by_definition(held, windows, limit)
    for group, (first, found) in enumerate(zip(match.first, match.found, strict=True)):
        assert list(found) == list(range(first, match.blocks))
        assert windows[group] is not None or first == 0


OPERATIONS = st.lists(st.tuples(st.sampled_from(["store", "remove", "clear"]), st.integers(0, 1), st.integers(0, 5)))


@given(OPERATIONS, st.integers(0, 30), st.integers(1, 8))
def test_a_listener_rebuilds_the_index_exactly(
    operations: list[tuple[str, int, int]], joins_after: int, buffer: int
) -> None:
    """It joins at any time with a snapshot, reads every third change, and takes a new snapshot when it was too slow."""
    index = PrefixIndex([None, 32], log := EventLog(capacity=buffer))
    held: set[tuple[int, bytes]] = set()
    seen = 0
    for number, (what, group, place) in enumerate([*operations, ("end", 0, 0)]):
        if what == "store":
            index.store(group, [(place, (NAMES[place], b"", b""))])
        elif what == "remove" and index.block(group, NAMES[place]) is not None:
            index.remove(group, [NAMES[place]])
        elif what == "clear":
            index.clear()
        if number >= joins_after and (number % 3 == 0 or what == "end"):
            events = log.since(seen) if seen else None
            if events is None:
                seen, snapshot = index.snapshot()
                held = set(snapshot)
            else:
                for event in events:
                    assert event.sequence == seen + 1
                    apply(held, event)
                    seen = event.sequence
            assert held == index.snapshot().held
    assert seen == log.sequence or joins_after > len(operations)
