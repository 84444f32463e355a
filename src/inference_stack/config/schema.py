"""What a settings tree is made of: frozen dataclasses whose fields say in metadata what they mean and which values they take.

Walks such a tree. Knows no setting of ours, no file, no environment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints


def knob(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] = (),
    low: float | None = None,
    high: float | None = None,
    size: bool = False,
) -> Any:
    """A documented setting.

    `choices` are the values it may take, `low` and `high` its bounds, both included; `size` makes it a number of bytes as
    text ("2GiB"), or "auto".
    """
    limits = {"choices": choices, "low": low, "high": high, "size": size}
    return field(default=default, metadata={"help": help, **limits})


def section(factory: Any, help: str, *, prefix: bool = False) -> Any:
    """A documented group of settings. `prefix`: their flags begin with the group's name, as alone they would say too little."""
    return field(default_factory=factory, metadata={"help": help, "prefix": prefix})


@dataclass(frozen=True)
class Knob:
    """One setting in its place: where, what, and which values are right."""

    path: tuple[str, ...]
    type: Any
    default: Any
    help: str
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    size: bool = False

    @property
    def key(self) -> str:
        """Its name in files and messages: `server.port`."""
        return ".".join(self.path)

    @property
    def env(self) -> str:
        """Its environment variable: `ISTACK_SERVER__PORT`."""
        return "ISTACK_" + "__".join(self.path).upper()


def default_of(declared: dataclasses.Field[Any]) -> Any:
    """A field's default value."""
    if declared.default_factory is not dataclasses.MISSING:
        return declared.default_factory()
    return declared.default


def fields_of(tree: type) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Field and resolved type, by name, in order of declaration."""
    hints = get_type_hints(tree)
    return {declared.name: (declared, hints[declared.name]) for declared in dataclasses.fields(tree)}


def knobs(tree: type, path: tuple[str, ...] = ()) -> Iterator[Knob]:
    """Every setting of a tree, in order of declaration. A list of entries is one setting."""
    for name, (declared, kind) in fields_of(tree).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from knobs(kind, (*path, name))
            continue
        limits = {key: declared.metadata[key] for key in ("choices", "low", "high", "size") if key in declared.metadata}
        yield Knob((*path, name), kind, default_of(declared), declared.metadata["help"], **limits)


def sections(tree: type) -> dict[str, dataclasses.Field[Any]]:
    """The groups of settings directly under `tree`, by name."""
    return {name: declared for name, (declared, kind) in fields_of(tree).items() if dataclasses.is_dataclass(kind)}


def entry_type(kind: Any) -> type | None:
    """The dataclass that a `tuple[Entry, ...]` holds; None for any other type."""
    first: Any = next(iter(get_args(kind)), None)
    return first if get_origin(kind) is tuple and dataclasses.is_dataclass(first) else None  # type: ignore[return-value]
