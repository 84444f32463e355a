"""Worlds of scheduler tests whose schedulers are recorded."""

from __future__ import annotations

from typing import Any

from inference_stack.scheduler.recording import RecordedScheduler, Recorder
from inference_stack.scheduler.records import Record
from tests.scheduler.world import World


def recorded_world(records: list[Record], tokens: bool = False, ordering: str = "priority", **shape: Any) -> World:
    """A world as `World.build` makes it, whose schedulers append to `records`."""
    world = World.build(**shape)
    recorder = Recorder(records.append, world.slabs.geometry, b"salt", tokens)
    for model in world.models:
        old = model.scheduler
        model.scheduler = RecordedScheduler(old.limits, old.kv, recorder, ordering=ordering)
    return world
