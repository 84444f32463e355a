"""A result file as Markdown tables and plots for the documentation.

Speed-ups in the plots are turned so that more is better: theirs / ours for times. Plots need matplotlib; tables need nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.peers.ratios import COSTS, RATES

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

COLUMNS = {
    "decode_tokens_per_s": "one stream, tokens/s",
    "ttft_ms": "TTFT of 1,000 tokens, ms",
    "warm_ttft_ms": "TTFT, prefix cached, ms",
    "tokens_per_s_8": "8 at once, tokens/s",
    "tokens_per_s_32": "32 at once, tokens/s",
    "pss_mb": "memory, MB",
}

Result = Mapping[str, Any]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def amounts(result: Result) -> str:
    """Every server's medians, lower quartiles in brackets; one that failed says so."""
    rows = []
    for server in result["servers"].values():
        found = server["summary"]
        cells = [_amount(found[metric]) if metric in found else "–" for metric in COLUMNS]
        rows.append([server["title"] + (" (failed)" if server["error"] else ""), *cells])
    return table(["median (lower quartile)", *COLUMNS.values()], rows)


def _amount(found: Mapping[str, float]) -> str:
    return f"{found['median']:,.0f} ({found['lower_quartile']:,.0f})"


def relations(result: Result) -> str:
    """Ours / theirs from the medians, the median of the paired ratios in brackets."""
    rows = [
        [
            result["servers"][name]["title"],
            *(_relation(found[metric]) if metric in found else "–" for metric in COLUMNS),
        ]
        for name, found in result["ratios"].items()
    ]
    return table(["ours / theirs (paired)", *COLUMNS.values()], rows)


def _relation(found: Mapping[str, float]) -> str:
    return f"{found['of_medians']:.2f} ({found['paired_median']:.2f})"


def targets(result: Result) -> str:
    """Every target, what was reached and whether it holds."""
    rows = []
    for name, entries in result["targets"].items():
        for entry in entries:
            sign = "≥" if entry["metric"] in RATES else "≤"
            reached = entry.get("ratio", entry.get("amount"))
            label = COLUMNS.get(entry["metric"], entry["metric"])
            rows.append([name, label, f"{sign} {entry['bound']:g}", f"{reached:.3g}", "yes" if entry["met"] else "no"])
    return table(["against", "metric", "target", "reached", "held"], rows)


def conditions(result: Result) -> str:
    """One paragraph: machine, versions, and what went wrong."""
    machine, servers = result["machine"], result["servers"]
    flags = ", ".join(machine["flags"])
    text = (
        f"{machine['date'][:10]}, {machine['cpu']} ({machine['cores']} cores; {flags}), {result['model']}, "
        f"{result['repeats']} repetitions, load average {machine['load_average'][0]:.2f} at the start, "
        f"commit {machine['commit'] or 'unknown'}."
    )
    if result["quick"]:
        text += " **A quick run: it shows that everything works, not how fast it is.**"
    problems = [
        f"- {server['title']}: {server['error'].splitlines()[0]}" for server in servers.values() if server["error"]
    ]
    return "\n\n".join([text, *(["Did not take part to the end:\n" + "\n".join(problems)] if problems else [])])


def markdown(result: Result, images: str = "images") -> str:
    """The whole results section."""
    parts = [conditions(result), amounts(result)]
    if result.get("ratios"):
        plots = f"![Speed of ours over each peer]({images}/peers-ratios.png)"
        parts += [plots, relations(result), targets(result)]
    return "\n\n".join([*parts, f"![Every server's medians]({images}/peers-amounts.png)"])


def splice(page: str, section: str) -> str:
    """The page with what lies between the two marks replaced. Raises `ValueError` if a mark is missing."""
    before, found, rest = page.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{after}"


def speedups(result: Result) -> dict[str, dict[str, float]]:
    """How many times as fast (or as small) ours is, by peer and metric."""
    return {
        name: {
            metric: 1 / values["of_medians"] if metric in COSTS else values["of_medians"]
            for metric, values in found.items()
            if metric in COLUMNS
        }
        for name, found in result["ratios"].items()
    }


def write(result: Result, docs: Path) -> None:
    """Plots into `docs/images`, tables into `docs/benchmarks.md` between its marks."""
    from bench.peers import plots

    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    plots.amounts(result, COLUMNS, images / "peers-amounts.png")
    if result.get("ratios"):
        plots.ratios(result, speedups(result), COLUMNS, images / "peers-ratios.png")
    page = docs / "benchmarks.md"
    page.write_text(splice(page.read_text(), markdown(result)))
