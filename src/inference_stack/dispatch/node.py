"""A node as a dispatcher sees it: whether it can be used, what runs there, and what it must not be given now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from inference_stack.core.fleet import ModelInfo, NodeState
from inference_stack.dispatch.flight import Flight

HINT_BYTES: Final = 4


def node_hint(name: str) -> bytes:
    """A few bytes that point at a node by its name, the same for every gateway."""
    return hashlib.blake2b(name.encode(), digest_size=HINT_BYTES).digest()


@dataclass(slots=True, eq=False)
class Node:
    """`key` is how the dispatcher's owner reaches it, `number` its place in routers' columns.

    `reserved` is a suspect that it is kept for, or that it is running: nothing else goes there. `recovering` counts tokens
    that it was sent to recompute and has not; `left_behind` are requests that it may still run for nobody.
    """

    key: str
    number: int
    linked: bool = False
    state: NodeState | None = None
    models: dict[str, ModelInfo] = field(default_factory=dict)
    running: dict[str, Flight] = field(default_factory=dict)
    reserved: Flight | None = None
    recovering: int = 0
    left_behind: set[str] = field(default_factory=set)
    hint: bytes = b""

    @property
    def usable(self) -> bool:
        """Whether requests may be sent there."""
        state = self.state
        return self.linked and state is not None and state.ready and not state.draining

    @property
    def draining(self) -> bool:
        """Whether it takes nothing new, but still holds what it held."""
        return self.linked and self.state is not None and self.state.ready and self.state.draining

    def take_state(self, state: NodeState) -> None:
        """What it tells of itself. Models are remembered while their worker restarts."""
        self.state = state
        self.hint = node_hint(state.node)
        if state.ready:
            self.models = {info.name: info for info in state.models}

    def may_serve(self, model: str) -> bool:
        """Whether it serves the model, or may come to: what a node serves whose workers start is not known yet."""
        state = self.state
        if not self.linked or state is None:
            return self.linked
        starting = not state.ready and state.error is None
        return not state.draining and (starting or model in self.models)

    def serves(self, model: str) -> ModelInfo | None:
        """The model, if a request of it may be sent there now."""
        return self.models.get(model) if self.usable else None


class Nodes:
    """Nodes by key and by number. The number of one that is forgotten goes to the next that comes: nodes come and go for as long as
    a gateway runs, and routers have a column for every number."""

    def __init__(self) -> None:
        self._by_key: dict[str, Node] = {}
        self._by_number: list[Node | None] = []

    def __iter__(self) -> Iterator[Node]:
        return iter(self._by_key.values())

    @property
    def numbers(self) -> int:
        """How many numbers there are, in use or not."""
        return len(self._by_number)

    def get(self, key: str) -> Node | None:
        """The node of this key, if there is one."""
        return self._by_key.get(key)

    def numbered(self, number: int) -> Node:
        """The node with this number. Raises `KeyError` where it is nobody's."""
        node = self._by_number[number]
        if node is None:
            raise KeyError(number)
        return node

    def add(self, key: str) -> Node:
        """A new node."""
        number = self._by_number.index(None) if None in self._by_number else self.numbers
        node = self._by_key[key] = Node(key, number)
        self._by_number[number : number + 1] = [node]
        return node

    def forget(self, node: Node) -> None:
        """It does not come back."""
        del self._by_key[node.key]
        self._by_number[node.number] = None

    def hinted(self, hint: bytes) -> Node | None:
        """The node in reach that a hint points at. It may have been known by other addresses before."""
        return next((node for node in self if node.linked and node.hint == hint), None) if hint else None
