"""Intrusive doubly linked lists over block numbers: append, pop and removal from the middle in O(1) each, without allocation.

Several lists share two arrays; a node is in at most one of them. Knows nothing of what a node means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from sys import maxsize


class LinkedLists:
    """`count` lists over the nodes 0 … size-1. List k's sentinel is node size + k."""

    def __init__(self, size: int, count: int) -> None:
        self._size = size
        self._next = [-1] * size + [size + k for k in range(count)]
        self._prev = [-1] * size + [size + k for k in range(count)]

    def extend(self, k: int, nodes: Iterable[int]) -> None:
        """Append to list k's tail, in order. Raises `RuntimeError` when a node is already in a list."""
        after, before = self._next, self._prev
        sentinel = self._size + k
        last = before[sentinel]
        for node in nodes:
            if after[node] != -1:
                raise RuntimeError(f"node {node} is in a list already")
            after[last] = node
            before[node] = last
            after[node] = sentinel
            last = node
        before[sentinel] = last

    def remove(self, node: int) -> None:
        """Take the node out of the list it is in. Raises `RuntimeError` when it is in none."""
        before, after = self._prev[node], self._next[node]
        if after == -1:
            raise RuntimeError(f"node {node} is in no list")
        self._next[before] = after
        self._prev[after] = before
        self._next[node] = self._prev[node] = -1

    def pop(self, k: int, count: int, keys: Sequence[int] | None = None, limit: int = 0) -> list[int]:
        """Take up to `count` of list k's oldest nodes out of it: with `keys`, only as long as these are at most `limit`."""
        after, before, size = self._next, self._prev, self._size
        taken: list[int] = []
        node = after[size + k]
        while node < size and len(taken) < count and (keys is None or keys[node] <= limit):
            taken.append(node)
            following = after[node]
            after[node] = before[node] = -1
            node = following
        after[size + k] = node
        before[node] = size + k
        return taken

    def least(self, count: int, keys: Sequence[int]) -> tuple[int, int]:
        """Which of the lists 0 … count-1 begins with the least key (ties: the first), and up to which key its nodes go before
        those of the others. Raises `RuntimeError` when all are empty."""
        heads = [
            (keys[node], k) for k, node in enumerate(self._next[self._size : self._size + count]) if node < self._size
        ]
        if not heads:
            raise RuntimeError("all lists are empty")
        heads.sort()
        best = heads[0][1]
        if len(heads) == 1:
            return best, maxsize
        key, other = heads[1]
        return best, key if best < other else key - 1

    def members(self, k: int) -> list[int]:
        """All nodes of list k, oldest first. Linear: for checks."""
        nodes = []
        node = self._next[self._size + k]
        while node < self._size:
            nodes.append(node)
            node = self._next[node]
        return nodes
