"""The blocks of one (model, group): reference counts, the free lists, fences, and what is evicted first.

    take ──▶ USED ──last reference──▶ FENCED ──its step retired──▶ FREE (content forgotten)
               ▲                         │ hit                  └─▶ CACHED (content remembered, may be evicted)
               └────────── hit ──────────┴──────────────────────────┘

Eviction is GreedyDual in O(1). A cached block's key is clock + weight; the least key goes first and becomes the clock. The
weight doubles with the logarithm of how often the block was hit: a block's hits are never fewer than those of the blocks
behind it, so a prefix never goes before what depends on it; among equals the least recently used goes first, and a request
releases its deepest blocks first. (Weighting by depth itself would be wrong: losing a block loses all that follow it.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from inference_stack.kv.lists import LinkedLists
from inference_stack.kv.slabs import SlabPool

FREE: Final = 0
USED: Final = 1
FENCED: Final = 2
CACHED: Final = 3
ABSENT: Final = 4
LIVE: Final = (0, 1, 1, 0, 0)
"""Whether a block in this state holds its slab back."""
STATE_NAMES: Final = ("free", "used", "fenced", "cached", "absent")

CLASS_OF_HITS: Final = (0, 1, 2, 2, 3)
"""Weight class of a block hit so often; hits are counted up to the last. Class k weighs 2 ** k."""
CLASSES: Final = 4
FREE_LIST: Final = CLASSES


class BlockPool:
    """Blocks of one group, in slabs taken from the shared pool on demand and given back when empty.

    `evicted(hashes)` is called when cached blocks' contents are forgotten. Blocks come and go many at a time: what a step
    takes, frees and evicts is handled in one pass over the blocks, with the counts settled once at the end.
    """

    def __init__(
        self,
        name: str,
        blocks_per_slab: int,
        slabs: SlabPool,
        principal: object,
        evicted: Callable[[list[bytes]], None],
    ) -> None:
        size = slabs.geometry.slab_count * blocks_per_slab
        self.name = name
        self.principal = principal
        self.blocks_per_slab = blocks_per_slab
        self._slabs = slabs
        self._evicted = evicted
        self._lists = LinkedLists(size, CLASSES + 1)
        self._state = bytearray([ABSENT]) * size
        self._refs = [0] * size
        self._hash = [b""] * size
        self._hits = [0] * size
        self._key = [0] * size
        self._fence = [-1] * size
        self._fences: deque[tuple[int, list[int]]] = deque()
        self._clock = 0
        self._live: dict[int, int] = {}
        self._vacant: dict[int, int] = {}
        self._tally = [0] * 4

    # -- numbers

    @property
    def free(self) -> int:
        """Blocks of owned slabs that hold nothing."""
        return self._tally[FREE]

    @property
    def used(self) -> int:
        """Blocks with references."""
        return self._tally[USED]

    @property
    def fenced(self) -> int:
        """Blocks without references that a step in flight may still touch."""
        return self._tally[FENCED]

    @property
    def cached(self) -> int:
        """Blocks without references whose content is remembered."""
        return self._tally[CACHED]

    @property
    def total(self) -> int:
        """Blocks of all slabs this pool owns now."""
        return len(self._live) * self.blocks_per_slab

    def refs(self, block: int) -> int:
        """References to the block."""
        return self._refs[block]

    def hash_of(self, block: int) -> bytes | None:
        """What the block is remembered as."""
        return self._hash[block] or None

    def obtainable(self) -> int:
        """Blocks that could be taken now; other groups compete for part of them."""
        return self.free + self.cached + self._slabs.obtainable(self) * self.blocks_per_slab

    def holds(self, count: int) -> bool:
        """Whether this pool has `count` blocks of its own to take: nobody else can be in the way."""
        return self._tally[FREE] + self._tally[CACHED] >= count

    def reaches(self, count: int) -> bool:
        """Whether `count` blocks could be taken now. Looks at other pools' slabs only when it must."""
        own = self._tally[FREE] + self._tally[CACHED]
        return own >= count or own + self._slabs.obtainable(self) * self.blocks_per_slab >= count

    # -- life of a block

    def take(self, frugal: bool = False) -> int | None:
        """One block: see `take_many`."""
        taken = self.take_many(1, frugal)
        return taken[0] if taken else None

    def take_many(self, count: int, frugal: bool = False) -> list[int] | None:
        """`count` blocks with one reference each, or none at all: free ones, else from a free slab, else evicted here, else
        from a reclaimed slab.

        `frugal` evicts here before taking a slab, for when other groups need the slabs more.
        """
        taken = self._take_free(count)
        while len(taken) < count:
            evictable = self._tally[CACHED] > 0
            if evictable and (frugal or self._slabs.free == 0):
                taken += self._evict(count - len(taken))
            elif self._add_slab():
                taken += self._take_free(count - len(taken))
            elif evictable:
                taken += self._evict(count - len(taken))
            else:
                self.release_many(taken[::-1], None)
                return None
        return taken

    def hit(self, block: int) -> None:
        """One more reference to a remembered block."""
        if self._refs[block] == 0:
            if self._state[block] == CACHED:
                self._lists.remove(block)
            elif self._state[block] != FENCED:
                raise RuntimeError(f"{self.name}: hit on block {block}, which is {STATE_NAMES[self._state[block]]}")
            self._move(block, USED)
        self._refs[block] += 1
        self._hits[block] = min(self._hits[block] + 1, len(CLASS_OF_HITS) - 1)

    def release(self, block: int, fence: int | None) -> None:
        """One reference less: see `release_many`."""
        self.release_many((block,), fence)

    def release_many(self, blocks: Iterable[int], fence: int | None) -> None:
        """One reference less for each, in order. The last one leaves a block fenced until step `fence` has retired (None:
        idle at once).

        Raises `RuntimeError` on a block without references (a double free).
        """
        refs, state, target = self._refs, self._state, USED if fence is None else FENCED
        last = []
        for block in blocks:
            left = refs[block] - 1
            if left < 0:
                raise RuntimeError(f"{self.name}: block {block} was freed twice")
            refs[block] = left
            if not left:
                state[block] = target
                last.append(block)
        if fence is None:
            self._idle(last, USED)
        elif last:
            self._await(last, fence)

    def retire(self, step: int) -> None:
        """Step `step` has retired: what was fenced by it, or by an earlier one, may be used again."""
        while self._fences and self._fences[0][0] <= step:
            fence, blocks = self._fences.popleft()
            state, fences = self._state, self._fence
            # A block that was hit and freed again since is listed twice.
            due = dict.fromkeys(block for block in blocks if state[block] == FENCED and fences[block] == fence)
            self._idle(list(due), FENCED)

    def remember(self, block: int, name: bytes) -> None:
        """One block: see `remember_many`."""
        self.remember_many(((block, name),))

    def remember_many(self, named: Iterable[tuple[int, bytes]]) -> None:
        """These used blocks' contents are final and may be found again under these names."""
        refs, names, hits = self._refs, self._hash, self._hits
        for block, name in named:
            if refs[block] <= 0:
                raise RuntimeError(f"{self.name}: block {block} is remembered without being used")
            names[block] = name
            hits[block] = 0

    def forget_all(self) -> list[bytes]:
        """Forget every remembered content, cached or in use; returns the hashes. Not reported through `evicted`."""
        hashes = [name for name in self._hash if name]
        self._hash = [b""] * len(self._hash)
        self._hits = [0] * len(self._hits)
        for k in range(CLASSES):
            for block in self._lists.members(k):
                self._lists.remove(block)
                self._move(block, FREE)
                self._lists.extend(FREE_LIST, (block,))
        for slab in list(self._live):
            self._give_back_if_empty(slab)
        return hashes

    # -- slabs

    def slab_load(self, slab: int) -> tuple[int, int]:
        """Blocks of the slab that are used or fenced, and blocks that are only cached."""
        live = self._live[slab]
        return live, self.blocks_per_slab - live - self._vacant[slab]

    def surrender(self, slab: int) -> None:
        """Evict what is cached in the slab and forget it."""
        if self._live[slab]:
            raise RuntimeError(f"{self.name}: slab {slab} was reclaimed with {self._live[slab]} blocks in use")
        self._forget([block for block in self._slab_blocks(slab) if self._state[block] == CACHED])
        for block in self._slab_blocks(slab):
            self._lists.remove(block)
            self._tally[self._state[block]] -= 1
            self._state[block] = ABSENT
        del self._live[slab], self._vacant[slab]

    # -- integrity

    def check(self, expected: dict[int, int] | None = None) -> None:
        """free + cached + used + fenced == total, and every block is where its state says. Raises `RuntimeError`.

        `expected` gives the references that the block tables hold: a difference is a leak or a double free.
        """
        self._check_tallies()
        self._check_slabs()
        linked = {block: CACHED for k in range(CLASSES) for block in self._lists.members(k)}
        linked |= dict.fromkeys(self._lists.members(FREE_LIST), FREE)
        for slab in self._live:
            for block in self._slab_blocks(slab):
                self._check_block(block, linked.get(block))
                if expected is not None and self._refs[block] != expected.get(block, 0):
                    raise RuntimeError(
                        f"{self.name}: block {block} has {self._refs[block]} references, "
                        f"but block tables hold {expected.get(block, 0)}"
                    )

    def _check_tallies(self) -> None:
        counted = [self._state.count(state) for state in (FREE, USED, FENCED, CACHED)]
        if counted != self._tally or sum(counted) != self.total:
            names = ", ".join(f"{name} {n}" for name, n in zip(STATE_NAMES, counted, strict=False))
            raise RuntimeError(f"{self.name}: blocks do not add up: {names}; tally {self._tally}; total {self.total}")

    def _check_slabs(self) -> None:
        for slab in self._live:
            if self._slabs.owner(slab) is not self:
                raise RuntimeError(f"{self.name}: uses slab {slab}, which it does not own")
            states = [self._state[block] for block in self._slab_blocks(slab)]
            counted = (states.count(USED) + states.count(FENCED), states.count(CACHED))
            if counted != self.slab_load(slab):
                raise RuntimeError(f"{self.name}: slab {slab} counts {self.slab_load(slab)}, holds {counted}")

    def _check_block(self, block: int, linked: int | None) -> None:
        state = self._state[block]
        if (self._refs[block] > 0) != (state == USED):
            raise RuntimeError(
                f"{self.name}: block {block} is {STATE_NAMES[state]} with {self._refs[block]} references"
            )
        if linked != (state if state in (FREE, CACHED) else None):
            raise RuntimeError(f"{self.name}: block {block} is {STATE_NAMES[state]} but in the wrong list")
        if state == CACHED and not self._hash[block]:
            raise RuntimeError(f"{self.name}: block {block} is cached without content")

    # -- inside

    def _slab_blocks(self, slab: int) -> range:
        return range(slab * self.blocks_per_slab, (slab + 1) * self.blocks_per_slab)

    def _move(self, block: int, state: int) -> None:
        """Change state and keep the tallies of the pool and of the slab."""
        before = self._state[block]
        slab = block // self.blocks_per_slab
        tally = self._tally
        tally[before] -= 1
        tally[state] += 1
        self._live[slab] += LIVE[state] - LIVE[before]
        self._vacant[slab] += (state == FREE) - (before == FREE)
        self._state[block] = state

    def _await(self, blocks: list[int], fence: int) -> None:
        """Blocks without references that step `fence` may still touch."""
        self._tally[USED] -= len(blocks)
        self._tally[FENCED] += len(blocks)
        fences = self._fence
        for block in blocks:
            fences[block] = fence
        if self._fences and self._fences[-1][0] == fence:
            self._fences[-1][1].extend(blocks)
        else:
            self._fences.append((fence, blocks))

    def _idle(self, blocks: list[int], before: int) -> None:
        """Blocks without references that nothing in flight touches: cached when remembered, else free."""
        lists: tuple[list[int], ...] = tuple([] for _ in range(CLASSES + 1))
        state, names, hits, keys = self._state, self._hash, self._hits, self._key
        live, vacant, per_slab = self._live, self._vacant, self.blocks_per_slab
        key_of_class = [self._clock + (1 << k) for k in range(CLASSES)]
        for block in blocks:
            slab = block // per_slab
            live[slab] -= 1
            if names[block]:
                k = CLASS_OF_HITS[hits[block]]
                keys[block] = key_of_class[k]
                state[block] = CACHED
                lists[k].append(block)
            else:
                vacant[slab] += 1
                state[block] = FREE
                lists[FREE_LIST].append(block)
        for k, members in enumerate(lists):
            if members:
                self._lists.extend(k, members)
        free = lists[FREE_LIST]
        self._tally[before] -= len(blocks)
        self._tally[FREE] += len(free)
        self._tally[CACHED] += len(blocks) - len(free)
        for slab in {block // per_slab for block in free}:
            self._give_back_if_empty(slab)

    def _take_free(self, count: int) -> list[int]:
        """Up to `count` free blocks, used from now on."""
        blocks = self._lists.pop(FREE_LIST, count)
        vacant, per_slab = self._vacant, self.blocks_per_slab
        for block in blocks:
            vacant[block // per_slab] -= 1
        self._use(blocks, FREE)
        return blocks

    def _use(self, blocks: list[int], before: int) -> None:
        """Blocks taken out of their list get their first reference."""
        state, refs, live, per_slab = self._state, self._refs, self._live, self.blocks_per_slab
        for block in blocks:
            state[block] = USED
            refs[block] = 1
            live[block // per_slab] += 1
        self._tally[before] -= len(blocks)
        self._tally[USED] += len(blocks)

    def _add_slab(self) -> bool:
        """Own one slab more, if there is one to be had."""
        slab = self._slabs.take(self)
        if slab is None:
            return False
        self._live[slab], self._vacant[slab] = 0, self.blocks_per_slab
        blocks = self._slab_blocks(slab)
        for block in blocks:
            self._state[block] = FREE
        self._lists.extend(FREE_LIST, blocks)
        self._tally[FREE] += self.blocks_per_slab
        return True

    def _evict(self, count: int) -> list[int]:
        """Take up to `count` cached blocks of least key, and forget their contents."""
        blocks: list[int] = []
        count = min(count, self._tally[CACHED])
        while len(blocks) < count:
            k, limit = self._lists.least(CLASSES, self._key)
            blocks += self._lists.pop(k, count - len(blocks), self._key, limit)
        self._clock = self._key[blocks[-1]]
        self._forget(blocks)
        self._use(blocks, CACHED)
        return blocks

    def _forget(self, blocks: list[int]) -> None:
        names = self._hash
        forgotten = [names[block] for block in blocks]
        for block in blocks:
            names[block] = b""
        if forgotten:
            self._evicted(forgotten)

    def _give_back_if_empty(self, slab: int) -> None:
        if self._vacant[slab] < self.blocks_per_slab:
            return
        self.surrender(slab)
        self._slabs.give_back(slab, self)
