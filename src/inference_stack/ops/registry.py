"""Which implementation each op gets: every registered one says whether it can run here, and the fastest that can is taken.

Knows names, capabilities and preferences; it knows nothing of how an op works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch

from inference_stack.core.kv_spec import DTYPE_BYTES
from inference_stack.ops.cpu.implementations import cpu_implementations
from inference_stack.ops.fa3.implementations import fa3_implementations
from inference_stack.ops.facade import KV_OPS, BoundOps, Choice
from inference_stack.ops.humming.implementations import humming_implementations
from inference_stack.ops.implementation import TRANSPOSED_KEYS, Implementation
from inference_stack.ops.reference.activation import act_mul
from inference_stack.ops.reference.attention import Attention
from inference_stack.ops.reference.experts import GroupedExperts
from inference_stack.ops.reference.linear import TiledLinear
from inference_stack.ops.reference.norms import add_rmsnorm, rmsnorm
from inference_stack.ops.reference.rope import RopeStore
from inference_stack.ops.reference.rows import embed, select
from inference_stack.ops.reference.sampler import sample
from inference_stack.ops.reference.score import score
from inference_stack.ops.triton.implementations import triton_implementations
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

OPS: Final = (
    "embed",
    "rmsnorm",
    "add_rmsnorm",
    "linear",
    "rope_store",
    "attend",
    "act_mul",
    "experts",
    "select",
    "sample",
    "score",
)


class NoImplementation(RuntimeError):
    """No registered implementation of an op can run here, or the preferred one cannot; the message gives every reason."""


class Registry:
    """Implementations by op."""

    def __init__(self, implementations: Iterable[Implementation] = ()) -> None:
        self._by_op: dict[str, list[Implementation]] = {op: [] for op in OPS}
        for implementation in implementations:
            self.add(implementation)

    def add(self, implementation: Implementation) -> None:
        """Registers one more. Raises KeyError for an op that does not exist."""
        self._by_op[implementation.op].append(implementation)

    def having(self, name: str) -> tuple[str, ...]:
        """The ops that have an implementation of this name."""
        return tuple(op for op, known in self._by_op.items() if any(one.name == name for one in known))

    def choose(self, op: str, device: torch.device, prefer: str | None = None) -> tuple[Implementation, str]:
        """The implementation for `op` on `device` and why: the fastest, or the preferred one. Raises NoImplementation."""
        reasons: list[str] = []
        able: list[Implementation] = []
        asked = [one for one in self._by_op[op] if not one.by_name or one.name == prefer]
        for candidate in sorted(asked, key=lambda one: -one.speed):
            refusal = candidate.refuses(device)
            able += [candidate] if refusal is None else []
            reasons += [f"{candidate.name} refuses: {refusal}"] if refusal is not None else []
        if prefer is not None:
            able = [candidate for candidate in able if candidate.name == prefer]
        if not able:
            wanted = f"preferred implementation {prefer!r}" if prefer is not None else "implementation"
            raise NoImplementation(f"{op} has no {wanted} on {device}; {'; '.join(reasons) or 'none is registered'}")
        why = "preferred by configuration" if prefer is not None else _why(able)
        return able[0], "; ".join([why, *reasons])


def _why(able: list[Implementation]) -> str:
    others = ", ".join(one.name for one in able[1:])
    return f"fastest that can run here, before {others}" if others else "the only one that can run here"


def _runs_anywhere(_: torch.device) -> str | None:
    return None


def reference_implementations() -> tuple[Implementation, ...]:
    """The torch reference of every op, which runs on any torch device."""
    builders: dict[str, Callable[[Workspace], Callable[..., Any]]] = {
        "embed": lambda workspace: partial(embed, workspace),
        "rmsnorm": lambda workspace: partial(rmsnorm, workspace),
        "add_rmsnorm": lambda workspace: partial(add_rmsnorm, workspace),
        "linear": TiledLinear,
        "rope_store": RopeStore,
        "attend": Attention,
        "act_mul": lambda workspace: partial(act_mul, workspace),
        "experts": lambda workspace: GroupedExperts(workspace, TiledLinear(workspace), partial(act_mul, workspace)),
        "select": lambda workspace: partial(select, workspace),
        "sample": lambda _: sample,
        "score": lambda _: score,
    }
    return tuple(
        Implementation(
            op=op,
            name="reference",
            speed=0,
            refuses=_runs_anywhere,
            build=build,
            kv_layout=TRANSPOSED_KEYS if op in KV_OPS else "",
            kv_dtypes=frozenset(DTYPE_BYTES if op in KV_OPS else ()),
        )
        for op, build in builders.items()
    )


def default_registry(threads: int = 1, kernels: str = "") -> Registry:
    """Every implementation of this build. `threads` and `kernels` (empty: the fastest set) are for native CPU code."""
    return Registry((*reference_implementations(), *cpu_implementations(threads, kernels)))


def gpu_registry(settings: TritonSettings) -> Registry:
    """Every implementation of this build that runs on GPUs."""
    optional = (*fa3_implementations(settings), *humming_implementations(settings))
    return Registry((*reference_implementations(), *triton_implementations(settings), *optional))


def build_ops(
    workspace: Workspace, *, registry: Registry | None = None, prefer: Mapping[str, str] | None = None
) -> BoundOps:
    """Ops for the workspace's device. `prefer` maps ops to implementation names. Raises NoImplementation, also where the op that
    writes KV and the one that reads it disagree about its layout, or KeyError for an op in `prefer` that does not exist."""
    registry = registry or default_registry()
    wanted = dict(prefer or {})
    unknown = set(wanted) - set(OPS)
    if unknown:
        raise KeyError(f"no such op: {', '.join(sorted(unknown))}")
    chosen = {op: registry.choose(op, workspace.device, wanted.get(op)) for op in OPS}
    _check_layouts([chosen[op][0] for op in KV_OPS])
    return BoundOps({op: _choice(one, reason, workspace) for op, (one, reason) in chosen.items()}, workspace)


def _choice(one: Implementation, reason: str, workspace: Workspace) -> Choice:
    return Choice(
        run=one.build(workspace),
        name=one.name,
        reason=reason,
        recorder=one.recorder,
        numerics=one.numerics,
        graphs=one.graphs,
        kv_dtypes=one.kv_dtypes,
        refuses_group=one.refuses_group,
    )


def _check_layouts(kv_ops: Sequence[Implementation]) -> None:
    if len({one.kv_layout for one in kv_ops}) > 1:
        layouts = ", ".join(f"{one.op} as {one.name}: {one.kv_layout or 'unknown'}" for one in kv_ops)
        raise NoImplementation(f"KV memory would be written in one layout and read in another ({layouts})")
