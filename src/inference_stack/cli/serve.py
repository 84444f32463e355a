"""`istack serve` and `istack node`: check, start the first worker, then import the rest and hand over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from inference_stack.config.tree import Config
from inference_stack.core.errors import invalid

if TYPE_CHECKING:
    from inference_stack.node.spawn import Spawned


def spawn_ahead(config: Config, command: str) -> Spawned:
    """The first worker, which imports torch while we import the rest. Raises `InferenceError` for settings that cannot be."""
    if not config.models:
        hint = f"no model is named; for example: istack {command} smollm2"
        raise invalid(hint, param="models", code="invalid_config")
    node = config.node
    if node.preset + node.preset_model and not node.simulated:
        raise invalid("presets are for --engine simulated", param="node.preset", code="invalid_config")
    from inference_stack.config.derive import chosen_device, on_gpu
    from inference_stack.node.devices import core_sets
    from inference_stack.node.spawn import spawn

    on_cores = not node.simulated and not on_gpu(chosen_device(config.engine.device))
    return spawn(node.engine, core_sets(node.workers, node.threads, pinned=on_cores)[0].cores)


def serve_models(config: Config) -> None:
    """Serve until interrupted. Raises `InferenceError` when it cannot."""
    worker = spawn_ahead(config, "serve")
    import uvloop
    from rich.console import Console

    from inference_stack.cli.compose import serve

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config, Console(stderr=True), worker))


def serve_node(config: Config) -> None:
    """Be a node until a signal ends it. Raises `InferenceError` when it cannot."""
    worker = spawn_ahead(config, "node")
    import uvloop
    from rich.console import Console

    from inference_stack.cli.node import serve

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config, Console(stderr=True), worker))
