"""A fleet to be broken: gateways and nodes as processes, a misbehaving wire between each two, and what the gateways tell of it all.

Fleet ─ starts ─▶ members      Fleet.watch ─ asks ─▶ /ready, /admin/v1/nodes, /metrics of every gateway, again and again
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from inference_stack.cli.bench.chaos_members import GatewayMember, NodeMember
from inference_stack.cli.bench.chaos_proxy import Proxy
from inference_stack.cli.bench.chaos_spec import Plan
from inference_stack.core.errors import ErrorInfo, InferenceError

LOOK_SECONDS = 0.2
ANSWER_SECONDS = 1.0
START_SECONDS = 120.0
COUNTED = {
    "moves": "inference_stack_continuations_total",
    "mismatches": "inference_stack_continuation_mismatches_total",
    "resumes": "inference_stack_stream_resumes_total",
}


@dataclass
class View:
    """What a gateway says, as it was last asked; `nodes` by the node's name. Empty while it does not answer."""

    ready: bool = False
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)


class Fleet:
    """All processes of a run. `folder` holds their logs, recordings, keys and certificates."""

    def __init__(self, plan: Plan, folder: Path, proxy: Proxy) -> None:
        (folder / "resume.key").write_text(secrets.token_hex(32))
        names = [f"n{number}" for number in range(1, plan.nodes + 1)]
        gateways = [f"g{number}" for number in range(1, plan.gateways + 1)]
        certificates = _certificates(folder, names, gateways) if plan.tls else None
        self.nodes = [NodeMember(name, plan, folder, certificates) for name in names]
        self.gateways = [GatewayMember(name, plan, self.nodes, proxy, folder, certificates) for name in gateways]
        self.views = {gateway.name: View() for gateway in self.gateways}
        self.troubled: set[str] = set()
        """Members that a fault is being done to, or that come back from one."""
        self._counts: dict[tuple[str, int, str], float] = {}
        self._http = httpx.AsyncClient(timeout=ANSWER_SECONDS, trust_env=False)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything runs inside and has been seen ready. Raises `InferenceError` when it never is."""
        watching = asyncio.create_task(self._watch())
        try:
            for member in (*self.nodes, *self.gateways):
                member.start()
            await self._all_ready()
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await self._http.aclose()
            for member in (*self.gateways, *self.nodes):
                member.end()

    async def _all_ready(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                while not all(self.usable(gateway, node) for gateway in self.gateways for node in self.nodes):
                    for member in (*self.nodes, *self.gateways):
                        if member.status is not None:
                            raise _failed(f"{member.name} ended with status {member.status}:\n{member.last_words()}")
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise _failed(f"the fleet was not ready after {START_SECONDS:.0f} s") from None

    # -- what is known

    def usable(self, gateway: GatewayMember, node: NodeMember) -> bool:
        """Whether this gateway says that it can send requests to this node."""
        view = self.views[gateway.name]
        said = view.nodes.get(node.name)
        return view.ready and said is not None and said["ready"] and not said["draining"]

    def sound_gateways(self) -> list[GatewayMember]:
        """Gateways that serve and to which nothing is being done."""
        return [one for one in self.gateways if self.views[one.name].ready and one.name not in self.troubled]

    def sound_nodes(self) -> list[NodeMember]:
        """Nodes that every serving gateway can use and to which nothing is being done."""
        serving = [gateway for gateway in self.gateways if self.views[gateway.name].ready]
        return [
            node
            for node in self.nodes
            if node.name not in self.troubled and serving and all(self.usable(gateway, node) for gateway in serving)
        ]

    async def where(self, node: NodeMember, gateways: list[GatewayMember]) -> set[str]:
        """The ids of answers of which a part is on this node now, as these gateways tell."""
        answers = await asyncio.gather(*(self._get(f"{gateway.admin}/requests") for gateway in gateways))
        found: set[str] = set()
        for gateway, answer in zip(gateways, answers, strict=True):
            here = gateway.address_of(node)
            rows = answer.json() if answer is not None else []
            found.update(row["request"].rpartition("-")[0] for row in rows if row["node"] == here)
        return found

    async def order(self, node: NodeMember, action: str, body: dict[str, Any] | None = None) -> bool:
        """Have a sound gateway drain a node, or take that back; whether one obeyed."""
        for gateway in self.sound_gateways():
            url = f"{gateway.admin}/nodes/{gateway.address_of(node)}/{action}"
            with contextlib.suppress(httpx.HTTPError):
                if (await self._http.post(url, json=body or {})).status_code == 202:
                    return True
        return False

    def count(self, name: str) -> int:
        """Of `COUNTED`: what all gateways counted, in all their lives. What was counted in the last moment of one is not known."""
        return round(sum(value for (_, _, counted), value in self._counts.items() if counted == name))

    # -- how it is known

    async def _get(self, url: str) -> httpx.Response | None:
        """The answer with status 200, if there is one in time."""
        try:
            answer = await self._http.get(url)
        except httpx.HTTPError:
            return None
        return answer if answer.status_code == 200 else None

    async def _watch(self) -> None:
        """Look at every gateway by itself: a stuck one must not hide the others."""
        async with asyncio.TaskGroup() as group:
            for gateway in self.gateways:
                group.create_task(self._look(gateway))

    async def _look(self, gateway: GatewayMember) -> None:
        view, turn = self.views[gateway.name], 0
        while True:
            ready = await self._get(f"{gateway.url}/ready")
            nodes = await self._get(f"{gateway.admin}/nodes") if ready is not None else None
            view.ready = nodes is not None
            view.nodes = {} if nodes is None else {one["node"]: one for one in nodes.json()}
            if nodes is not None and turn % 3 == 0:
                await self.read_counts(gateway)
            turn += 1
            await asyncio.sleep(LOOK_SECONDS)

    async def read_counts(self, gateway: GatewayMember) -> None:
        """Note a gateway's counters. They start anew when it does."""
        boot = gateway.boots
        answer = await self._get(f"{gateway.url}/metrics")
        if answer is None:
            return
        lines = answer.text.splitlines()
        for name, metric in COUNTED.items():
            samples = [line for line in lines if line.startswith((f"{metric}{{", f"{metric} "))]
            self._counts[gateway.name, boot, name] = sum(float(line.rsplit(" ", 1)[1]) for line in samples)


def _failed(message: str) -> InferenceError:
    return InferenceError(ErrorInfo(message=message, code="start_failed", status=500))


def _certificates(folder: Path, nodes: list[str], gateways: list[str]) -> Path:
    """What `istack certs` makes for these."""
    where = folder / "certificates"
    options = [word for name in nodes for word in ("--node", f"{name},127.0.0.1")]
    options += [word for name in gateways for word in ("--gateway", name)]
    command = [sys.executable, "-m", "inference_stack.cli.main", "certs", str(where), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise _failed(f"no certificates could be made: {done.stderr.strip()}")
    return where
