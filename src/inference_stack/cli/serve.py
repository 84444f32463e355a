"""`istack serve`: hand the configuration to the composition of gateway, node and worker."""

from __future__ import annotations

import asyncio

from inference_stack.config.tree import Config
from inference_stack.core.errors import invalid


def serve_models(config: Config) -> None:
    """Serve until interrupted. Raises `InferenceError` when it cannot."""
    if not config.models:
        raise invalid("no model is named; for example: istack serve smollm2", param="models", code="invalid_config")
    if config.node.preset + config.node.preset_model and not config.node.simulated:
        raise invalid("presets are for --engine simulated", param="node.preset", code="invalid_config")
    from inference_stack.node.spawn import spawn

    worker = spawn(config.node.engine)  # it imports torch while we import everything else
    import uvloop
    from rich.console import Console

    from inference_stack.cli.compose import serve

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config, Console(stderr=True), worker))
