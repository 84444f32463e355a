"""Dataclasses to protobuf messages of the same shape and back, field by field, by name.

A dataclass must be mirrored whole: a field that its message lacks is a `TypeError` when the mirror is made, so nothing is left
out silently. Fast enough for what is sent a few times a second; columns of tokens are `reports`' own.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin, get_type_hints

Convert = Callable[[Any], Any]
Write = Callable[[Any, Any], None]
Read = Callable[[Any], Any]


class Mirror:
    """Both directions for one dataclass and its message. `skip` names fields that the caller carries itself."""

    def __init__(self, kind: type, message: Any, skip: tuple[str, ...] = ()) -> None:
        self._kind = kind
        self._message = message
        self._plain: list[str] = []
        self._writers: list[tuple[str, Write]] = []
        self._readers: list[tuple[str, Read]] = []
        hints = get_type_hints(kind)
        for name in (field.name for field in dataclasses.fields(kind) if field.name not in skip):
            if name not in message.DESCRIPTOR.fields_by_name:
                raise TypeError(f"{kind.__name__}.{name} is not in fleet.proto")
            write, read = _field(name, hints[name], message)
            if _is_plain(hints[name]):
                self._plain.append(name)
            else:
                self._writers.append((name, write))
            self._readers.append((name, read))

    def to_proto(self, value: Any) -> Any:
        """The message."""
        message = self._message(**{name: getattr(value, name) for name in self._plain})
        for name, write in self._writers:
            write(message, getattr(value, name))
        return message

    def from_proto(self, message: Any, **carried: Any) -> Any:
        """The dataclass."""
        return self._kind(**{name: read(message) for name, read in self._readers}, **carried)


def _is_plain(hint: Any) -> bool:
    """Whether protobuf takes a value of this type as it is: a scalar, None where that is allowed, several scalars."""
    inner = _without_none(hint) or hint
    if get_origin(inner) is tuple:
        inner = get_args(inner)[0]
    return isinstance(inner, type) and not dataclasses.is_dataclass(inner) and get_origin(inner) is None


def _field(name: str, hint: Any, message: Any) -> tuple[Write, Read]:
    """How to write and to read one field."""
    inner = _without_none(hint)
    if inner is not None:
        write, read = _field(name, inner, message)
        return (
            lambda out, value: None if value is None else write(out, value),
            lambda source: read(source) if source.HasField(name) else None,
        )
    origin = get_origin(hint)
    if origin is tuple:
        return _repeated(name, get_args(hint)[0], message)
    if origin is dict:
        return _mapping(name)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        nested = Mirror(hint, _type_of(name, message))
        return (
            lambda out, value: getattr(out, name).CopyFrom(nested.to_proto(value)),
            lambda source: nested.from_proto(getattr(source, name)),
        )
    return lambda out, value: setattr(out, name, value), lambda source: getattr(source, name)


def _mapping(name: str) -> tuple[Write, Read]:
    return lambda out, value: getattr(out, name).update(value), lambda source: dict(getattr(source, name))


def _repeated(name: str, item: Any, message: Any) -> tuple[Write, Read]:
    """A tuple: of scalars, of dataclasses, or of (name, value) pairs."""
    pack: Convert
    unpack: Convert
    if isinstance(item, type) and dataclasses.is_dataclass(item):
        nested = Mirror(item, _type_of(name, message))
        pack, unpack = nested.to_proto, nested.from_proto
    elif get_origin(item) is tuple:
        pair = _type_of(name, message)
        pack, unpack = lambda value: pair(name=value[0], value=value[1]), lambda source: (source.name, source.value)
    else:
        return lambda out, value: getattr(out, name).extend(value), lambda source: tuple(getattr(source, name))
    return (
        lambda out, value: getattr(out, name).extend([pack(entry) for entry in value]),
        lambda source: tuple([unpack(entry) for entry in getattr(source, name)]),
    )


def _without_none(hint: Any) -> Any:
    """T of `T | None`, else None."""
    if get_origin(hint) not in (Union, types.UnionType):
        return None
    (inner,) = [part for part in get_args(hint) if part is not type(None)]
    return inner


def _type_of(name: str, message: Any) -> Any:
    return message.DESCRIPTOR.fields_by_name[name].message_type._concrete_class
