"""`istack replay`: a recording's inputs on the production scheduler again, and where it decides otherwise.

Reads the file, prints what came of it. What is compared is the simulator's business.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from inference_stack.simulator.replay import Difference, Verdict

MOST_ROWS: Final = 20
"""Of a difference that are shown."""
ENDINGS: Final = {
    "closed": "",
    "full": "the recording ends where it reached its size bound (engine.record_mb)",
    "slow": "the recording ends early: its disk was too slow",
    "failed": "the recording ends early: it could not be written",
    None: "the recording is cut off (or still being written): what is there was replayed",
}
"""What to say of why a recording ends."""


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What a worker recorded: see engine.record.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Replay with this changed: max_running, max_batch_tokens, max_model_len, itl_target_ms, ordering (priority "
            "or fcfs), prefix_cache, kv_slabs.",
        ),
    ] = None,
    ordering: Annotated[
        str, typer.Option(help="The same as --set ordering=…: priority or fcfs.", show_default=False)
    ] = "",
    count: Annotated[
        bool, typer.Option("--count", help="Go on after the first difference, and count how many plans differ.")
    ] = False,
) -> None:
    """Replay recorded scheduling: exit status 0 when every plan and eviction is identical, 1 at a difference."""
    from rich.console import Console

    from inference_stack.scheduler.records import KINDS
    from inference_stack.simulator.rebuilt import parse_changes
    from inference_stack.simulator.replay import replay as replayed
    from inference_stack.wire.journal import JournalReader

    console = Console(highlight=False)
    changes = parse_changes([*(settings or ()), *([f"ordering={ordering}"] if ordering else ())])
    journal = JournalReader(file, KINDS)
    verdict = replayed(journal, changes, count)
    if verdict.identical or count:
        console.print(_totals(verdict, count), soft_wrap=True)
        if ENDINGS[journal.cause]:
            console.print(f"note: {ENDINGS[journal.cause]}", soft_wrap=True)
    if verdict.first is not None:
        _show(verdict.first, console)
        raise typer.Exit(1)


def _totals(verdict: Verdict, count: bool) -> str:
    """The counters, in a line or two."""
    of = f"{verdict.plans} plans for {verdict.requests} requests over {verdict.seconds:.1f} s"
    if verdict.identical:
        return f"{of}: all identical, as are {verdict.evicted[0]} evicted blocks and {verdict.ended[0]} endings"
    evicted, ended = (f"{before} recorded, {after} replayed" for before, after in (verdict.evicted, verdict.ended))
    return f"{of}: {verdict.plans_that_differ} plans differ\nevicted blocks: {evicted}\nended requests: {ended}"


def _show(difference: Difference, console: Console) -> None:
    """Both decisions side by side."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    where = f"plan {difference.plan} of {difference.model}, {difference.seconds:.3f} s after the first"
    console.print(f"first difference: {difference.what}, at {where}", soft_wrap=True)
    table = Table(box=SIMPLE_HEAD)
    for title in ("", "recorded", "replayed"):
        table.add_column(title, overflow="fold")
    for row in difference.rows[:MOST_ROWS]:
        table.add_row(*map(Text, row))
    console.print(table)
    more = len(difference.rows) - MOST_ROWS
    if more > 0:
        console.print(f"{more} more differ")
    if difference.alike:
        console.print(f"{difference.alike} more are the same")
