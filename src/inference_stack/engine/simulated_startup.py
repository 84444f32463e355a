"""From a configuration to a simulated engine: production scheduler and KV bookkeeping before a device that only takes time.

    preset device + dimensions of a model ─▶ cost model, KV memory          the served model ─▶ vocabulary, ends

No weights are read and no torch is imported. A start is quick: how long the preset's device would load is not slept.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from inference_stack.artifacts.catalogue import cache_folder
from inference_stack.artifacts.resolve import resolve
from inference_stack.artifacts.vocabulary import vocabulary_digest
from inference_stack.config.derive import settled
from inference_stack.config.sizes import parse_size
from inference_stack.config.tree import Config, ModelEntry
from inference_stack.core.errors import InferenceError, invalid
from inference_stack.core.fleet import ModelInfo
from inference_stack.core.seams import Clock
from inference_stack.engine.core import EngineCore, Instance
from inference_stack.engine.kv_events import KvFeeds, events_capacity
from inference_stack.engine.memory import arena_geometry
from inference_stack.engine.recording import Schedulers
from inference_stack.engine.simulated import SimulatedRunner, Timeline
from inference_stack.engine.words import Words, describe
from inference_stack.kv.manager import KvManager
from inference_stack.kv.slabs import ArenaGeometry, SlabPool
from inference_stack.models.config import ModelConfig
from inference_stack.scheduler.limits import SchedulerLimits
from inference_stack.simulator.cost.architectures import ARCHITECTURES, WEIGHT_FORMATS, Architecture
from inference_stack.simulator.cost.hardware import HARDWARE, Hardware
from inference_stack.simulator.cost.roofline import RooflineCost
from inference_stack.simulator.cost.speed import timed
from inference_stack.telemetry.startup import Account
from inference_stack.wire.messages import Ready

WEIGHTS = "bf16"
"""The form of the weights that a preset's times are for."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """A model as the simulated device has it. `dimensions` and `cost` may be another model's than the one that gives the words."""

    name: str
    config: ModelConfig
    words: Words
    vocabulary: str
    dimensions: Architecture
    cost: RooflineCost


class SimulatedStartup:
    """Builds the engine of one simulated device; `account` goes on from what the process did before."""

    def __init__(
        self, config: Config, clock: Clock, account: Account, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._config = settled(config)
        self._engine = self._config.engine
        self._clock = clock
        self._account = account
        self._timeline = Timeline(clock, sleep)

    def run(self) -> tuple[EngineCore, Ready]:
        """Set everything up. Raises `InferenceError` for a preset that does not exist, and what cannot be served."""
        device = preset_device(self._config.node.preset_name)
        with self._account.stage("vocabularies"):
            models = [self._describe(entry, device) for entry in self._config.models]
        with self._account.stage("KV bookkeeping"):
            geometry = self._geometry(models)
            slabs, schedulers = SlabPool(geometry), Schedulers(self._engine, geometry)
            served = [self._serve(model, slabs, schedulers) for model in models]
        instances = [instance for instance, _ in served]
        feeds = KvFeeds(self._config, instances, self._clock)
        closed = (feeds.close, schedulers.close)
        core = EngineCore(instances, self._clock, self._engine.pipeline_depth, closed, feeds.flush)
        infos = tuple(info for _, info in served)
        self._tell(device, models, infos, geometry)
        self._account.derived |= schedulers.told | feeds.told
        return core, Ready(models=infos, ledger=self._account.close(), kv_memory=geometry.arena_bytes)

    def _describe(self, entry: ModelEntry, device: Hardware) -> Simulated:
        folder, load_format = cache_folder(self._config.cache_dir), self._engine.load_format
        files = resolve(entry.model, folder, offline=True, load_format=load_format)
        config, words = describe(files)
        name, preset = entry.name or files.name, self._config.node.preset_model
        dimensions = preset_model(preset) if preset else own_dimensions(name, config)
        cost = RooflineCost(device, dimensions, WEIGHT_FORMATS[WEIGHTS], self._engine.kv_dtype)
        return Simulated(name, config, words, vocabulary_digest(files), dimensions, cost)

    def _geometry(self, models: Sequence[Simulated]) -> ArenaGeometry:
        """KV memory as it was asked for, or all that the device has beside the weights of all its models."""
        groups = [group for model in models for group in model.cost.kv_groups]
        setting = self._engine.kv_memory
        left = models[0].cost.kv_bytes() - sum(model.cost.weight_bytes for model in models[1:])
        geometry, remark = arena_geometry(parse_size(setting) if setting != "auto" else max(0, left), groups)
        self._account.derived["KV slabs"] = remark
        return geometry

    def _serve(self, model: Simulated, slabs: SlabPool, schedulers: Schedulers) -> tuple[Instance, ModelInfo]:
        kv = KvManager(
            model.name,
            model.cost.kv_groups,
            slabs,
            prefix_cache=self._engine.prefix_cache,
            events_capacity=events_capacity(self._engine),
        )
        wanted = self._engine.max_model_len
        longest = kv.capacity_tokens(min(wanted or model.dimensions.context, model.dimensions.context))
        rows, step_time = self._engine.max_running, timed(model.cost)
        scheduler = schedulers.make(self._limits(model, longest), kv, step_time)
        runner = SimulatedRunner(model.cost, model.words, rows, self._timeline)
        info = ModelInfo(
            name=model.name,
            architecture=model.config.architecture,
            numerics_id=self._numerics_id(model),
            max_model_len=longest,
            vocab_size=model.config.vocab_size,
            eos_tokens=model.config.eos_tokens,
            kv_groups=model.cost.kv_groups,
            kv_blocks=scheduler.stats().kv_blocks_total,
            max_running=rows,
            step_time=step_time,
            vocabulary=model.vocabulary,
        )
        return Instance(model.name, info.vocab_size, scheduler, runner), info

    def _limits(self, model: Simulated, longest: int) -> SchedulerLimits:
        target = self._engine.itl_target_ms / 1000
        return SchedulerLimits(
            max_running=self._engine.max_running,
            max_batch_tokens=self._engine.max_batch_tokens,
            max_model_len=longest,
            eos_tokens=model.config.eos_tokens,
            itl_target=target or None,
        )

    def _numerics_id(self, model: Simulated) -> str:
        """The preset by name, and the words: all that tokens depend on beside seed and position."""
        words = hashlib.blake2b(model.words.ids.tobytes(), digest_size=8).hexdigest()
        return f"simulated-{self._config.node.preset_name}-{model.dimensions.name}-{words}"

    def _tell(
        self, device: Hardware, models: Sequence[Simulated], infos: Sequence[ModelInfo], geometry: ArenaGeometry
    ) -> None:
        account = self._account
        account.memory = [
            *((f"{model.name}: weights ({WEIGHTS}, simulated)", model.cost.weight_bytes) for model in models),
            ("KV memory (simulated)", geometry.arena_bytes),
        ]
        account.derived["engine"] = f"simulated: answers are made up, times are those of one {device.title}"
        for model, info in zip(models, infos, strict=True):
            step = model.cost.step_seconds(1, 1, 1, 1)
            account.derived |= {
                f"{model.name}: longest sequence": f"{info.max_model_len} tokens",
                f"{model.name}: step of one token": f"{step * 1000:.1f} ms, as {model.dimensions.name}",
            }


def preset_device(name: str) -> Hardware:
    """The device of this name. Raises `InferenceError` that lists them."""
    if name not in HARDWARE:
        raise _unknown("preset", name, HARDWARE)
    return HARDWARE[name]


def preset_model(name: str) -> Architecture:
    """The dimensions of this name. Raises `InferenceError` that lists them."""
    if name not in ARCHITECTURES:
        raise _unknown("preset_model", name, ARCHITECTURES)
    return ARCHITECTURES[name]


def own_dimensions(name: str, config: ModelConfig) -> Architecture:
    """A served model's dimensions, as cost models want them: attention windows count as full attention."""
    return Architecture(
        name=name,
        layers=config.layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        vocab=config.vocab_size,
        context=config.max_positions,
        tied=config.tied,
        head_norms=config.architecture in ("qwen3", "gemma3"),
    )


def _unknown(setting: str, name: str, known: Iterable[str]) -> InferenceError:
    message = f"node.{setting}: there is no {setting.replace('_', ' ')} {name!r}; there are {', '.join(known)}"
    return invalid(message, param=f"node.{setting}", code="invalid_config")
