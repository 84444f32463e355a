"""From values of any origin to a tree. Each value carries where it came from, so that an error can say so.

    file, environment, flags ──▶ [Given, …], weakest first ──▶ the tree

Knows no setting of ours, and opens no file.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from inference_stack.config import values
from inference_stack.config.schema import Knob, entry_type, fields_of, knobs
from inference_stack.core.errors import InferenceError, invalid

Tree = TypeVar("Tree")
_NAMED = re.compile(r"(?P<name>[\w.-]+)=(?P<model>.+)")


@dataclass(frozen=True)
class Given:
    """One value somebody gave. `origin` is said in errors; `text`: it comes from where everything is text."""

    path: tuple[str, ...]
    value: Any
    origin: str
    text: bool = False


def problem(key: str, message: str, origin: str) -> InferenceError:
    """An error about one setting."""
    return invalid(f"{origin}: {key}: {message}", param=key, code="invalid_config")


def unknown(key: str, known: Iterable[str], origin: str) -> InferenceError:
    """An error about a setting that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return invalid(f"{origin}: there is no setting {key}.{hint}", param=key, code="invalid_config")


def flatten(tree: type, plain: Mapping[Any, Any], origin: str, path: tuple[str, ...] = ()) -> Iterator[Given]:
    """The values in nested mappings. Raises `InferenceError` for a key that the tree has not."""
    declared = fields_of(tree)
    for name, value in plain.items():
        here = (*path, str(name))
        if name not in declared:
            raise unknown(".".join(here), (".".join((*path, known)) for known in declared), origin)
        kind = declared[name][1]
        if not dataclasses.is_dataclass(kind):
            yield Given(here, value, origin)
        elif isinstance(value, Mapping):
            yield from flatten(kind, value, origin, here)  # type: ignore[arg-type]
        elif value is not None:
            raise problem(".".join(here), f"expected settings by name, not {value!r}", origin)


def build(tree: type[Tree], given: Iterable[Given]) -> Tree:
    """A tree with its defaults overridden in order. Raises `InferenceError` naming the setting and where the value came from."""
    known = {knob.path: knob for knob in knobs(tree)}
    chosen: dict[tuple[str, ...], Any] = {}
    for item in given:
        if item.path not in known:
            raise unknown(".".join(item.path), (knob.key for knob in known.values()), item.origin)
        chosen[item.path] = _value(known[item.path], item)
    return _assemble(tree, chosen, ())


def _value(knob: Knob, given: Given) -> Any:
    entry = entry_type(knob.type)
    if entry is not None:
        return _entries(entry, knob.key, given)
    try:
        return values.accept(knob, given.value, text=given.text)
    except ValueError as error:
        raise problem(knob.key, str(error), given.origin) from None


def _entries(entry: type, key: str, given: Given) -> tuple[Any, ...]:
    items = given.value.split(",") if given.text and isinstance(given.value, str) else given.value
    if not isinstance(items, list | tuple):
        raise problem(key, f"expected a list, not {items!r}", given.origin)
    return tuple(_entry(entry, f"{key}.{number}", item, given.origin) for number, item in enumerate(items))


def _entry(entry: type, key: str, item: Any, origin: str) -> Any:
    """One entry of a list: a mapping, or text for short, `MODEL` or `NAME=MODEL`."""
    if isinstance(item, str):
        named = _NAMED.fullmatch(item.strip())
        item = named.groupdict() if named else {"model": item.strip()}
    if not isinstance(item, Mapping):
        raise problem(key, f"expected settings by name, not {item!r}", origin)
    return build(entry, flatten(entry, item, f"{origin}: {key}"))


def _assemble(tree: type[Tree], chosen: Mapping[tuple[str, ...], Any], path: tuple[str, ...]) -> Tree:
    arguments: dict[str, Any] = {}
    for name, (_, kind) in fields_of(tree).items():
        here = (*path, name)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            arguments[name] = _assemble(kind, chosen, here)
        elif here in chosen:
            arguments[name] = chosen[here]
    return tree(**arguments)
