"""The start-up ledger as a table: where the seconds and the bytes went, and what was derived."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from inference_stack.config.sizes import format_size
from inference_stack.core.stats import Ledger


def _grid(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(min_width=28)
    table.add_column(justify="right")
    return table


def _stages(ledger: Ledger) -> Table:
    table = _grid("Start-up")
    total = ledger.total_seconds
    rows = [*ledger.stages, ("unattributed", ledger.unattributed_seconds), ("total", total)]
    table.add_column(justify="right", style="dim")
    for name, seconds in rows:
        table.add_row(name, f"{seconds:.3f} s", f"{100 * seconds / total:.1f} %" if total > 0 else "")
    return table


def _memory(ledger: Ledger) -> Table:
    table = _grid("Memory")
    for name, nbytes in ledger.memory:
        table.add_row(name, format_size(nbytes))
    return table


def _derived(ledger: Ledger) -> Table:
    table = _grid("Derived")
    table.columns[1].justify = "left"
    for name, value in ledger.derived.items():
        table.add_row(name, value)
    return table


def print_ledger(console: Console, ledger: Ledger) -> None:
    """Print what the ledger has: stages in order with the remainder, bytes by use, derived settings."""
    console.print(_stages(ledger))
    if ledger.memory:
        console.print(_memory(ledger))
    if ledger.derived:
        console.print(_derived(ledger))
