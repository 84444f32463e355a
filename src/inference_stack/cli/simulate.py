"""`istack simulate`: a fleet on virtual time, as a page for people and numbers for programs.

Reads the file, shows progress, writes reports. What happens meanwhile is the simulator's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inference_stack.core.errors import SERVER_ERROR, ErrorInfo, InferenceError, invalid

if TYPE_CHECKING:
    from rich.console import Console

    from inference_stack.simulator.api import Run
    from inference_stack.simulator.fleet import FleetSpec


def simulate(
    config: Annotated[Path, typer.Argument(metavar="FILE", help="YAML that describes fleet and workload.")],
    report: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("simulation.html"),
    output: Annotated[
        Path | None, typer.Option("--json", help="Also write the numbers here.", show_default=False)
    ] = None,
    until: Annotated[
        float, typer.Option(min=0.0, help="Stop after so many simulated seconds; 0 runs until everything has ended.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the file's.", show_default=False)] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Run this one too, and report the differences.", show_default=False),
    ] = None,
    find: Annotated[
        str,
        typer.Option(
            metavar="SLO",
            help="Find the fewest nodes of the first kind that meet this, such as ttft_p95=1.5,itl_p95=0.05,share=0.99.",
        ),
    ] = "",
    most: Annotated[int, typer.Option(min=1, help="With --find: try no more nodes than this.")] = 1024,
) -> None:
    """Simulate a fleet: the production scheduler on a virtual clock. Ctrl-C gives the partial report."""
    from rich.console import Console

    console = Console(stderr=True)
    if find and compare:
        raise invalid("--find and --compare are two questions: ask one at a time", param="find")
    asked = [read_spec(path, seed) for path in (config, compare) if path is not None]
    if find:
        raise typer.Exit(0 if _find(asked[0], find, most, report, output, console) else 1)
    runs = [run_shown(spec, until or float("inf"), console) for spec in asked]
    if compare is None:
        _write(runs[0], report, output, console)
    else:
        _write_comparison((config, compare), runs, report, output, console)


def read_spec(path: Path, seed: int | None) -> FleetSpec:
    """The fleet in a file. Raises `InferenceError` for what is wrong with it."""
    import yaml

    from inference_stack.simulator.plain import fleet_from

    try:
        plain = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise invalid(f"{path}: {error}", param="config") from error
    if not isinstance(plain, dict):
        raise invalid(f"{path}: expected settings by name", param="config")
    return fleet_from(plain | ({} if seed is None else {"seed": seed}), path.parent, str(path))


def run_shown(spec: FleetSpec, until: float, console: Console) -> Run:
    """The run, with the virtual time shown meanwhile."""
    from inference_stack.simulator.clients import Broken
    from inference_stack.simulator.fleet import Fleet

    with _progress(console) as tell:
        fleet = Fleet(spec, lambda now: tell(now, len(fleet.clients.streams), len(fleet.ledger.outcomes)))
        try:
            return fleet.run(until)
        except Broken as error:
            said = f"a promise was broken after {_clock(fleet.loop.now())}, which is a bug of ours: {error}"
            raise InferenceError(
                ErrorInfo(message=said, type=SERVER_ERROR, code="promise_broken", status=500)
            ) from error


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[float, int, int], None]]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    text = TextColumn("{task.fields[at]} simulated · {task.fields[came]} requests came, {task.fields[open]} open ·")
    with Progress(
        SpinnerColumn(), text, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", at="0:00:00", came=0, open=0)
        yield lambda now, open_, came: bar.update(task, at=_clock(now), came=came, open=open_)


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def _write(run: Run, report: Path, output: Path | None, console: Console) -> None:
    from inference_stack.simulator.report.html import render
    from inference_stack.simulator.report.numbers import summarise
    from inference_stack.simulator.report.saved import write_json

    summary = summarise(run)
    report.write_text(render(run, summary), encoding="utf-8")
    if output is not None:
        write_json(run, summary, output)
    _say(summary, console)
    console.print(f"report: {report}")


def _write_comparison(
    paths: tuple[Path, Path], runs: list[Run], report: Path, output: Path | None, console: Console
) -> None:
    from inference_stack.simulator.report.compare import render_comparison
    from inference_stack.simulator.report.numbers import summarise
    from inference_stack.simulator.report.saved import report_of, write_json

    summaries = [summarise(run) for run in runs]
    names = [path.stem for path in paths]
    if names[0] == names[1]:
        names = [str(path) for path in paths]
    named = {name: report_of(run, summary) for name, run, summary in zip(names, runs, summaries, strict=True)}
    report.write_text(render_comparison(named), encoding="utf-8")
    for name, run, summary in zip(names, runs, summaries, strict=True):
        if output is not None:
            write_json(run, summary, output.with_name(f"{output.stem}-{Path(name).stem}{output.suffix}"))
        console.print(f"[bold]{name}[/bold]")
        _say(summary, console)
    console.print(f"report: {report}")


def _say(summary: dict[str, Any], console: Console) -> None:
    """The headline numbers."""
    latency, requests = summary["latency"], summary["requests"]
    ended = requests["length"] + requests["stop"]
    console.print(
        f"{requests['total']} requests in {_clock(summary['seconds'])}: {ended} ended well, {requests['refused']} refused, "
        f"{requests['error']} failed, {requests['open']} open"
    )
    for name in ("ttft", "itl", "e2e"):
        numbers = latency[name]
        shown = ", ".join(f"{key} {_seconds(numbers[key])}" for key in ("p50", "p95", "p99"))
        console.print(f"{name.upper() if name != 'e2e' else name}: {shown}")
    rate, use = summary["throughput"]["output_tokens_per_second"], summary.get("utilisation")
    console.print(f"{_number(rate)} output tokens/s" + ("" if use is None else f", devices busy {_number(use, '.0%')}"))


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def _number(value: Any, form: str = ",.0f") -> str:
    return format(value, form) if isinstance(value, int | float) else "–"


def _find(spec: FleetSpec, text: str, most: int, report: Path, output: Path | None, console: Console) -> bool:
    """Tries fleets, says what each came to, and writes the report of the answer. False when there is none."""
    from inference_stack.simulator.find import Trial, parse_slo, search, sized, smallest
    from inference_stack.simulator.report.numbers import summarise

    slo, trials, runs = parse_slo(text), list[Trial](), dict[int, Any]()

    def measure(nodes: int) -> dict[str, Any]:
        runs[nodes] = run = run_shown(sized(spec, nodes), float("inf"), console)
        if not run.complete:
            raise KeyboardInterrupt
        return summarise(run)

    for trial in search(measure, slo, most):
        trials.append(trial)
        console.print(f"{_nodes(trial.nodes)}: " + ("meets it" if trial.meets else "; ".join(trial.broken)))
    answer = smallest(trials)
    if answer is None:
        console.print(f"no fleet of up to {_nodes(most)} meets it")
        return False
    console.print(f"[bold]{_nodes(answer.nodes)}[/bold]")
    _write(runs[answer.nodes], report, output, console)
    return True


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"
