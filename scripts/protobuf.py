"""Makes fleet_pb2.py from fleet.proto, or with --check fails if it is out of date."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = Path("inference_stack/wire/grpc/fleet.proto")
TARGET = ROOT / "src" / SOURCE.with_name("fleet_pb2.py")
HEADER = "# Made from fleet.proto by scripts/proto. Do not edit.\n"


def generated() -> str:
    """What protoc makes of the contract."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "src", f"--python_out={folder}", f"src/{SOURCE}"]
        subprocess.run(command, cwd=ROOT, check=True)
        return HEADER + (Path(folder) / SOURCE.with_name(TARGET.name)).read_text()


def main() -> int:
    """Write the file, or compare it."""
    made = generated()
    if "--check" not in sys.argv:
        TARGET.write_text(made)
    elif not TARGET.is_file() or TARGET.read_text() != made:
        print(f"{TARGET.relative_to(ROOT)} is out of date: run scripts/proto", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
