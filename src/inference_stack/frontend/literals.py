"""Many words as one regular expression."""

from __future__ import annotations

import re


def alternation(words: list[str]) -> str:
    """A pattern that matches the longest of `words` (sorted) at a place. Common beginnings are shared, so it stays fast with
    thousands of them."""
    branches: dict[str, list[str]] = {}
    for word in words:
        if word:
            branches.setdefault(word[0], []).append(word[1:])
    parts = [re.escape(head) + (alternation(tails) if any(tails) else "") for head, tails in branches.items()]
    group = f"(?:{'|'.join(parts)})"
    return f"{group}?" if "" in words else group
