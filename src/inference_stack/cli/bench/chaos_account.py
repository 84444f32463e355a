"""The account of a run: what was broken, whom it hit, what clients saw of it, and which promises held. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from inference_stack.cli.bench.chaos_faults import FAULTS, SILENT
from inference_stack.cli.bench.chaos_spec import Fault, Plan, Record
from inference_stack.cli.bench.summary import percentile

KILLED_WORKER_SECONDS = 1.0
SILENT_NODE_SECONDS = 2.0
"""Bars of the 99th percentile of gaps."""
RESTART_GRACE_SECONDS = 0.5
"""A request that was sent this shortly before a gateway was told to end may have come after."""
ROLES = ("worker", "node", "gateway", "link")


def excused(record: Record, faults: Sequence[Fault], harmless: Sequence[str]) -> bool:
    """Whether a stock client's failure is its gateway's: it was struck, or not back yet, while the request ran. A gateway that is
    restarted politely must still end what it had begun."""
    for fault in faults:
        if fault.role != "gateway" or fault.victim != record.gateway or fault.kind in harmless:
            continue
        polite = fault.kind == "gateway/restart"
        begins = fault.begin - RESTART_GRACE_SECONDS
        if polite and begins <= record.begin <= fault.again:
            return True
        if not polite and record.begin <= fault.again and record.end >= fault.begin:
            return True
    return False


def gaps(fault: Fault) -> list[float]:
    """The longest silence of every stream that it hit, from its begin until it was undone. Answers given at once have none."""
    end = max(fault.end, fault.begin + 1.0)
    return [record.gap(fault.begin, end) for record in fault.hit if record.case.streamed]


def _spread(seconds: Sequence[float]) -> dict[str, float] | None:
    ordered = sorted(seconds)
    if not ordered:
        return None
    return {"p50": percentile(ordered, 50), "p99": percentile(ordered, 99), "max": ordered[-1]}


def _kinds(faults: Sequence[Fault]) -> dict[str, Any]:
    """By kind: how many, how many streams they hit, and the gaps."""
    found: dict[str, Any] = {}
    for kind in FAULTS:
        mine = [fault for fault in faults if fault.kind == kind]
        if mine:
            seen = [gap for fault in mine for gap in gaps(fault)]
            streams = [len(fault.hit) for fault in mine]
            hit = sum(count > 0 for count in streams)
            found[kind] = {"faults": len(mine), "hit": hit, "streams": sum(streams), "gap_s": _spread(seen)}
    return found


def _requests(records: Sequence[Record], faults: Sequence[Fault], harmless: Sequence[str]) -> dict[str, Any]:
    ended = [record for record in records if record.end]
    failed = [record for record in ended if record.error]
    stock = [record for record in failed if not record.resuming]
    with_gateway = [record for record in stock if excused(record, faults, harmless)]
    return {
        "ended": len(ended),
        "resuming": sum(record.resuming for record in ended),
        "by_kind": dict(Counter(record.case.kind for record in ended)),
        "struck": len({record.number for fault in faults for record in fault.hit}),
        "sent_again": sum(record.sent > 1 for record in records),
        "resumes": sum(record.resumes for record in records),
        "failed_resuming": len(failed) - len(stock),
        "failed_stock": len(stock) - len(with_gateway),
        "failed_stock_with_their_gateway": len(with_gateway),
        "wrong_bytes": sum(bool(record.wrong) for record in ended),
        "unended": len(records) - len(ended),
    }


def _troubles(records: Sequence[Record], faults: Sequence[Fault], harmless: Sequence[str]) -> list[dict[str, Any]]:
    """What went wrong and should not have, with the faults that may have to do with it."""
    found = []
    for record in records:
        bad = record.error and (record.resuming or not excused(record, faults, harmless))
        if bad or record.wrong:
            during = [fault.number for fault in faults if fault.begin <= record.end and fault.end >= record.begin]
            found.append(
                {
                    "request": record.number,
                    "id": record.id,
                    "kind": record.case.kind,
                    "client": "resuming" if record.resuming else "stock",
                    "gateway": record.gateway,
                    "resumes": record.resumes,
                    "seconds": round(record.end - record.begin, 3),
                    "error": record.error,
                    "wrong": record.wrong,
                    "faults": during,
                }
            )
    return found


def promises(requests: dict[str, Any], kinds: dict[str, Any], identical: float) -> dict[str, bool]:
    """What was promised, and whether it held. Gaps are judged where there were any."""

    def within(kind: str, bar: float) -> bool:
        found = kinds.get(kind, {}).get("gap_s")
        return found is None or found["p99"] <= bar

    return {
        "no resuming client failed": not requests["failed_resuming"],
        "no stock client failed whose gateway was left alone": not requests["failed_stock"],
        "no wrong bytes": not requests["wrong_bytes"],
        "all continuations identical": identical == 100.0,
        "every request ended": not requests["unended"],
        f"killed worker: gap p99 within {KILLED_WORKER_SECONDS:g} s": within("worker/kill", KILLED_WORKER_SECONDS),
        f"silent node: gap p99 within {SILENT_NODE_SECONDS:g} s": all(
            within(kind, SILENT_NODE_SECONDS) for kind in SILENT
        ),
    }


def account(
    plan: Plan,
    records: Sequence[Record],
    faults: Sequence[Fault],
    counts: dict[str, int],
    seconds: float,
    missed: int,
    harmless: Sequence[str],
) -> dict[str, Any]:
    """Everything there is to say, ready for JSON. `counts` are the gateways' own: moves, mismatches, resumes."""
    kinds, requests = _kinds(faults), _requests(records, faults, harmless)
    identical = 100.0 * (1 - counts["mismatches"] / counts["moves"]) if counts["moves"] else 100.0
    return {
        "plan": asdict(plan),
        "seconds": seconds,
        "faults": sum(bool(fault.hit) for fault in faults),
        "faults_without_streams": missed,
        "kinds": kinds,
        "requests": requests,
        "moves": counts["moves"],
        "resumes": counts["resumes"],
        "identical_percent": identical,
        "promises": promises(requests, kinds, identical),
        "troubles": _troubles(records, faults, harmless),
        "log": [_logged(fault, faults[0].begin) for fault in faults],
    }


def _logged(fault: Fault, origin: float) -> dict[str, Any]:
    return {
        "number": fault.number,
        "at": round(fault.begin - origin, 3),
        "seconds": round(fault.end - fault.begin, 3),
        "kind": fault.kind,
        "victim": fault.victim,
        "streams": len(fault.hit),
        "gap_s": _spread(gaps(fault)),
        "slowest": _slowest(fault),
    }


def _slowest(fault: Fault) -> dict[str, Any] | None:
    """The stream with the longest gap, to be looked for in logs."""
    end = max(fault.end, fault.begin + 1.0)
    streams = [record for record in fault.hit if record.case.streamed]
    if not streams:
        return None
    record = max(streams, key=lambda one: one.gap(fault.begin, end))
    client = "resuming" if record.resuming else "stock"
    return {"id": record.id, "kind": record.case.kind, "client": client, "sent": record.sent, "resumes": record.resumes}


def show(result: dict[str, Any], console: Console) -> None:
    """The account for people."""
    table = Table("fault", "times", "streams hit", "gap p50 s", "p99", "max", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, row in result["kinds"].items():
        spread = row["gap_s"] or {}
        seconds = (f"{spread[name]:.2f}" if name in spread else "" for name in ("p50", "p99", "max"))
        table.add_row(kind, str(row["faults"]), str(row["streams"]), *seconds)
    console.print(table)
    requests = result["requests"]
    console.print(
        f"{requests['ended']} requests in {result['seconds']:.0f} s, {requests['struck']} struck by {result['faults']} faults; "
        f"{result['moves']} moves, {result['resumes']} resumes, {result['identical_percent']:.0f} % identical"
    )
    console.print(
        f"failed: {requests['failed_resuming']} resuming, {requests['failed_stock']} stock "
        f"(and {requests['failed_stock_with_their_gateway']} with their gateway); wrong bytes: {requests['wrong_bytes']}"
    )
    for trouble in result["troubles"][:20]:
        console.print(f"  {trouble}", style="red", highlight=False)
    for promise, held in result["promises"].items():
        console.print(f"[{'green' if held else 'red'}]{'held  ' if held else 'BROKEN'}[/] {promise}")
