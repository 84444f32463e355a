"""Flags: each scalar setting's name on the command line, derived from its place in the tree."""

from __future__ import annotations

from collections import Counter
from functools import cache

from inference_stack.config.schema import Knob, entry_type, knobs, sections
from inference_stack.config.tree import Config


@cache
def flags(tree: type = Config) -> dict[str, Knob]:
    """Every setting that has a flag, by its flag: the last part of its path, with the section before it where that is needed."""
    scalar = [knob for knob in knobs(tree) if entry_type(knob.type) is None]
    prefixed = {name for name, declared in sections(tree).items() if declared.metadata.get("prefix")}
    count = Counter(knob.path[-1] for knob in scalar if knob.path[0] not in prefixed)
    return {_name(knob, count[knob.path[-1]] > 1 or knob.path[0] in prefixed): knob for knob in scalar}


def _name(knob: Knob, whole: bool) -> str:
    return "--" + "-".join(knob.path if whole else knob.path[-1:]).replace("_", "-")


def spelled(flag: str, knob: Knob) -> str:
    """How the flag is written: `--x/--no-x` for a setting that is true or false."""
    return f"{flag}/--no-{flag[2:]}" if knob.type is bool else flag
