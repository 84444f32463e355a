"""What all tests of kernels run under.

Fresh memory holds nonsense, NaN where it can, since a card's does: whatever is read before it was written shows. And Triton's
interpreter is mended: its scalars are arrays of one element, which NumPy 2.4 no longer makes integers of by itself, so that
`range` over a kernel's argument would fail.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from inference_stack.ops.workspace import Workspace

NONSENSE = 0x5A

_patch = interpreter._patch_lang_tensor


def _patched(tensor: Any, scope: Any) -> None:
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patched


def _poison(fresh: Tensor) -> Tensor:
    if fresh.is_floating_point() and fresh.element_size() > 1:
        return fresh.fill_(torch.nan)
    fresh.view(torch.uint8).fill_(NONSENSE)
    return fresh


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on fresh memory is nonsense."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Workspace, "take")):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, plain=plain, **kwargs: _poison(plain(*args, **kwargs)))
