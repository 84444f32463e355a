"""docs/configuration.md from the settings tree; `--check` fails when the file differs instead of writing it."""

from __future__ import annotations

import sys
from pathlib import Path

from inference_stack.config.reference import markdown

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"


def main() -> int:
    """Write or check the page."""
    text = markdown()
    if "--check" not in sys.argv:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text)
        return 0
    if PAGE.is_file() and PAGE.read_text() == text:
        return 0
    print("docs/configuration.md is out of date: run `make docs`")
    return 1


if __name__ == "__main__":
    sys.exit(main())
