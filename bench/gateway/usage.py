"""What processes use: processor seconds by role, and memory by role. Shows which of them is the limit.

Roles: gateway, node, worker (an engine's process, by its command), upstream, pump, proxy. Linux.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
from bench.peers.process import Process

RESTING_S = 0.03
"""Processor seconds of a role in half a second, below which it has nothing to do."""

WORKER = "inference_stack.engine.worker"


@dataclass(frozen=True)
class Reading:
    """Processor seconds so far, by role and process; and of the whole machine."""

    roles: Mapping[str, Mapping[int, float]]
    machine: float


def _role(process: psutil.Process, role: str) -> str:
    return "worker" if WORKER in process.cmdline() else role


def _each(processes: Mapping[str, Process]) -> list[tuple[str, psutil.Process]]:
    found = []
    for role, process in processes.items():
        for one in process.tree():
            try:
                found.append((_role(one, role), one))
            except psutil.Error:
                continue
    return found


def read(processes: Mapping[str, Process]) -> Reading:
    """Now."""
    roles: dict[str, dict[int, float]] = {}
    for role, one in _each(processes):
        try:
            times = one.cpu_times()
        except psutil.Error:
            continue
        roles.setdefault(role, {})[one.pid] = times.user + times.system
    whole = psutil.cpu_times()
    return Reading(roles, whole.user + whole.nice + whole.system + whole.irq + whole.softirq)


def settle(processes: Mapping[str, Process], limit: float = 15.0) -> None:
    """Wait until they rest, so that what one trial left behind is not the next one's load; not longer than `limit` seconds."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        before = read(processes)
        time.sleep(0.5)
        found = between(before, read(processes), 0.5, 1, 0.0)
        if all(row["cpu_s"] < RESTING_S for role, row in found.items() if role != "others"):
            return


def between(
    before: Reading, after: Reading, wall: float, requests: int, load_cpu: float
) -> dict[str, dict[str, float]]:
    """By role: processes, seconds, milliseconds a request, and the busiest process's share of a core. `others` is what the rest
    of the machine used: a run where it is not small was disturbed.
    """
    found: dict[str, dict[str, float]] = {}
    known = load_cpu
    for role, now in after.roles.items():
        spent = [seconds - before.roles.get(role, {}).get(pid, 0.0) for pid, seconds in now.items()]
        known += sum(spent)
        found[role] = _row(len(spent), sum(spent), max(spent), wall, requests)
    found["load"] = _row(1, load_cpu, load_cpu, wall, requests)
    found["others"] = {"cpu_s": round(max(0.0, after.machine - before.machine - known), 3)}
    return found


def _row(processes: int, seconds: float, busiest: float, wall: float, requests: int) -> dict[str, float]:
    return {
        "processes": processes,
        "cpu_s": round(seconds, 3),
        "ms_per_request": round(1000 * seconds / max(1, requests), 3),
        "busiest_core_share": round(busiest / max(wall, 1e-9), 3),
    }


def pss_mb(processes: Mapping[str, Process]) -> dict[str, float]:
    """Proportional set size by role, in MB (10⁶ bytes). Moves with whatever else on the machine shares libraries."""
    return _memory_mb(processes, "pss")


def private_mb(processes: Mapping[str, Process]) -> dict[str, float]:
    """What no other process shares, by role, in MB."""
    return _memory_mb(processes, "uss")


def _memory_mb(processes: Mapping[str, Process], kind: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for role, one in _each(processes):
        try:
            found[role] = found.get(role, 0.0) + getattr(one.memory_full_info(), kind) / 1e6
        except psutil.Error:
            continue
    return {role: round(value, 2) for role, value in found.items()}
