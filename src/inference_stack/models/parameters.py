"""Every tensor that a loaded model holds, wherever its parts and the kernels' own layouts keep it.

Found by walking objects, so that whoever moves weights need not know what an implementation made of them. Knows Python's
containers; it knows no architecture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType

import torch
from torch import Tensor


def parameters(*roots: object) -> tuple[Tensor, ...]:
    """The tensors that can be reached from these objects, each once, in the order they are met.

    Through containers, attributes, slots, bound methods, partial functions and what functions close over.
    """
    found: dict[int, Tensor] = {}
    seen: dict[int, object] = {}  # keeps what it saw alive, so that no other object gets its id
    left = list(reversed(roots))
    while left:
        thing = left.pop()
        if id(thing) in seen or not _may_hold(thing):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, Tensor):
            found[id(thing)] = thing
        else:
            left.extend(reversed(list(_parts(thing))))
    return tuple(found.values())


def _may_hold(thing: object) -> bool:
    if isinstance(thing, Tensor):
        return True
    if thing is None or isinstance(thing, str | bytes | int | float | complex | type | torch.dtype | torch.device):
        return False
    return not type(thing).__module__.startswith("torch")  # streams, events, modules' internals


def _parts(thing: object) -> Iterator[object]:
    if isinstance(thing, Mapping):
        yield from thing.values()
    elif isinstance(thing, tuple | list | set | frozenset):
        yield from thing
    elif isinstance(thing, FunctionType):
        yield from (cell.cell_contents for cell in thing.__closure__ or () if _filled(cell))
        yield from thing.__defaults__ or ()
    elif isinstance(thing, MethodType):
        yield thing.__self__
    elif isinstance(thing, partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    yield from _attributes(thing)


def _filled(cell: object) -> bool:
    return hasattr(cell, "cell_contents")


def _attributes(thing: object) -> Iterable[object]:
    own = getattr(thing, "__dict__", None)
    slots = (name for kind in type(thing).__mro__ for name in _names(kind.__dict__.get("__slots__", ())))
    values = [getattr(thing, name) for name in slots if not name.startswith("__") and hasattr(thing, name)]
    return [*values, *(own.values() if isinstance(own, dict) else ())]


def _names(slots: object) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else tuple(slots) if isinstance(slots, Iterable) else ()
