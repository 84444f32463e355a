"""The processes of a fleet that is to be broken: start them, signal them, start them again as a supervisor would.

Knows command lines and pids; what they serve is seen by `chaos_fleet`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from inference_stack.cli.background import die_with_parent, free_port
from inference_stack.cli.bench.chaos_proxy import Proxy, Wire
from inference_stack.cli.bench.chaos_spec import Plan

WORKER = "inference_stack.engine.worker"
NODE_DRAIN_SECONDS = 1.0
GATEWAY_DRAIN_SECONDS = 30.0
COMMENT_SECONDS = 0.5
"""Streams that wait say so twice a second, so that clients soon know a silent gateway from one that waits."""
FULL_BYTES = 1


class Member:
    """A process that is started again and again with the same command, in a session of its own."""

    def __init__(self, name: str, arguments: list[str], folder: Path) -> None:
        self.name = name
        self.boots = 0
        self._command = [sys.executable, "-m", "inference_stack.cli.main", *arguments]
        self._log = folder / f"{name}.log"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it. To be called from the main thread, which it does not outlive."""
        self.boots += 1
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        """Of the process as it was last started."""
        if self._child is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._child.pid

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return None if self._child is None else self._child.poll()

    def signal(self, number: int) -> None:
        """Send it a signal, unless it is gone."""
        if self._child is not None:
            self._child.send_signal(number)

    def end(self) -> None:
        """Kill it and all that it started, stopped or not."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def last_words(self) -> str:
        """The end of its log."""
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return "\n".join(lines[-8:])


class NodeMember(Member):
    """A node, its port, and the wires that lead there, by gateway."""

    def __init__(self, name: str, plan: Plan, folder: Path, certificates: Path | None) -> None:
        self.port = free_port()
        self.records = folder / "recordings" / name
        self.records.mkdir(parents=True, exist_ok=True)
        self.wires: dict[str, Wire] = {}
        simulated = ["--preset", plan.preset, "--preset-model", plan.preset_model]
        arguments = ["node", plan.model, "--name", name, "--listen", f"127.0.0.1:{self.port}"]
        arguments += ["--engine", plan.engine, *(simulated if plan.engine == "simulated" else ["--threads", "1"])]
        arguments += ["--heartbeat-seconds", str(plan.heartbeat_seconds), "--record", str(self.records)]
        arguments += ["--node-drain-seconds", str(NODE_DRAIN_SECONDS), *_tls(certificates, name)]
        super().__init__(name, arguments, folder)

    def workers(self) -> list[int]:
        """The pids of its workers."""
        try:
            children = psutil.Process(self.pid).children(recursive=True)
            return [child.pid for child in children if WORKER in child.cmdline()]
        except psutil.Error:
            return []

    def recorded_bytes(self) -> int:
        """How much its workers have recorded."""
        return sum(path.stat().st_size for path in self.records.iterdir())


class GatewayMember(Member):
    """A gateway, its ports, and the nodes it reaches through wires of its own."""

    def __init__(
        self, name: str, plan: Plan, nodes: list[NodeMember], proxy: Proxy, folder: Path, certificates: Path | None
    ) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.url, self.admin = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.admin_port}/admin/v1"
        self.addresses: dict[str, NodeMember] = {}
        for node in nodes:
            wire = node.wires[name] = proxy.wire(node.port)
            self.addresses[f"127.0.0.1:{wire.port}"] = node
        arguments = ["gateway", plan.model, "--port", str(self.port), "--admin-port", str(self.admin_port)]
        arguments += ["--gateway-nodes", ",".join(self.addresses), "--gateway-resume-key", str(folder / "resume.key")]
        arguments += ["--gateway-silence-seconds", str(plan.silence_seconds), *_tls(certificates, name)]
        arguments += ["--comment-seconds", str(COMMENT_SECONDS), "--drain-seconds", str(GATEWAY_DRAIN_SECONDS)]
        super().__init__(name, arguments, folder)

    def address_of(self, node: NodeMember) -> str:
        """What this gateway calls a node."""
        return next(address for address, one in self.addresses.items() if one is node)


def _tls(certificates: Path | None, name: str) -> list[str]:
    if certificates is None:
        return []
    paths = {"--tls-ca": "ca.crt", "--tls-cert": f"{name}.crt", "--tls-key": f"{name}.key"}
    return [word for flag, file in paths.items() for word in (flag, str(certificates / file))]


def full_disk(pid: int, full: bool) -> None:
    """From now on a process can (or can again) write to no file: what a full disk does to it."""
    limit = FULL_BYTES if full else resource.RLIM_INFINITY
    with contextlib.suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, hard))
