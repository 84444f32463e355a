"""Loading and unloading models while the node serves: worker by worker, and back again when one cannot.

evacuate slot ─▶ its worker restarts with the new models ─▶ ready: the next slot
                                                        └─▶ failed: every slot changed so far goes back to the old ones
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from inference_stack.artifacts.catalogue import cache_folder
from inference_stack.artifacts.resolve import resolve
from inference_stack.config.tree import Config, ModelEntry
from inference_stack.core.errors import ErrorInfo, InferenceError, invalid, model_not_found
from inference_stack.node.placement import Slot

log = logging.getLogger(__name__)

Entries = tuple[ModelEntry, ...]


def _found(model: str, name: str, cache_dir: str, load_format: str) -> ModelEntry:
    """The model at its place on disk, fetched if need be. Raises `InferenceError`."""
    files = resolve(model, cache_folder(cache_dir), load_format=load_format)
    return ModelEntry(model=str(files.weights[0] if files.kind == "gguf" else files.root), name=name or files.name)


class ModelChanges:
    """Owns which models the node's workers shall serve. Changes are made one after another, in the order they are asked for.

    `evacuate` moves everything off a slot. What cannot be done is told as the reason of the workers' states.
    """

    def __init__(self, config: Config, slots: Sequence[Slot], evacuate: Callable[[Slot, str], None]) -> None:
        self._entries: Entries = config.models
        self._cache_dir, self._load_format = config.cache_dir, config.engine.load_format
        self._slots = slots
        self._evacuate = evacuate
        self._changing = asyncio.Lock()

    async def load(self, model: str, name: str) -> None:
        """Serve this model too; one that is served under the same name is replaced."""
        async with self._changing:
            try:
                entry = await asyncio.to_thread(_found, model, name, self._cache_dir, self._load_format)
            except InferenceError as error:
                self._refuse(f"cannot load {model}: {error.info.message}")
                return
            others = tuple(known for known in self._entries if known.name != entry.name)
            await self._change((*others, entry), f"loading {entry.name}")

    async def unload(self, name: str) -> None:
        """Serve this model no longer. The last one stays: a worker without a model is of no use."""
        async with self._changing:
            others = tuple(known for known in self._entries if known.name != name)
            if len(others) == len(self._entries):
                self._refuse(f"cannot unload {name}: {model_not_found(name).info.message}")
            elif not others:
                self._refuse(f"cannot unload {name}: {invalid('it is the only model.').info.message}")
            else:
                await self._change(others, f"unloading {name}")

    async def _change(self, entries: Entries, what: str) -> None:
        for number, slot in enumerate(self._slots):
            failure = await self._restart(slot, entries, what)
            if failure is not None:
                for changed in self._slots[: number + 1]:
                    await self._restart(changed, self._entries, f"back after {what}")
                    self._open(changed)
                self._refuse(f"{what} failed: {failure.message}")
                return
            self._open(slot)
        self._entries = entries
        log.info("%s: done", what)

    async def _restart(self, slot: Slot, entries: Entries, what: str) -> ErrorInfo | None:
        """One worker, emptied, with other models; why it cannot serve them."""
        slot.accepting = False
        self._evacuate(slot, what)
        return await slot.supervisor.serve(entries)

    def _open(self, slot: Slot) -> None:
        """It takes requests again; a worker that failed for good counts as such from now on."""
        slot.accepting = True
        slot.supervisor.note(slot.supervisor.condition.reason)

    def _refuse(self, reason: str) -> None:
        log.error("%s", reason)
        for slot in self._slots:
            slot.supervisor.note(reason)
