"""Whether an external server can be used, and for what: from its answers to the checks, and from what it refuses.

    unchecked ──its models are listed, and token ids come back──▶ ready ◀──time──▶ resting (it refused something)

Pure but for what it asks of a server; time is passed in.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, Protocol

from inference_stack.core.errors import SERVER_ERROR, ErrorInfo
from inference_stack.core.fleet import ModelInfo, NodeState, WorkerState
from inference_stack.gateway.external_api import LocalModel, NoTokenIds, Refusal, Unreachable

FIRST_REST_SECONDS: Final = 0.5
LONGEST_REST_SECONDS: Final = 30.0
LONGEST_RETRY_AFTER: Final = 60.0
REMEMBERED_REFUSALS: Final = 10_000
MISSES: Final = 2
"""Checks in a row without an answer after which a server is gone."""


class Refusals:
    """How often each request was refused by each server since it last made progress; the oldest are forgotten first."""

    def __init__(self, most: int = REMEMBERED_REFUSALS) -> None:
        self._most = most
        self._counts: OrderedDict[tuple[str, str], int] = OrderedDict()

    def add(self, server: str, request_id: str) -> int:
        """Once more; how often it is now."""
        key = server, request_id
        count = self._counts[key] = self._counts.pop(key, 0) + 1
        while len(self._counts) > self._most:
            self._counts.popitem(last=False)
        return count

    def forget(self, server: str, request_id: str) -> None:
        """It made progress, or ended."""
        self._counts.pop((server, request_id), None)


class Asks(Protocol):
    """The two questions of a check."""

    async def models(self) -> dict[str, int | None]:
        """What is served, with context lengths. Raises `Refusal`."""
        ...

    async def check(self, model: str) -> bool:
        """See that token ids come back; whether those of log-probabilities do. Raises `Refusal`; `NoTokenIds` where none do."""
        ...


class Condition:
    """One server's, under the node name `name`."""

    def __init__(self, name: str, models: Mapping[str, LocalModel], places: int) -> None:
        self._name = name
        self._local = models
        self._places = places
        self._boot = secrets.token_hex(8)
        self._checked: dict[str, bool] = {}
        self._served: dict[str, ModelInfo] = {}
        self._trouble = "it has not been asked yet"
        self._broken = ""
        self._misses = 0
        self._rest = 0.0
        self._rest_until = 0.0
        self.draining = False
        self.remark = ""

    @property
    def gone(self) -> bool:
        """Whether it has not answered for so long that its link should end."""
        return self._misses >= MISSES

    def rests(self, now: float) -> float:
        """Seconds until it may be used again."""
        return max(0.0, self._rest_until - now)

    def refused(self, refusal: Refusal, now: float) -> None:
        """It refused something: nothing new is sent there for a while, longer each time. What comes while it rests is of the same
        trouble."""
        if not self.rests(now):
            self._rest = min(max(2 * self._rest, FIRST_REST_SECONDS), LONGEST_REST_SECONDS)
        pause = self._rest if refusal.retry_after is None else min(refusal.retry_after, LONGEST_RETRY_AFTER)
        self._rest_until = max(self._rest_until, now + max(pause, FIRST_REST_SECONDS))
        self.remark = str(refusal)
        if isinstance(refusal, NoTokenIds):
            self._checked.clear()
            self._served.clear()
            self._broken = str(refusal)

    def worked(self) -> None:
        """It finished something: the next rest is a short one again."""
        self._rest = 0.0

    async def check(self, server: Asks) -> None:
        """Ask it. Raises nothing: what it does not answer is part of its condition."""
        try:
            offered = await server.models()
        except Refusal as refusal:
            self._misses += MISSES if isinstance(refusal, Unreachable) else 1
            self._trouble = str(refusal)
            return
        self._misses = 0
        self._trouble = self._broken = ""
        mine = offered.keys() & self._local.keys()
        for name in sorted(mine - self._checked.keys()):
            await self._check_model(server, name)
        self._checked = {name: logprobs for name, logprobs in self._checked.items() if name in mine}
        self._served = {name: info for name in sorted(self._checked) if (info := self._info(name, offered[name]))}
        if not mine:
            listed = ", ".join(sorted(offered)[:5]) or "none"
            self._broken = f"it serves none of this gateway's models; its own: {listed}"

    async def _check_model(self, server: Asks, name: str) -> None:
        try:
            self._checked[name] = await server.check(name)
        except NoTokenIds as refusal:
            self._broken = str(refusal)
        except Refusal as refusal:
            self._trouble = str(refusal)

    def _info(self, name: str, context: int | None) -> ModelInfo | None:
        local = self._local[name]
        lengths = [length for length in (context, local.max_model_len) if length]
        if not lengths:
            self._broken = f"neither it nor the model's files say how long the context of {name} is"
            return None
        return ModelInfo(
            name=name,
            architecture=local.architecture,
            numerics_id=f"external:{self._name}",
            max_model_len=min(lengths),
            vocab_size=local.vocab_size,
            eos_tokens=local.eos_tokens,
            kv_groups=(),
            kv_blocks=0,
            max_running=self._places,
        )

    def served(self, model: str) -> ModelInfo | None:
        """The model, where it is served."""
        return self._served.get(model)

    def gives_logprobs(self, model: str) -> bool:
        """Whether the model's log-probabilities can be had there."""
        return self._checked.get(model, False)

    def state(self, now: float) -> NodeState:
        """As gateways hear it. An `error` is only what trying again will not change."""
        trouble = self._trouble or ("" if self._served else self._broken)
        resting = self.rests(now) > 0
        ready = bool(self._served) and not trouble and not resting
        stage = "failed" if self._broken and not self._served else "ready" if ready else "starting"
        broken = self._broken if stage == "failed" else ""
        return NodeState(
            node=self._name,
            ready=ready,
            models=tuple(self._served.values()) if ready else (),
            workers=(
                WorkerState(
                    pid=0,
                    device="external",
                    state="draining" if ready and self.draining else stage,
                    restarts=0,
                    reason=trouble or broken or (self.remark if resting or ready else ""),
                ),
            ),
            error=ErrorInfo(message=f"{self._name}: {broken}", type=SERVER_ERROR, code="external_server", status=503)
            if broken
            else None,
            draining=self.draining,
            boot=self._boot,
        )
