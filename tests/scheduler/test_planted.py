"""The test of the tests: errors planted in the scheduler and the KV manager are found by the simulated device."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

import pytest

from inference_stack.kv.manager import KvManager, Sequence
from inference_stack.kv.prefix import BlockHasher
from inference_stack.scheduler.state import State
from tests.scheduler.traffic import soak
from tests.scheduler.world import World, spec

Patch = Callable[[pytest.MonkeyPatch], None]


def leak(patch: pytest.MonkeyPatch) -> None:
    free = KvManager.free

    def forgets_a_block(self: KvManager, sequence: Sequence) -> None:
        for table in sequence.tables:
            table[-1:] = []
        free(self, sequence)

    patch.setattr(KvManager, "free", forgets_a_block)


def double_free(patch: pytest.MonkeyPatch) -> None:
    free = KvManager.free

    def frees_twice(self: KvManager, sequence: Sequence) -> None:
        self.pools[0].release(sequence.tables[0][-1], self.fence)
        free(self, sequence)

    patch.setattr(KvManager, "free", frees_twice)


def no_fence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KvManager, "fence", property(lambda self: None))


def names_without_history(patch: pytest.MonkeyPatch) -> None:
    block = BlockHasher.block
    patch.setattr(BlockHasher, "block", lambda self, parent, tokens, extra=b"": block(self, b"", tokens, extra))


def window_too_short(patch: pytest.MonkeyPatch) -> None:
    slide = KvManager.slide
    patch.setattr(KvManager, "slide", lambda self, sequence, computed: slide(self, sequence, computed + 16))


def publishes_too_early(patch: pytest.MonkeyPatch) -> None:
    publish = KvManager.publish

    def one_block_ahead(self: KvManager, computed: Iterable[tuple[Sequence, array[int], int]]) -> None:
        publish(
            self,
            [(each, tokens, min(full + 1, len(tokens) // 16, each.blocks)) for each, tokens, full in computed],
        )

    patch.setattr(KvManager, "publish", one_block_ahead)


def forgets_leaders(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "_unlead", lambda self, entry, start, end: None)


PLANTED: dict[str, Patch] = {
    "leak": leak,
    "double free": double_free,
    "no fence": no_fence,
    "names without history": names_without_history,
    "window too short": window_too_short,
    "publishes too early": publishes_too_early,
    "forgets leaders": forgets_leaders,
}


@pytest.mark.parametrize("error", PLANTED)
def test_a_planted_error_is_found(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTED[error](monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):
        for seed in range(6):
            groups = (spec("full"), spec("window", window=24))
            soak(World.build([groups], slab_count=10, lag=2, seed=seed), steps=200, seed=seed)
