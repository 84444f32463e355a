"""What the prefix caches of a device hold, published for other routers after every step when the settings ask for it.

EventLog ─since─▶ KvFeed ─joined, translated─▶ KvPublisher      one feed and one pair of ports per model
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from itertools import chain, groupby
from typing import TYPE_CHECKING, Final

from inference_stack.config.tree import Config, EngineConfig
from inference_stack.core.errors import invalid
from inference_stack.core.request import BLOCK_TOKENS
from inference_stack.core.seams import Clock
from inference_stack.engine.core import Instance
from inference_stack.kv.events import KvEvent
from inference_stack.kv.manager import KvManager
from inference_stack.wire.addresses import is_loopback

if TYPE_CHECKING:
    from inference_stack.wire.kv_events import KvChange, KvPublisher

PORTS: Final = 2
"""Of each model: the published one, and the one that replays."""

EVENTS: Final = 4096
"""Least number of events that are kept for a feed, or for anybody who asks."""

log = logging.getLogger(__name__)


class KvFeed:
    """Carries one model's events from its log to a publisher."""

    def __init__(self, kv: KvManager, publisher: KvPublisher, clock: Clock) -> None:
        self._log = kv.events
        self._root = kv.hasher.root()
        self._publisher = publisher
        self._clock = clock
        self._told = kv.events.sequence

    def flush(self) -> None:
        """Publish what has happened since the last time."""
        if self._log.sequence == self._told:
            return
        events = self._log.since(self._told)
        self._told = self._log.sequence
        self._publisher.publish(self._clock.wall(), translate(events, self._root))

    def close(self) -> None:
        """Publish the last, and end."""
        self.flush()
        self._publisher.close()


class KvFeeds:
    """The feeds of a device's models; none unless `engine.kv_events` is set. Raises `InferenceError` for a bad address."""

    def __init__(self, config: Config, instances: Sequence[Instance], clock: Clock) -> None:
        self._feeds: list[KvFeed] = []
        self.told: dict[str, str] = {}
        if not config.engine.kv_events:
            return
        from inference_stack.wire.kv_events import KvPublisher

        host, port = _address(config)
        for number, instance in enumerate(instances):
            own, kv = port + PORTS * number, instance.scheduler.kv
            topic = f"kv@{socket.gethostname() if host == '*' else host}:{own}@{instance.name}"
            publisher = KvPublisher(f"tcp://{host}:{own}", f"tcp://{host}:{own + 1}", topic, clock.wall())
            self._feeds.append(KvFeed(kv, publisher, clock))
            self.told[f"{instance.name}: KV events"] = f"{publisher.endpoint}, replayed at {publisher.replay}"

    def flush(self) -> None:
        """Publish what has happened since the last time."""
        for feed in self._feeds:
            feed.flush()

    def close(self) -> None:
        """Publish the last, and end."""
        for feed in self._feeds:
            feed.close()


def events_capacity(settings: EngineConfig) -> int:
    """How many events an engine keeps: more than one step makes, which is a fraction of its tokens."""
    return max(EVENTS, settings.max_batch_tokens)


def translate(events: Sequence[KvEvent] | None, root: bytes) -> list[KvChange]:
    """Events as they are published; blocks that follow one another are joined. `root` is the parent of a prompt's first block.

    None stands for events that are lost: nothing is claimed then that may not be so.
    """
    from inference_stack.wire.kv_events import AllBlocksCleared, BlockRemoved

    if events is None:
        log.warning("KV events came faster than they could be published; listeners start anew.")
        return [AllBlocksCleared()]
    changes: list[KvChange] = []
    for (kind, group), run in groupby(events, lambda event: (event.kind, event.group)):
        if kind == "stored":
            changes += _stored(list(run), root)
        elif kind == "removed":
            changes.append(BlockRemoved(tuple([event.block_hash for event in run]), group_idx=group))
        else:
            changes.append(AllBlocksCleared())
    return changes


def _stored(events: Sequence[KvEvent], root: bytes) -> list[KvChange]:
    """Blocks of one group: one event for each chain."""
    from inference_stack.wire.kv_events import BlockStored

    chains: list[list[KvEvent]] = []
    for event in events:
        if chains and chains[-1][-1].block_hash == event.parent:
            chains[-1].append(event)
        else:
            chains.append([event])
    return [
        BlockStored(
            block_hashes=tuple([event.block_hash for event in linked]),
            parent_block_hash=None if linked[0].parent == root else linked[0].parent,
            token_ids=tuple(chain.from_iterable(event.tokens for event in linked)),
            block_size=BLOCK_TOKENS,
            group_idx=linked[0].group,
        )
        for linked in chains
    ]


def _address(config: Config) -> tuple[str, int]:
    """Host and port of the setting."""
    setting = config.engine.kv_events
    host, colon, port = setting.rpartition(":")
    if not (colon and host and port.isdigit() and 0 < int(port) < 65535):
        raise invalid(f"engine.kv_events: expected HOST:PORT, got {setting!r}", param="engine.kv_events")
    if not is_loopback(setting):
        if not config.tls.insecure:
            message = (
                f"KV events at {setting} would tell token ids to anybody beyond this machine; --tls-insecure allows it."
            )
            raise invalid(message, param="engine.kv_events", code="tls_required")
        log.warning("INSECURE: anybody who reaches %s can read the token ids of prompts and answers.", setting)
    return host, int(port)
