import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "hygiene.py"
spec = importlib.util.spec_from_file_location("hygiene", SCRIPT)
assert spec is not None
assert spec.loader is not None
hygiene = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hygiene)


NAMED = ["see /ro" + "ot/x", "p = '/ho" + "me/me/model'", "--find-" + "links /wheels", "https://py" + "pi.org/simple"]


@pytest.mark.parametrize("text", NAMED)
def test_a_line_that_names_a_machine_is_found(text: str) -> None:
    (found,) = hygiene.problems(Path("a.md"), f"fine\n{text}\n")
    assert found.startswith("a.md:2: ")


@pytest.mark.parametrize(
    "text", ["/models/mine.gguf", "~/.cache/x", "dir/home/x", "https://example.com/work/x", "/v1/models"]
)
def test_ordinary_paths_and_addresses_are_fine(text: str) -> None:
    assert list(hygiene.problems(Path("a.md"), text)) == []
