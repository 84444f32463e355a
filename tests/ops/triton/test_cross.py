"""Every launch configuration that can be chosen compiles for the cards it is for, fits them, uses their matrix instructions,
and loads while it computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

SPILLED = 8
"""Bytes of stack that are no spill worth the name: two registers that the assembler gave up for one more block at once."""
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
"""Most shared memory of a block, in bytes, by architecture (CUDA C++ Programming Guide, compute capabilities)."""


def _reports(arch: int) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ops.triton.cross", "--arch", str(arch)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "arch", [90, pytest.param(89, marks=pytest.mark.slow), pytest.param(80, marks=pytest.mark.slow)]
)
def test_every_configuration_compiles_as_it_should(arch: int) -> None:
    reports = _reports(arch)
    assert reports
    wrong = [one for one in reports if one["local"] or one["stack"] > SPILLED or one["shared"] > SHARED[arch]]
    wrong += [one for one in reports if arch == 90 and one["wants_wgmma"] and not one["wgmma"]]
    wrong += [one for one in reports if one["wants_overlap"] and not one["under_way"]]
    assert not wrong
