"""The reference ops, over a workspace big enough for these tests."""

from __future__ import annotations

from inference_stack.ops.facade import BoundOps
from inference_stack.ops.registry import build_ops
from inference_stack.ops.workspace import Workspace

MAX_TOKENS = 128


def ops() -> BoundOps:
    """Ops over a workspace that has just begun to measure."""
    return build_ops(Workspace(max_tokens=MAX_TOKENS, max_samples=MAX_TOKENS))
