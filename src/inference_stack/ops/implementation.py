"""One registered way to run one op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from inference_stack.ops.facade import Recorder
from inference_stack.ops.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """One way to run one op. `speed` orders those that can run (higher first); `refuses` gives the reason it cannot, or None.

    `recorder` is what can record steps made of this and the other ops that name the same one; `graphs` says that the device can
    record them itself, since what is launched follows from shapes alone where `StepInputs` has no host integers. `numerics`
    names what decides the result's bits when neither torch nor the processor has a part in it.
    """

    op: str
    name: str
    speed: int
    refuses: Callable[[torch.device], str | None]
    build: Callable[[Workspace], Callable[..., Any]]
    recorder: Recorder | None = None
    numerics: str = ""
    graphs: bool = False
