"""From a configuration to an engine core that is ready to step, with an account of where the time and the bytes went."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from inference_stack.artifacts.catalogue import cache_folder
from inference_stack.artifacts.resolve import resolve
from inference_stack.artifacts.vocabulary import vocabulary_digest
from inference_stack.config.derive import settled
from inference_stack.config.sizes import format_size
from inference_stack.config.tree import Config, ModelEntry
from inference_stack.core.errors import invalid
from inference_stack.core.fleet import ModelInfo
from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.core.seams import Clock
from inference_stack.engine.accelerator import Accelerator
from inference_stack.engine.arena import Arena
from inference_stack.engine.core import EngineCore, Instance
from inference_stack.engine.device import CpuDevice
from inference_stack.engine.devices import AnyDevice, open_device, ops_for
from inference_stack.engine.kv_events import KvFeeds, events_capacity
from inference_stack.engine.launcher import Beside, Inline, Launcher, Queued
from inference_stack.engine.memory import arena_geometry, kv_bytes, step_reserve
from inference_stack.engine.numerics import numerics_id
from inference_stack.engine.recording import Schedulers
from inference_stack.engine.runner import ModelRunner
from inference_stack.engine.slots import SlotTables
from inference_stack.engine.warmup import TIMED_TOKENS, fill, time_steps, warm_up
from inference_stack.kv.manager import KvManager
from inference_stack.kv.slabs import SlabPool
from inference_stack.models.api import LoadedModel
from inference_stack.models.loader import load_model
from inference_stack.ops.facade import BoundOps
from inference_stack.ops.implementation import UnsuitableWeight
from inference_stack.ops.workspace import Workspace
from inference_stack.scheduler.limits import SchedulerLimits
from inference_stack.telemetry.startup import Account
from inference_stack.wire.messages import Ready

SHORTEST_USEFUL = 4
"""Tokens of the longest sequence below which serving makes no sense (and warming up is impossible)."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its weights, under the name that requests use. `longest` is in tokens, whatever memory there is; `vocabulary` is
    the digest of its words."""

    name: str
    model: LoadedModel
    groups: tuple[KvGroupSpec, ...]
    longest: int
    vocabulary: str


@dataclass(frozen=True, slots=True)
class Placed:
    """A loaded model with its part of the arena. `longest` is what fits."""

    loaded: Loaded
    kv: KvManager
    runner: ModelRunner
    longest: int
    parking: tuple[int, ...]


class Startup:
    """Builds the engine of one device, which the settings name unless one is given; `account` goes on from what the process did
    before."""

    def __init__(self, config: Config, clock: Clock, account: Account, device: AnyDevice | None = None) -> None:
        self._config = settled(config)
        self._engine = self._config.engine
        self._clock = clock
        self._account = account
        self._device = device or open_device(self._engine, config.node.threads)
        self._gpu = isinstance(self._device, Accelerator)
        self._launcher: Launcher = Queued() if self._gpu else Beside() if self._engine.pipeline_depth else Inline()

    @property
    def threads(self) -> int:
        """CPU threads that the engine computes with; 0 on a GPU."""
        return self._device.threads if isinstance(self._device, CpuDevice) else 0

    def run(self) -> tuple[EngineCore, Ready]:
        """Load everything. Raises `InferenceError` for what cannot be served."""
        account = self._account
        workspace = Workspace(
            max_tokens=self._engine.max_batch_tokens,
            max_samples=self._engine.max_running,
            device=self._device.torch_device,
            planned=not self._gpu,
        )
        ops = ops_for(self._engine, self._device, workspace)
        refusal = ops.refuses_kv(self._engine.kv_dtype)
        if refusal is not None:
            raise invalid(f"{refusal}; set kernels to torch, or another kv_dtype", param="engine.kv_dtype")
        with account.stage("weights"):
            loaded = [self._load(entry, ops) for entry in self._config.models]
            self._device.settle()
        with account.stage("KV memory"):
            arena = self._allocate(loaded)
            slabs, schedulers = SlabPool(arena.geometry), Schedulers(self._engine, arena.geometry)
        with account.stage("warm-up"):
            placed = [self._place(model, arena, slabs, ops) for model in loaded]
            self._measure(placed)
            workspace.seal()
            served = [self._serve(model, ops, schedulers) for model in placed]
            self._peak_bytes = self._device.peak_bytes()
        instances = [instance for instance, _ in served]
        feeds = KvFeeds(self._config, instances, self._clock)
        closed = (feeds.close, schedulers.close)
        core = EngineCore(instances, self._clock, self._engine.pipeline_depth, closed, feeds.flush)
        self._tell(placed, arena, ops)
        account.derived |= schedulers.told | feeds.told
        models = tuple(info for _, info in served)
        return core, Ready(models=models, ledger=account.close(), kv_memory=arena.geometry.arena_bytes)

    def _load(self, entry: ModelEntry, ops: BoundOps) -> Loaded:
        folder, load_format = cache_folder(self._config.cache_dir), self._engine.load_format
        files = resolve(entry.model, folder, offline=True, load_format=load_format)
        with ThreadPoolExecutor(1, "vocabulary") as aside:
            vocabulary = aside.submit(vocabulary_digest, files)
            try:
                model = load_model(
                    files,
                    max_positions=self._engine.max_model_len,
                    dequantise=self._engine.weights == "float32",
                    prepare=ops.prepare,
                    device=self._device.torch_device,
                )
            except UnsuitableWeight as error:
                raise invalid(f"{error}; set projections to auto", param="engine.projections") from error
        context = model.model.max_positions
        groups = model.model.kv_groups(self._engine.kv_dtype)
        for refusal in filter(None, map(ops.refuses_group, groups)):
            raise invalid(f"{refusal}; set attention to auto", param="engine.attention")
        return Loaded(
            name=entry.name or files.name,
            model=model,
            groups=groups,
            longest=min(self._engine.max_model_len or context, context),
            vocabulary=vocabulary.result(),
        )

    def _allocate(self, loaded: Sequence[Loaded]) -> Arena:
        wanted = kv_bytes(
            self._engine.kv_memory,
            self._device.free_bytes(),
            [(model.groups, model.longest) for model in loaded],
            step_reserve(self._engine.max_running, [(one.longest, one.model.model.vocab_size) for one in loaded])
            if self._gpu
            else None,
        )
        geometry, remark = arena_geometry(wanted, [spec for model in loaded for spec in model.groups])
        self._account.derived["KV slabs"] = remark
        return Arena(self._device, geometry, parking=self._gpu)

    def _place(self, loaded: Loaded, arena: Arena, slabs: SlabPool, ops: BoundOps) -> Placed:
        kv = KvManager(
            loaded.name,
            loaded.groups,
            slabs,
            prefix_cache=self._engine.prefix_cache,
            events_capacity=events_capacity(self._engine),
        )
        longest = kv.capacity_tokens(loaded.longest)
        if longest < SHORTEST_USEFUL:
            raise invalid(
                f"KV memory holds no sequence of {SHORTEST_USEFUL} tokens; raise --kv-memory", param="engine.kv_memory"
            )
        lease = arena.lease(loaded.groups)
        rows, tokens = self._engine.max_running, self._engine.max_batch_tokens
        tables = SlotTables(self._device, rows, longest, lease.groups)
        self._account.memory.append((f"{loaded.name}: slot tables", tables.nbytes))
        layers, launcher = lease.layers(), self._launcher
        runner = ModelRunner(loaded.model, ops, self._device, layers, tables, self._clock, launcher, tokens, rows)
        return Placed(loaded, kv, runner, longest, lease.parking)

    def _measure(self, placed: Sequence[Placed]) -> None:
        """Every kind of step once, so that the workspace sees all it has to hold: recordings keep their outputs, beside which
        any model's step may run op by op."""
        rehearsed = [one.runner.record() for one in placed] if self._engine.recorded_steps else []
        for one in placed:
            one.runner.forget_recording()
            warm_up(one.runner, one.loaded.name, len(one.loaded.groups))
        del rehearsed

    def _serve(self, placed: Placed, ops: BoundOps, schedulers: Schedulers) -> tuple[Instance, ModelInfo]:
        loaded, model = placed.loaded, placed.loaded.model
        many = min(placed.longest - 1, self._engine.max_batch_tokens)
        if self._engine.recorded_steps:
            placed.runner.record()
            if isinstance(self._device, Accelerator) and ops.graphs_of(loaded.model.step_ops):
                placed.runner.record_graphs(self._device, placed.parking)
        if self._gpu:
            rows = min(self._engine.max_running, self._engine.max_batch_tokens)
            fill(placed.runner, loaded.name, len(loaded.groups), rows)
        timed = many if self._gpu else min(TIMED_TOKENS, many)
        step_time = time_steps(placed.runner, loaded.name, len(loaded.groups), timed)
        scheduler = schedulers.make(self._limits(placed), placed.kv, step_time)
        info = ModelInfo(
            name=loaded.name,
            architecture=model.architecture,
            numerics_id=numerics_id(model, ops, self._engine.kv_dtype, self._device.isa(), self._alike),
            max_model_len=placed.longest,
            vocab_size=model.model.vocab_size,
            eos_tokens=model.eos_tokens,
            kv_groups=loaded.groups,
            kv_blocks=scheduler.stats().kv_blocks_total,
            max_running=self._engine.max_running,
            step_time=step_time,
            vocabulary=loaded.vocabulary,
        )
        return Instance(loaded.name, info.vocab_size, scheduler, placed.runner), info

    @property
    def _alike(self) -> bool:
        """Whether a row's bits depend on that row alone."""
        return self._engine.deterministic or not self._gpu

    def _limits(self, placed: Placed) -> SchedulerLimits:
        target = self._engine.itl_target_ms / 1000
        return SchedulerLimits(
            max_running=self._engine.max_running,
            max_batch_tokens=self._engine.max_batch_tokens,
            max_model_len=placed.longest,
            eos_tokens=placed.loaded.model.eos_tokens,
            itl_target=target or None,
        )

    def _tell(self, placed: Sequence[Placed], arena: Arena, ops: BoundOps) -> None:
        account = self._account
        models = [(one.loaded.name, one.loaded.model, one.longest) for one in placed]
        account.memory = [
            *((f"{name}: weights ({model.quantisation})", model.weight_bytes) for name, model, _ in models),
            ("KV memory", arena.geometry.arena_bytes),
            ("workspace", ops.workspace.nbytes or self._peak_bytes),
            *(
                (("recorded steps", self._device.streams.recorded_bytes()),)
                if isinstance(self._device, Accelerator)
                else ()
            ),
            *account.memory,
        ]
        account.derived |= {f"{name}: longest sequence": f"{longest} tokens" for name, _, longest in models}
        account.derived["device"] = f"{self._device.name}, {self._device.isa()}"
        if isinstance(self._device, CpuDevice):
            account.derived["threads"] = str(self._device.threads)
        account.derived["memory left"] = format_size(self._device.free_bytes())
        account.derived["kernels"] = "; ".join(sorted(set(ops.explain().values())))
