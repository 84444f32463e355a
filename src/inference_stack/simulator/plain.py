"""A fleet from a plain mapping, as a YAML file has it.

    nodes      how many of which cost model, and their KV memory; a list for unlike ones
    engine     the engine's own settings, by their own names
    gateways, router, links, faults, workload, seed, interval

Names of settings and their ranges live here and in the parts that are asked; what they do, in the classes they end up in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from inference_stack.config.sizes import parse_size
from inference_stack.core.kv_spec import DTYPE_BYTES, KvGroupSpec
from inference_stack.scheduler.limits import SchedulerLimits
from inference_stack.simulator.api import CostModel
from inference_stack.simulator.cost import cost_from
from inference_stack.simulator.cost.roofline import RooflineCost
from inference_stack.simulator.faults import faults_from
from inference_stack.simulator.fleet import FleetSpec, NodeSpec
from inference_stack.simulator.line import LinkSettings
from inference_stack.simulator.workloads import workload_from
from inference_stack.simulator.workloads.reader import Reader

LONGEST: Final = 32_768
"""Tokens of a sequence, where nothing else is said."""


def fleet_from(plain: Mapping[str, Any], base: Path | None = None, origin: str = "simulation") -> FleetSpec:
    """The fleet that a mapping describes. Files are relative to `base`. Raises `InferenceError` naming what is wrong."""
    reader = Reader(plain, origin)
    seed = reader.whole("seed", 0)
    kinds = _nodes(reader, base)
    groups = _groups(reader, [cost for _, cost, _, _ in kinds])
    engine, router, links = reader.section("engine"), reader.section("router"), reader.section("links")
    faults, workload = reader.raw("faults"), reader.raw("workload")
    if workload is None:
        raise reader.error("workload", "is needed")
    spec = FleetSpec(
        nodes=tuple(
            NodeSpec(
                count=count,
                cost=cost,
                kv_bytes=_kv_bytes(reader, cost, memory),
                dollars_per_hour=_dollars(cost, dollars),
            )
            for count, cost, memory, dollars in kinds
        ),
        groups=groups,
        limits=_limits(engine),
        depth=engine.whole("pipeline_depth", 1),
        prefix_cache=engine.flag("prefix_cache", True),
        affinity=router.flag("affinity", True),
        max_queue=router.whole("max_queue", 1 << 20),
        recovery_tokens=router.whole("recovery_tokens", 16384, low=1),
        gateways=reader.whole("gateways", 1, low=1),
        link=LinkSettings(
            latency=links.number("latency_ms", 0.2) / 1000,
            silence=links.number("silence_seconds", 2.0, above=0.0),
            report=links.number("report_seconds", 0.25),
            orphans=links.number("orphan_seconds", 30.0),
        ),
        faults=None if faults is None else faults_from(faults),
        workload=workload_from(workload, base=base, seed=seed),
        interval=reader.number("interval", 10.0, above=0.0),
        checks=reader.number("checks", 0.0),
        seed=seed,
        config=dict(plain),
    )
    for part in (engine, router, links, reader):
        part.close()
    return spec


def _nodes(reader: Reader, base: Path | None) -> list[tuple[int, CostModel, str, float | None]]:
    """(count, cost model, KV memory, dollars an hour) of each kind of node."""
    parts = reader.one_or_more("nodes")
    if not parts:
        raise reader.error("nodes", "is needed")
    found = []
    for part in parts:
        count, memory = part.whole("count", 1, low=1), part.text("kv_memory", "auto")
        dollars = part.number("dollars_per_hour") if part.has("dollars_per_hour") else None
        cost = part.raw("cost")
        if cost is None:
            raise part.error("cost", "is needed: how long steps take there")
        part.close()
        found.append((count, cost_from(cost, base), memory, dollars))
    return found


def _groups(reader: Reader, costs: list[CostModel]) -> tuple[KvGroupSpec, ...]:
    """How the model's KV is shaped: said by the presets, or under `kv`. All nodes serve one model."""
    known = {cost.kv_groups for cost in costs if isinstance(cost, RooflineCost)}
    if reader.has("kv"):
        part = reader.section("kv")
        spec = KvGroupSpec(
            name="full",
            layers=tuple(range(part.whole("layers", low=1))),
            kv_heads=part.whole("kv_heads", low=1),
            head_dim=part.whole("head_dim", low=1),
            dtype=part.choice("dtype", DTYPE_BYTES, "float16"),
        )
        part.close()
        return (spec,)
    if len(known) != 1:
        raise reader.error(
            "kv", "is needed: layers, kv_heads and head_dim of the model" if not known else "nodes differ in it"
        )
    return known.pop()


def _limits(engine: Reader) -> SchedulerLimits:
    target = engine.number("itl_target_ms", 0.0) / 1000
    return SchedulerLimits(
        max_running=engine.whole("max_running", 64, low=1),
        max_batch_tokens=engine.whole("max_batch_tokens", 512, low=1),
        max_model_len=engine.whole("max_model_len", 0) or LONGEST,
        itl_target=target or None,
    )


def _kv_bytes(reader: Reader, cost: CostModel, memory: str) -> int:
    if memory != "auto":
        try:
            return parse_size(memory)
        except ValueError as error:
            raise reader.error("nodes.kv_memory", str(error)) from None
    if not isinstance(cost, RooflineCost):
        raise reader.error("nodes.kv_memory", "is needed where the device is not a preset, such as 2GiB")
    return cost.kv_bytes()


def _dollars(cost: CostModel, given: float | None) -> float | None:
    return cost.dollars_per_hour if given is None and isinstance(cost, RooflineCost) else given
