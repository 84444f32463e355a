"""One model instance's KV memory over all its groups: match, allocate, publish, slide, free.

A `Sequence` is one request's block tables. Allocation is all groups or nothing, so every group's table has the same length;
entries that a sliding window has left behind are `NO_BLOCK`. Step numbers are the only time known here: a block freed while
steps are in flight is fenced until the last of them has retired.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Final

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.kv.events import EventLog, Named
from inference_stack.kv.pool import BlockPool
from inference_stack.kv.prefix import DEFAULT_KEY, BlockHasher, Match, PrefixIndex
from inference_stack.kv.slabs import SlabPool

NO_BLOCK: Final = -1


def blocks_for(tokens: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // BLOCK_TOKENS)


@dataclass(slots=True, eq=False)
class Sequence:
    """One request's block tables, `tables[group][index]`, and the names of its full blocks as far as they are known.

    `names` starts with the hashes of the tokens the request came with and grows as blocks fill. `published` blocks have been
    offered to the index; `slid[group]` entries have left the group's window.
    """

    root: bytes
    names: list[bytes]
    tables: tuple[list[int], ...]
    slid: list[int] = field(default_factory=list)
    blocks: int = 0
    published: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KvUsage:
    """Blocks over all groups. `total` counts every block that the arena could hold for this model if it owned all slabs' share."""

    total: int
    used: int
    cached: int
    free: int
    fenced: int


class KvManager:
    """KV memory of one model instance. Several managers may share one `SlabPool`.

    `events` buffers the index's changes; `events_capacity` is how many.
    """

    def __init__(
        self,
        model: str,
        groups: Seq[KvGroupSpec],
        slabs: SlabPool,
        *,
        prefix_cache: bool = True,
        hash_key: bytes = DEFAULT_KEY,
        events_capacity: int = 4096,
    ) -> None:
        self.model = model
        self.groups = tuple(groups)
        self.hasher = BlockHasher(model, hash_key)
        self.prefix_cache = prefix_cache
        self.events = EventLog(events_capacity)
        self.index = PrefixIndex([spec.window for spec in groups], self.events)
        self._slabs = slabs
        self.pools = tuple(
            BlockPool(
                f"{model}/{spec.name}",
                slabs.geometry.group(spec).blocks_per_slab,
                slabs,
                principal=self,
                evicted=partial(self.index.remove, group),
            )
            for group, spec in enumerate(self.groups)
        )
        self.windowed = tuple(group for group, spec in enumerate(self.groups) if spec.window is not None)
        self._live: set[Sequence] = set()
        self._planned = -1
        self._retired = -1

    # -- steps

    def planned(self, step: int) -> None:
        """Step `step` was launched: what is freed from now on may still be touched by it."""
        self._planned = step

    def retire(self, step: int) -> None:
        """Step `step` and all before it have finished."""
        self._retired = step
        for pool in self.pools:
            pool.retire(step)

    @property
    def fence(self) -> int | None:
        """The step that something freed now has to wait for; None when nothing is in flight."""
        return self._planned if self._planned > self._retired else None

    # -- capacity

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of `tokens` tokens, alone and in chunks of one block, fits the whole arena."""
        slabs = 0
        for spec, pool in zip(self.groups, self.pools, strict=True):
            blocks = blocks_for(tokens)
            if spec.window is not None:
                blocks = min(blocks, blocks_for(spec.window - 1) + 3)
            slabs += -(-blocks // pool.blocks_per_slab)
        return slabs <= self._slabs.geometry.slab_count

    def capacity_tokens(self, ceiling: int) -> int:
        """The longest sequence, at most `ceiling` tokens, that `fits`."""
        low, high = 0, ceiling
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(middle) else (low, middle - 1)
        return low

    def ample(self, blocks: int) -> bool:
        """Whether every group has `blocks` more blocks of its own: allocations of that many in all cannot fail."""
        return all(pool.holds(blocks) for pool in self.pools)

    @property
    def own_blocks(self) -> int:
        """The most for which it is `ample`."""
        return min(pool.free + pool.cached for pool in self.pools)

    def reaches(self, blocks: int) -> bool:
        """Whether every group on its own could take `blocks` more blocks now: necessary for `allocate`, not sufficient."""
        return all(pool.reaches(blocks) for pool in self.pools)

    def soon(self, blocks: int) -> bool:
        """Whether `reaches` will hold once the steps in flight have retired."""
        return all(pool.reaches(blocks - pool.fenced) for pool in self.pools)

    @property
    def claiming(self) -> bool:
        """This instance has claimed the arena."""
        return self._slabs.claims(self)

    @property
    def yielding(self) -> bool:
        """Another instance has claimed the arena: start nothing new."""
        return self._slabs.claimed_by_other(self)

    def claim(self) -> None:
        """Ask for the whole arena (for a request that cannot grow although it is alone), and drop everything cached here."""
        self._slabs.claim(self)
        self.clear()

    def unclaim(self) -> None:
        """Withdraw the claim."""
        self._slabs.unclaim(self)

    # -- life of a sequence

    def sequence(self, names: list[bytes], adapter: str = "", salt: str = "") -> Sequence:
        """Empty block tables for a request whose full blocks are named `names`."""
        return Sequence(
            root=self.hasher.root(adapter, salt),
            names=names,
            tables=tuple([] for _ in self.groups),
            slid=[0] * len(self.groups),
        )

    def match(self, sequence: Sequence, tokens: int) -> Match:
        """The longest remembered prefix that leaves at least one of `tokens` tokens to compute."""
        limit = max(0, tokens - 1) // BLOCK_TOKENS if self.prefix_cache else 0
        return self.index.match(sequence.names, limit)

    def begin(self, sequence: Sequence, match: Match) -> None:
        """Put a prefix hit into empty block tables."""
        self._live.add(sequence)
        for group, pool in enumerate(self.pools):
            first, found = match.first[group], match.found[group]
            for block in found:
                pool.hit(block)
            sequence.tables[group][:] = [NO_BLOCK] * first + list(found)
            sequence.slid[group] = first
        sequence.blocks = sequence.published = match.blocks

    def allocate(self, sequence: Sequence, blocks: int) -> bool:
        """Grow every group's table to `blocks` entries, or none (False)."""
        missing = blocks - sequence.blocks
        several = len(self.pools) > 1
        taken = self._take(missing, frugal=several and self.claiming)
        if taken is None and several:
            taken = self._take(missing, frugal=True)
        if taken is None:
            return False
        for table, got in zip(sequence.tables, taken, strict=True):
            table += got
        sequence.blocks = blocks
        return True

    def grow(self, sequences: Seq[Sequence]) -> tuple[list[int], ...]:
        """Grow the tables of all these sequences by one entry; returns the new blocks per group, in the sequences' order.

        All at once is much cheaper than one by one. Raises `RuntimeError` when memory is not `ample` for that many.
        """
        taken = self._take(len(sequences), frugal=len(self.pools) > 1 and self.claiming)
        if taken is None:
            raise RuntimeError(f"{self.model}: {len(sequences)} sequences cannot grow by a block each")
        for group, got in enumerate(taken):
            for sequence, block in zip(sequences, got, strict=True):
                sequence.tables[group].append(block)
        for sequence in sequences:
            sequence.blocks += 1
        return tuple(taken)

    def publish(self, computed: Iterable[tuple[Sequence, array[int], int]]) -> None:
        """For each (sequence, tokens, full): the first `full` blocks are computed from final `tokens` in retired steps.
        Remember those not offered yet. All at once is much cheaper than one by one.
        """
        fresh: list[tuple[tuple[list[int], ...], int, Named]] = []
        for sequence, tokens, full in computed:
            start, sequence.published = sequence.published, max(full, sequence.published)
            if full > start and self.prefix_cache:
                named = self.hasher.extend(sequence.names, sequence.root, tokens, start, full)
                fresh += zip(repeat(sequence.tables), range(start, full), named)
        for group, pool in enumerate(self.pools):
            offered = [(tables[group][index], named) for tables, index, named in fresh]
            if self.windowed:
                offered = [pair for pair in offered if pair[0] != NO_BLOCK]
            if offered:
                pool.remember_many(self.index.store(group, offered))

    def slide(self, sequence: Sequence, computed: int) -> None:
        """Free what no query at position `computed` or later may read: blocks that left their group's window."""
        for group in self.windowed:
            window = self.groups[group].window
            assert window is not None
            table, start = sequence.tables[group], sequence.slid[group]
            end = min(max(0, computed - window + 1) // BLOCK_TOKENS, sequence.blocks)
            if end > start:
                self.pools[group].release_many(reversed(table[start:end]), self.fence)
                table[start:end] = [NO_BLOCK] * (end - start)
                sequence.slid[group] = end

    def free(self, sequence: Sequence) -> None:
        """Give everything back, deepest blocks first. The names stay, so that the sequence can begin again."""
        self._live.discard(sequence)
        for group, pool in enumerate(self.pools):
            table = sequence.tables[group]
            pool.release_many(reversed(table[sequence.slid[group] :]), self.fence)
            table.clear()
            sequence.slid[group] = 0
        sequence.blocks = sequence.published = 0

    def clear(self) -> None:
        """Forget every remembered prefix. Blocks in use stay in use."""
        for pool in self.pools:
            pool.forget_all()
        self.index.clear()

    # -- numbers

    def usage(self) -> KvUsage:
        """Blocks of all groups now."""
        pools = self.pools
        spare = self._slabs.free * sum(pool.blocks_per_slab for pool in pools) // len(pools)
        owned = sum(pool.total for pool in pools)
        return KvUsage(
            total=owned + spare,
            used=sum(pool.used for pool in pools),
            cached=sum(pool.cached for pool in pools),
            free=sum(pool.free for pool in pools) + spare,
            fenced=sum(pool.fenced for pool in pools),
        )

    def check(self) -> None:
        """Integrity: blocks add up, references equal what block tables hold, slabs have one owner each. Raises `RuntimeError`."""
        for group, pool in enumerate(self.pools):
            held: Counter[int] = Counter()
            for sequence in self._live:
                held.update(block for block in sequence.tables[group] if block != NO_BLOCK)
            pool.check(held)
        self._check_index()
        self._slabs.check()

    def _check_index(self) -> None:
        for group, name in self.index.snapshot().held:
            block = self.index.block(group, name)
            if block is None or self.pools[group].hash_of(block) != name:
                raise RuntimeError(f"{self.pools[group].name}: the index names block {block}, whose content is another")

    def _take(self, count: int, frugal: bool) -> list[list[int]] | None:
        """`count` blocks of every group, or nothing. Blocks given back here were seen by no step: no fence."""
        taken: list[list[int]] = []
        for pool in self.pools:
            got = pool.take_many(count, frugal)
            if got is None:
                for other, blocks in zip(self.pools, taken, strict=False):
                    other.release_many(reversed(blocks), None)
                return None
            taken.append(got)
        return taken
