"""Triton's interpreter as kernels' loops need it: its scalars are arrays of one element, which NumPy 2.4 no longer makes integers
of by itself, so that `range` over a kernel's argument would fail."""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter

_patch = interpreter._patch_lang_tensor


def _patched(tensor: Any, scope: Any) -> None:
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patched
