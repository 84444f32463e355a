"""`BoundOps`: the object models and the runner call, one chosen implementation behind each op.

It also says whether the caller is inside an op, which is how a purity check tells a model's own tensor work from an op's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.ops.api import (
    Activation,
    Experts,
    HeadSpec,
    KvLayer,
    Linear,
    Sampled,
    SampleInputs,
    Scored,
    StepInputs,
)
from inference_stack.ops.workspace import Workspace


class Recording(Protocol):
    """A step that was recorded once, to be replayed with other sizes over the same memory."""

    def run(self, tokens: int, rows: int, samples: int) -> None:
        """Replay for T tokens in R rows with S samples."""
        ...

    def start_profile(self) -> None:
        """From now on, time each operation."""
        ...

    def stop_profile(self) -> Sequence[Timing]:
        """Each operation's time since `start_profile`."""
        ...


class Timing(Protocol):
    """One operation of a replayed step, with its seconds."""

    @property
    def name(self) -> str: ...
    @property
    def seconds(self) -> float: ...


class Recorder(Protocol):
    """What turns the operations called in a block into a recording, without running them."""

    def record(self, most_tokens: int, most_samples: int) -> AbstractContextManager[Callable[[], Recording]]:
        """The block's value, called at its end, gives the recording."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """One op's implementation: the callable, its name, why it was chosen, and what `Implementation` says of it."""

    run: Callable[..., Any]
    name: str
    reason: str
    recorder: Recorder | None = None
    numerics: str = ""
    graphs: bool = False
    kv_dtypes: frozenset[str] = frozenset()
    refuses_group: Callable[[KvGroupSpec], str | None] | None = None


STEP_OPS: Final = ("embed", "rmsnorm", "add_rmsnorm", "linear", "rope_store", "attend", "act_mul", "select")
"""What every model's step is made of."""
KV_OPS: Final = ("rope_store", "attend")
"""What writes KV memory and what reads it."""
EXPERT_OPS: Final = ("experts",)
"""What a step of a mixture of experts has besides."""


class _Inside:
    """Counts how deep the caller is inside ops."""

    __slots__ = ("depth",)

    def __init__(self) -> None:
        self.depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.depth -= 1


class BoundOps:
    """`Ops` over one workspace. Made by `registry.build_ops`."""

    def __init__(self, choices: Mapping[str, Choice], workspace: Workspace) -> None:
        self.workspace = workspace
        self._choices = dict(choices)
        self._inside = _Inside()
        self._run = {op: choice.run for op, choice in choices.items()}

    @property
    def inside(self) -> bool:
        """Whether an op is running."""
        return self._inside.depth > 0

    def embed(self, tokens_T: Tensor, table: Linear, scale: float = 1.0) -> Tensor:
        """See `Ops.embed`."""
        return self._tensor("embed", tokens_T, table, scale)

    def rmsnorm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """See `Ops.rmsnorm`."""
        return self._tensor("rmsnorm", x_TD, weight_D, eps)

    def add_rmsnorm(self, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """See `Ops.add_rmsnorm`."""
        with self._inside:
            normed, total = self._run["add_rmsnorm"](x_TD, residual_TD, weight_D, eps)
        return normed, total

    def linear(self, x_TK: Tensor, weight: Linear) -> Tensor:
        """See `Ops.linear`."""
        return self._tensor("linear", x_TK, weight)

    def rope_store(self, qkv_TX: Tensor, heads: HeadSpec, kv: KvLayer, step: StepInputs) -> Tensor:
        """See `Ops.rope_store`."""
        return self._tensor("rope_store", qkv_TX, heads, kv, step)

    def attend(
        self,
        q_THE: Tensor,
        kv: KvLayer,
        step: StepInputs,
        scale: float,
        softcap: float = 0.0,
        sinks_H: Tensor | None = None,
    ) -> Tensor:
        """See `Ops.attend`."""
        return self._tensor("attend", q_THE, kv, step, scale, softcap, sinks_H)

    def act_mul(self, gate_up_TX: Tensor, kind: Activation) -> Tensor:
        """See `Ops.act_mul`."""
        return self._tensor("act_mul", gate_up_TX, kind)

    def experts(self, x_TD: Tensor, router_logits_TX: Tensor, experts: Experts) -> Tensor:
        """See `Ops.experts`."""
        return self._tensor("experts", x_TD, router_logits_TX, experts)

    def select(self, x_TD: Tensor, rows_S: Tensor) -> Tensor:
        """See `Ops.select`."""
        return self._tensor("select", x_TD, rows_S)

    def sample(self, logits_SV: Tensor, inputs: SampleInputs) -> Sampled:
        """See `Ops.sample`. The result's columns outlive the step and are therefore not in the workspace."""
        with self._inside:
            sampled: Sampled = self._run["sample"](logits_SV, inputs)
        return sampled

    def score(self, logits_SV: Tensor, tokens_S: Tensor, top: int) -> Scored:
        """See `Ops.score`. The result's columns outlive the step and are therefore not in the workspace."""
        with self._inside:
            scored: Scored = self._run["score"](logits_SV, tokens_S, top)
        return scored

    def prepare(self, weight: Linear | Experts) -> None:
        """See `Ops.prepare`. Implementations that read dense weights as they are have nothing to prepare."""
        op = "experts" if isinstance(weight, Experts) else "linear"
        prepare = getattr(self._run[op], "prepare", None)
        if prepare is not None:
            prepare(weight)

    @property
    def recorder(self) -> Recorder | None:
        """What can record whole steps of models without experts."""
        return self.recorder_of(STEP_OPS)

    def recorder_of(self, ops: Sequence[str]) -> Recorder | None:
        """What can record steps made of these ops: the one that all of them share, if they do."""
        recorders = [self._choices[op].recorder for op in ops]
        return recorders[0] if all(one is recorders[0] for one in recorders) else None

    def graphs_of(self, ops: Sequence[str]) -> bool:
        """Whether devices that record graphs can record steps made of these ops."""
        return all(self._choices[op].graphs for op in ops)

    def refuses_kv(self, dtype: str) -> str | None:
        """Why KV cannot be stored in `dtype`, or None. Dtypes are named as in `KvGroupSpec`."""
        for op in KV_OPS:
            choice = self._choices[op]
            if dtype not in choice.kv_dtypes:
                able = ", ".join(sorted(choice.kv_dtypes)) or "none"
                return f"{op} as {choice.name} stores no KV in {dtype}; it knows {able}"
        return None

    def refuses_group(self, spec: KvGroupSpec) -> str | None:
        """Why layers of this shape cannot be served, or None."""
        for op in KV_OPS:
            choice = self._choices[op]
            refusal = choice.refuses_group(spec) if choice.refuses_group is not None else None
            if refusal is not None:
                return f"{op} as {choice.name} refuses: {refusal}"
        return None

    def numerics(self, isa: str, without: Collection[str] = ()) -> dict[str, str]:
        """For each op but those `without`, the name of everything that decides its bits, on a machine called `isa`."""
        libraries = f"torch {torch.__version__} on {isa}"
        used = {op: choice for op, choice in self._choices.items() if op not in without}
        return {op: choice.numerics or f"{choice.name}, {libraries}" for op, choice in used.items()}

    def explain(self) -> dict[str, str]:
        """For each op, the implementation's name and why it was chosen."""
        return {op: f"{choice.name}: {choice.reason}" for op, choice in self._choices.items()}

    def _tensor(self, op: str, *args: object) -> Tensor:
        with self._inside:
            result: Tensor = self._run[op](*args)
        return result
