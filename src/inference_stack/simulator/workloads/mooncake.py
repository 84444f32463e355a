"""Mooncake traces: JSON lines with timestamp in ms, input_length, output_length and hash_ids of blocks of 512 tokens.

Published with Mooncake (Qin et al., FAST 2025). Equal ids are equal tokens, so the traces tell which prefixes requests share.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inference_stack.simulator.workloads.rows import BLOCK, Place, Row, opened


def mooncake_rows(path: Path) -> Iterator[Row]:
    """The rows. Raises `InferenceError` naming file and line of a bad one."""
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _row(Place(path, number), line)


def _row(place: Place, line: str) -> Row:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise place.problem(f"no JSON: {error}") from None
    if not isinstance(found, dict):
        raise place.problem("expected a JSON object")
    prompt = _whole(place, found, "input_length", 1)
    blocks = found.get("hash_ids")
    if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
        raise place.problem("hash_ids: expected a list of whole numbers")
    if len(blocks) != -(-prompt // BLOCK):
        raise place.problem(f"hash_ids: {len(blocks)} blocks of {BLOCK} cannot be a prompt of {prompt} tokens")
    at = _whole(place, found, "timestamp", 0) / 1000
    return Row(place.line, at, prompt, _whole(place, found, "output_length", 1), tuple(blocks))


def _whole(place: Place, found: dict[str, Any], name: str, low: int) -> int:
    value = found.get(name)
    if type(value) is not int or value < low:
        raise place.problem(f"{name}: expected a whole number of at least {low}, not {value!r}")
    return value
