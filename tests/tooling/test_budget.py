import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "budget.py"


def run(folder: Path, text: str, name: str = "src/a.py") -> subprocess.CompletedProcess[str]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True)


def function(name: str, lines: int) -> str:
    return f"def {name}():\n" + "    x = 1\n" * (lines - 1)


def test_small_code_is_within_budget(tmp_path: Path) -> None:
    done = run(tmp_path, function("small", 25))
    assert (done.returncode, done.stdout) == (0, "within budget\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (function("long", 61), "long has 61 lines, more than 60"),
        (function("middling", 26), "only 0 % of function lines"),
        (function("a", 41) + function("b", 20) + function("c", 25), "95th percentile of function lengths is 41"),
        ("x = 1\n" * 501, "501 lines, more than 500"),
        ("x = 1  # TO" + "DO later\n", "src/a.py:1: a note to finish later"),
        ("def f():\n    raise NotImplemented" + "Error\n", "src/a.py:2: NotImplementedError"),
    ],
)
def test_what_breaks_the_budget_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    done = run(tmp_path, text)
    assert done.returncode == 1
    assert complaint in done.stdout


def test_a_docstring_does_not_count(tmp_path: Path) -> None:
    text = 'def f():\n    """' + "word\n" * 90 + '    """\n    return 1\n'
    assert run(tmp_path, text).returncode == 0
