"""Tracked files name no machine: no absolute path of somebody's disk, no package index. Exits 1 and lists what does."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

RULES = {
    "an absolute path of one machine": re.compile(r"(?<![\w.~}])/(?:root|home|Users|work|opt|mnt)/[\w.-]+"),
    "a package index": re.compile(
        r"(?:index-url|find-links)[ =]+['\"]?(?:https?:|file:|/)|\b(?:pypi|pythonhosted|npmjs)\.org/"
    ),
}


def tracked(root: Path) -> list[Path]:
    """Files that git tracks, or would if they were added."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return [root / name for name in names if name and (root / name).is_file()]


def problems(path: Path, text: str) -> Iterator[str]:
    """Lines of one file that break a rule."""
    for number, line in enumerate(text.splitlines(), 1):
        for what, pattern in RULES.items():
            if found := pattern.search(line):
                yield f"{path}:{number}: {what}: {found.group()}"


def main() -> int:
    """Check the repository."""
    root = Path(__file__).parent.parent
    found = []
    for path in tracked(root):
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += problems(path.relative_to(root), text)
    print("\n".join(found) or "no machine is named")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
