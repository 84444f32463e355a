"""Compiles every shipped launch configuration for GPUs that are not here, and reports what the compiler made of it.

    python -m tests.ops.triton.cross [--arch 90] [MODULE …]     one JSON object a line

Run as a process of its own, without TRITON_INTERPRET: a kernel is either interpreted or compiled, decided when it is defined.
And for one architecture: what is compiled for a second one may have instructions of the first.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import inference_stack.ops.triton as package
from inference_stack.ops.triton.kernel import Shipped

ALIGNED = [["tt.divisibility", 16]]
UNDER_WAY = re.compile(r"async_wait.*\bnum = (\d+)")
"""Copies that may still be on their way when a loop goes on."""
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def modules() -> list[str]:
    """Modules of the package that ship kernels."""
    names = [f"{package.__name__}.{found.name}" for found in pkgutil.iter_modules(package.__path__)]
    return [name for name in names if hasattr(importlib.import_module(name), "SHIPPED")]


def compiled(one: Shipped, arch: int) -> dict[str, Any]:
    """What one configuration becomes on one architecture."""
    names = list(one.kernel.arg_names)
    signature = {name: one.signature.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in one.constants.items()}
    attributes = {(names.index(name),): ALIGNED for name in one.aligned}
    source = ASTSource(fn=one.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": one.num_warps, "num_stages": one.num_stages}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, stack, _, local = resources(made.asm["cubin"])
    return {
        "name": one.name,
        "arch": arch,
        "registers": registers,
        "stack": stack,
        "local": local,
        "shared": made.metadata.shared,
        "wgmma": "wgmma" in made.asm["ptx"],
        "wants_wgmma": one.wgmma,
        "under_way": max((int(left) for left in UNDER_WAY.findall(made.asm["ttgir"])), default=0),
        "wants_overlap": one.overlap,
    }


def resources(cubin: bytes) -> tuple[int, int, int, int]:
    """Registers, stack, static shared and local bytes, from the compiler's own report."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = RESOURCES.search(text)
    if found is None:
        raise RuntimeError(f"the resource report has another form: {text}")
    registers, stack, shared, local = map(int, found.groups())
    return registers, stack, shared, local


def everything(wanted: list[str], arch: int) -> Iterator[dict[str, Any]]:
    """Reports of all configurations of the modules."""
    for name in wanted or modules():
        for one in importlib.import_module(name).SHIPPED:
            if arch in one.archs:
                yield compiled(one, arch)


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("modules", nargs="*")
    asked = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is set: kernels would be interpreted, not compiled")
    for report in everything(asked.modules, asked.arch):
        print(json.dumps(report), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
