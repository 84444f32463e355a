"""A check that model code calls only ops: while it is on, any tensor operation outside an op raises.

Views count as operations, since a recorded step replays ops alone and would not see them.
"""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from inference_stack.ops.facade import BoundOps


class TensorOperationOutsideOps(RuntimeError):
    """Model code did tensor work of its own; the message names the operation."""


class only_ops(TorchDispatchMode):
    """Context manager: raises TensorOperationOutsideOps at the first tensor operation that no op of `ops` performs."""

    def __init__(self, ops: BoundOps) -> None:
        super().__init__()
        self._ops = ops

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Lets operations of ops pass; refuses all others."""
        if not self._ops.inside:
            raise TensorOperationOutsideOps(f"{func} was called outside an op; model code may only call ops")
        return func(*args, **(kwargs or {}))
