"""The size budget: small functions, small files, no unfinished business. Exits 1 and lists what breaks it.

Functions: half of all lines in functions live in functions of at most 25 lines, 95 % of functions have at most 40, none has more
than 60; a docstring does not count, nor do a GPU kernel's parameters, one to a line. Files: at most 500 lines. In src: no
NotImplementedError, and nowhere a note to finish later.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SMALL, P95, LARGEST, FILE = 25, 40, 60, 500
# Kernels and tables may be long. Each entry says why.
LONG_FILES: dict[str, str] = {}
KERNELS = ("kernel", "kernel_for_any")
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
TREES = ("src", "sdk", "scripts", "bench", "tests")


@dataclass(frozen=True)
class Function:
    """One function and its length in lines, its docstring apart."""

    where: str
    name: str
    lines: int


def functions(path: Path, tree: ast.Module) -> Iterator[Function]:
    """All functions of a file; a nested one counts by itself and inside its parent."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            begins = node.body[0].lineno - 1 if _is_kernel(node) else node.lineno
            lines = (node.end_lineno or node.lineno) - begins + 1
            if ast.get_docstring(node, clean=False) is not None:
                doc = node.body[0]
                lines -= (doc.end_lineno or doc.lineno) - doc.lineno + 1
            yield Function(f"{path}:{node.lineno}", node.name, lines)


def _is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function is compiled for GPUs, as its decorator says."""
    decorators = (one.func if isinstance(one, ast.Call) else one for one in node.decorator_list)
    return any(isinstance(one, ast.Name) and one.id in KERNELS for one in decorators)


def function_problems(found: list[Function]) -> list[str]:
    """How the functions break the budget."""
    if not found:
        return []
    problems = [f"{f.where}: {f.name} has {f.lines} lines, more than {LARGEST}" for f in found if f.lines > LARGEST]
    total = sum(f.lines for f in found)
    small = sum(f.lines for f in found if f.lines <= SMALL)
    if 2 * small < total:
        problems.append(f"only {100 * small // total} % of function lines live in functions of at most {SMALL} lines")
    lengths = sorted(f.lines for f in found)
    p95 = lengths[min(len(lengths) - 1, 95 * len(lengths) // 100)]
    if p95 > P95:
        problems.append(f"the 95th percentile of function lengths is {p95} lines, more than {P95}")
    return problems


def unfinished(path: Path, text: str, tree: ast.Module) -> Iterator[str]:
    """Notes to finish later, and code that says that it is missing."""
    for number, line in enumerate(text.splitlines(), 1):
        if UNFINISHED.search(line):
            yield f"{path}:{number}: a note to finish later"
    if "src" not in path.parts:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "NotImplementedError":
            yield f"{path}:{node.lineno}: NotImplementedError"


def check(root: Path) -> list[str]:
    """Every way in which the tree under `root` breaks the budget."""
    problems: list[str] = []
    found: list[Function] = []
    for path in sorted(file for tree in TREES for file in (root / tree).rglob("*.py")):
        relative = path.relative_to(root)
        text = path.read_text()
        module = ast.parse(text, str(path))
        length = len(text.splitlines())
        if length > FILE and str(relative) not in LONG_FILES:
            problems.append(f"{relative}: {length} lines, more than {FILE}")
        problems += unfinished(relative, text, module)
        if "tests" not in relative.parts:
            found += functions(relative, module)
    return problems + function_problems(found)


def main() -> int:
    """Check the repository, or the folder given."""
    problems = check(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent)
    print("\n".join(problems) or "within budget")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
