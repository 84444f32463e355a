import io

from rich.console import Console

from inference_stack.cli.ledger import print_ledger
from inference_stack.core.stats import Ledger


def render(ledger: Ledger) -> str:
    out = io.StringIO()
    print_ledger(Console(file=out, width=120), ledger)
    return out.getvalue()


def test_stages_show_seconds_share_and_what_is_unattributed() -> None:
    text = render(Ledger(stages=(("import torch", 1.5), ("load weights", 2.0)), total_seconds=4.0))
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["import", "torch", "1.500", "s", "37.5", "%"],
        ["load", "weights", "2.000", "s", "50.0", "%"],
        ["unattributed", "0.500", "s", "12.5", "%"],
        ["total", "4.000", "s", "100.0", "%"],
    ]


def test_bytes_and_derived_settings_are_shown() -> None:
    text = render(Ledger(memory=(("weights", 3 << 20),), derived={"max_model_len": "8192 (from the model)"}))
    assert "3.00 MiB" in text
    assert "8192 (from the model)" in text


def test_an_empty_ledger_divides_by_nothing() -> None:
    assert "0.000 s" in render(Ledger())
