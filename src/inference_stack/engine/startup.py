"""From a configuration to an engine core that is ready to step, with an account of where the time and the bytes went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inference_stack.artifacts.catalogue import cache_folder
from inference_stack.artifacts.resolve import resolve
from inference_stack.config.sizes import format_size
from inference_stack.config.tree import Config, ModelEntry
from inference_stack.core.errors import invalid
from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.seams import Clock
from inference_stack.engine.arena import Arena
from inference_stack.engine.core import EngineCore, Instance
from inference_stack.engine.device import CpuDevice
from inference_stack.engine.memory import arena_geometry, kv_bytes
from inference_stack.engine.numerics import numerics_id
from inference_stack.engine.runner import ModelRunner
from inference_stack.engine.slots import SlotTables
from inference_stack.engine.warmup import warm_up
from inference_stack.kv.manager import KvManager
from inference_stack.kv.slabs import SlabPool
from inference_stack.models.api import LoadedModel
from inference_stack.models.loader import load_model
from inference_stack.ops.facade import BoundOps
from inference_stack.ops.registry import build_ops
from inference_stack.ops.workspace import Workspace
from inference_stack.scheduler.limits import SchedulerLimits
from inference_stack.scheduler.scheduler import Scheduler
from inference_stack.telemetry.startup import Account
from inference_stack.wire.messages import ModelInfo, Ready

SHORTEST_USEFUL = 4
"""Tokens of the longest sequence below which serving makes no sense (and warming up is impossible)."""


@dataclass(slots=True)
class Served:
    """A model on its way to being served."""

    name: str
    loaded: LoadedModel
    groups: tuple[KvGroupSpec, ...]
    longest: int
    instance: Instance | None = field(default=None)


class Startup:
    """Builds the engine of one device; `account` goes on from what the process did before."""

    def __init__(self, config: Config, clock: Clock, account: Account) -> None:
        self._config = config
        self._engine = config.engine
        self._clock = clock
        self._account = account
        self._device = CpuDevice(config.node.threads)

    def run(self) -> tuple[EngineCore, Ready]:
        """Load everything. Raises `InferenceError` for what cannot be served."""
        account = self._account
        workspace = Workspace(max_tokens=self._engine.max_batch_tokens, max_samples=self._engine.max_running)
        ops = build_ops(workspace)
        with account.stage("weights"):
            served = [self._load(entry, ops) for entry in self._config.models]
        with account.stage("KV memory"):
            arena = self._allocate(served)
            slabs = SlabPool(arena.geometry)
        with account.stage("warm-up"):
            models = tuple(self._instance(model, arena, slabs, ops) for model in served)
            workspace.seal()
        core = EngineCore(
            [model.instance for model in served if model.instance], self._clock, self._engine.pipeline_depth
        )
        self._tell(served, arena, ops)
        return core, Ready(models=models, ledger=account.close(), kv_memory=arena.geometry.arena_bytes)

    def _load(self, entry: ModelEntry, ops: BoundOps) -> Served:
        files = resolve(entry.model, cache_folder(self._config.cache_dir), offline=True)
        loaded = load_model(files, max_positions=self._engine.max_model_len)
        for linear in loaded.linears:
            ops.prepare(linear)
        return Served(
            name=entry.name or files.name,
            loaded=loaded,
            groups=loaded.model.kv_groups(self._engine.kv_dtype),
            longest=min(self._engine.max_model_len or loaded.model.max_positions, loaded.model.max_positions),
        )

    def _allocate(self, served: Sequence[Served]) -> Arena:
        wanted = kv_bytes(
            self._engine.kv_memory, self._device.free_bytes(), [(model.groups, model.longest) for model in served]
        )
        geometry, remark = arena_geometry(wanted, [spec for model in served for spec in model.groups])
        self._account.derived["KV slabs"] = remark
        return Arena(self._device, geometry)

    def _instance(self, served: Served, arena: Arena, slabs: SlabPool, ops: BoundOps) -> ModelInfo:
        kv = KvManager(served.name, served.groups, slabs, prefix_cache=self._engine.prefix_cache)
        longest = kv.capacity_tokens(served.longest)
        if longest < SHORTEST_USEFUL:
            raise invalid(
                f"KV memory holds no sequence of {SHORTEST_USEFUL} tokens; raise --kv-memory", param="engine.kv_memory"
            )
        scheduler = Scheduler(self._limits(served, longest), kv)
        lease = arena.lease(served.groups)
        tables = SlotTables(self._device, self._engine.max_running, longest, lease.groups)
        runner = ModelRunner(
            served.loaded, ops, self._device, lease.layers(), tables, self._clock, self._engine.max_running
        )
        warm_up(runner, served.name, len(served.groups))
        served.instance = Instance(served.name, served.loaded.model.vocab_size, scheduler, runner)
        self._account.memory.append((f"{served.name}: slot tables", tables.nbytes))
        return ModelInfo(
            name=served.name,
            architecture=served.loaded.architecture,
            numerics_id=numerics_id(served.loaded, ops, self._engine.kv_dtype, self._device.isa()),
            max_model_len=longest,
            vocab_size=served.loaded.model.vocab_size,
            eos_tokens=served.loaded.eos_tokens,
            kv_groups=served.groups,
            kv_blocks=scheduler.stats().kv_blocks_total,
            max_running=self._engine.max_running,
        )

    def _limits(self, served: Served, longest: int) -> SchedulerLimits:
        target = self._engine.itl_target_ms / 1000
        return SchedulerLimits(
            max_running=self._engine.max_running,
            max_batch_tokens=self._engine.max_batch_tokens,
            max_model_len=longest,
            eos_tokens=served.loaded.eos_tokens,
            itl_target=target or None,
        )

    def _tell(self, served: Sequence[Served], arena: Arena, ops: BoundOps) -> None:
        account = self._account
        weights = [
            (f"{model.name}: weights ({model.loaded.quantisation})", model.loaded.weight_bytes) for model in served
        ]
        account.memory = [
            *weights,
            ("packed copies of shared weights", ops.packed_bytes),
            ("KV memory", arena.geometry.arena_bytes),
            ("workspace", ops.workspace.nbytes),
            *account.memory,
        ]
        for model in served:
            if model.instance is not None:
                longest = model.instance.scheduler.limits.max_model_len
                account.derived[f"{model.name}: longest sequence"] = f"{longest} tokens"
        account.derived["threads"] = str(self._device.threads)
        account.derived["memory left"] = format_size(self._device.free_bytes())
        account.derived["kernels"] = "; ".join(sorted(set(ops.explain().values())))
