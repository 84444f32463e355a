"""Intrusive doubly linked lists over block numbers: push, pop and removal from the middle in O(1), without allocation.

Several lists share two arrays; a node is in at most one of them. Knows nothing of what a node means.
"""

from __future__ import annotations


class LinkedLists:
    """`count` lists over the nodes 0 … size-1. List k's sentinel is node size + k."""

    def __init__(self, size: int, count: int) -> None:
        self._size = size
        self._next = [-1] * size + [size + k for k in range(count)]
        self._prev = [-1] * size + [size + k for k in range(count)]

    def push(self, k: int, node: int) -> None:
        """Append to list k's tail. Raises `RuntimeError` when the node is already in a list."""
        if self._next[node] != -1:
            raise RuntimeError(f"node {node} is in a list already")
        sentinel = self._size + k
        last = self._prev[sentinel]
        self._next[last] = node
        self._prev[node] = last
        self._next[node] = sentinel
        self._prev[sentinel] = node

    def remove(self, node: int) -> None:
        """Take the node out of the list it is in. Raises `RuntimeError` when it is in none."""
        before, after = self._prev[node], self._next[node]
        if after == -1:
            raise RuntimeError(f"node {node} is in no list")
        self._next[before] = after
        self._prev[after] = before
        self._next[node] = self._prev[node] = -1

    def head(self, k: int) -> int:
        """The oldest node of list k, or -1."""
        node = self._next[self._size + k]
        return -1 if node >= self._size else node

    def least(self, count: int, keys: list[int]) -> int:
        """Among the oldest nodes of lists 0 … count-1 the one with the least key (ties: the first list), or -1."""
        best = -1
        for sentinel in range(self._size, self._size + count):
            node = self._next[sentinel]
            if node < self._size and (best < 0 or keys[node] < keys[best]):
                best = node
        return best

    def members(self, k: int) -> list[int]:
        """All nodes of list k, oldest first. Linear: for checks."""
        nodes = []
        node = self.head(k)
        while node != -1:
            nodes.append(node)
            node = self._next[node]
            if node >= self._size:
                break
        return nodes
