"""The tree of settings. Each knob is declared once, here: type, default, and the sentence that is its help and its documentation.

Anything that can be derived is derived (0 or "auto" means: derive and print it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from inference_stack.config.build import build, flatten
from inference_stack.config.schema import knob, section

DEFAULT_PRESET = "h200"
"""The device that the simulated engine imitates unless another is named."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The HTTP server."""

    host: str = knob("127.0.0.1", "Address to listen on.")
    port: int = knob(8000, "Port to listen on; 0 takes a free one.", low=0, high=65535)
    max_queue: int = knob(
        512, "Completions that may wait, beyond those running, before requests are refused with 429.", low=0
    )
    max_body_mb: float = knob(8.0, "Largest request body accepted, in MiB.", low=0)
    max_choices: int = knob(128, "Largest `n` (and number of prompts times n) of one request.", low=1)
    drain_seconds: float = knob(30.0, "On SIGTERM, how long streams may go on before they are ended.", low=0)
    comment_seconds: float = knob(
        10.0, "A stream silent for this long gets an SSE comment, so that proxies keep it open.", low=0
    )


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """How gateways find nodes, watch them, and carry streams over."""

    nodes: str = knob(
        "",
        "Nodes of `istack gateway`, separated by commas: HOST:PORT, dns:NAME:PORT (every address of the name), "
        "openai:URL (an external OpenAI-compatible server, its URL before /v1), file:PATH (one of these a line; may change).",
    )
    external_key: str = knob("", "File with the API key for external OpenAI-compatible servers.")
    external_running: int = knob(64, "Completions that an external server is taken to run at once.", low=1)
    refresh_seconds: float = knob(2.0, "How often names and files of nodes are looked up again.", low=0.05)
    processes: int = knob(1, "Gateway processes that share the port.", low=1)
    silence_seconds: float = knob(
        1.5, "A node silent for this long is given up for now: its streams go on elsewhere.", low=0.2
    )
    recovery_tokens: int = knob(
        16384,
        "Tokens to recompute that are sent at once to a node for streams that lost theirs; the rest waits.",
        low=1,
    )
    on_mismatch: str = knob(
        "continue",
        "When a stream can only go on where numbers come out differently: continue (counted), or fail.",
        choices=("continue", "fail"),
    )
    resume_key: str = knob(
        "",
        "File with the secret that gateways share, so that any of them resumes a stream; empty makes one up at start.",
    )


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """Certificates between gateways and nodes; `istack certs` makes them."""

    ca: str = knob("", "File with the certificate authority that both sides trust.")
    cert: str = knob("", "File with this process's certificate.")
    key: str = knob("", "File with its private key.")
    insecure: bool = knob(
        False, "Allow links beyond this machine without certificates. Anybody may then read and write them."
    )


@dataclass(frozen=True, kw_only=True)
class AdminConfig:
    """The administrators' API, on a port of its own."""

    host: str = knob("127.0.0.1", "Address it listens on.")
    port: int = knob(0, "Port of /admin/v1; 0 is off.", low=0, high=65535)
    token: str = knob("", "File with the bearer token that it asks for; needed beyond this machine.")
    audit: str = knob("", "File to which every change is appended, one JSON object a line; empty logs them.")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The batch engine of each model."""

    device: str = knob(
        "auto",
        "What the model runs on: cpu, cuda or cuda:N; auto takes a GPU where there is one and torch was built for it. Several "
        "workers take GPUs from this one on.",
    )
    max_running: int = knob(0, "Completions decoded at once; 0 is 64 on CPUs, 256 on GPUs.", low=0)
    max_batch_tokens: int = knob(
        0,
        "Query tokens of one step, decode tokens and prompt chunks together; 0 is 512 on CPUs, 2048 on GPUs.",
        low=0,
    )
    max_model_len: int = knob(
        0, "Longest sequence (prompt and completion) in tokens; 0 derives it from model and memory.", low=0
    )
    kv_memory: str = knob(
        "auto", "Memory for KV blocks of all models of a device, such as 2GiB; auto derives it.", size=True
    )
    kv_dtype: str = knob(
        "auto",
        "How KV is stored: float32, float16, bfloat16, int8 with a scale for each token and head, or float8 (e4m3), for which GPUs "
        "must be of compute capability 8.9 or more and CPUs have only torch's kernels; auto is float16 on CPUs, bfloat16 on GPUs.",
        choices=("auto", "float32", "float16", "bfloat16", "int8", "float8"),
    )
    weights: str = knob(
        "native",
        "How weights are executed: native keeps them as they are, float32 dequantises quantised ones when they are loaded, float8 "
        "rounds dense projections to e4m3, on GPUs and with deterministic off.",
        choices=("native", "float32", "float8"),
    )
    load_format: str = knob(
        "auto",
        "Where weights come from: auto reads the model's files; random draws them, for measuring, and needs no more than a "
        "directory with a config.json and a tokenizer.",
        choices=("auto", "random"),
    )
    kernels: str = knob(
        "auto",
        "Kernels: auto takes the fastest that work here; avx512vnni, avx2 and portable name a set for CPUs; triton is for GPUs; "
        "torch uses torch's.",
        choices=("auto", "avx512vnni", "avx2", "portable", "triton", "torch"),
    )
    attention: str = knob(
        "auto",
        "Attention on GPUs: auto is that of the kernels; fa3 is FlashAttention-3 from the package tokenspeed-fa3, on Hopper, with "
        "deterministic off and KV in bfloat16.",
        choices=("auto", "fa3"),
    )
    projections: str = knob(
        "auto",
        "Products by quantised weights on GPUs: auto is that of the kernels; humming is the package humming-kernels, with "
        "deterministic off.",
        choices=("auto", "humming"),
    )
    deterministic: bool = knob(
        True,
        "On GPUs, compute every row the same way whatever the batch is, so that a stream that is carried over goes on with the "
        "same bytes. Off is faster. CPUs always do.",
    )
    recorded_steps: bool = knob(
        True, "Record the model's step once and replay it, where the kernels can, instead of calling op by op."
    )
    prefix_cache: bool = knob(True, "Keep finished KV blocks and reuse them for requests with the same beginning.")
    pipeline_depth: int = knob(
        1,
        "Steps planned ahead of the results: 0, 1 or 2. From 1 on, planning and reporting run while the device computes.",
        low=0,
        high=2,
    )
    itl_target_ms: float = knob(
        0.0, "Keep prompt chunks small enough that running streams see a token this often; 0 is off.", low=0
    )
    check_integrity: bool = knob(True, "Verify the KV bookkeeping whenever an engine has been idle for a moment.")
    kv_events: str = knob(
        "",
        "HOST:PORT at which a worker publishes what its prefix cache holds, token ids included, as vLLM does over ZeroMQ; the next "
        "port replays, and further models take the next pairs. Empty is off.",
    )
    record: str = knob(
        "", "Folder in which every worker records what its schedulers were asked and decided, for `istack replay`."
    )
    record_mb: float = knob(64.0, "Largest recording of one worker, in MiB; it ends there.", low=0.01)
    record_tokens: bool = knob(
        False, "Record prompts and answers as token ids too; otherwise only lengths and salted hashes."
    )


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """The agent of this machine and its workers."""

    name: str = knob("", "What the node is called; empty is the host's name.")
    listen: str = knob("127.0.0.1:7000", "HOST:PORT at which `istack node` waits for gateways.")
    orphan_seconds: float = knob(
        30.0, "How long requests of a gateway that is gone are kept for the one that resumes them.", low=0
    )
    node_drain_seconds: float = knob(
        30.0, "On SIGTERM or `istack drain`, how long requests may go on before they move elsewhere.", low=0
    )
    engine: str = knob(
        "native",
        "What workers compute with: native runs the model; simulated takes a preset's time and makes answers up, for load tests.",
        choices=("native", "simulated"),
    )
    preset: str = knob(
        "", "Device whose times the simulated engine takes, such as l4, a100-80, h100 or h200; empty is h200."
    )
    preset_model: str = knob(
        "",
        "Model whose dimensions the simulated engine's times and KV memory are for, such as llama-3.1-8b; "
        "empty is the served model itself.",
    )
    workers: int = knob(
        1, "Worker processes, each with all models, on a set of its own of the cores this process may run on.", low=1
    )
    threads: int = knob(0, "CPU threads of a worker; 0 uses every core of its set.", low=0)
    heartbeat_seconds: float = knob(
        5.0, "A worker silent for this long is taken for hung, killed and replaced.", low=1.0
    )
    step_seconds: float = knob(60.0, "A worker whose step lasts longer than this is taken for hung.", low=0.1)
    start_seconds: float = knob(600.0, "A worker that is not ready after this long has failed.", low=0.1)
    max_start_failures: int = knob(3, "Give up after a worker failed to become ready this many times in a row.", low=1)

    @property
    def simulated(self) -> bool:
        """Whether answers are made up."""
        return self.engine == "simulated"

    @property
    def preset_name(self) -> str:
        """The preset that the simulated engine takes."""
        return self.preset or DEFAULT_PRESET


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Logs, on standard error."""

    level: str = knob(
        "info",
        "Least important level shown: debug, info, warning or error.",
        choices=("debug", "info", "warning", "error"),
    )
    json: bool = knob(False, "One JSON object per line instead of text.")


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model to serve."""

    model: str = knob("", "A directory, a GGUF file, a Hugging Face id, or a name that `istack models` lists.")
    name: str = knob("", "What requests call it; empty derives it from the model.")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that can be set."""

    models: tuple[ModelEntry, ...] = field(default=(), metadata={"help": "Models to serve."})
    server: ServerConfig = section(ServerConfig, "The HTTP server.")
    gateway: GatewayConfig = section(
        GatewayConfig, "How gateways find nodes, watch them, and carry streams over.", prefix=True
    )
    engine: EngineConfig = section(EngineConfig, "The batch engine of each model.")
    node: NodeConfig = section(NodeConfig, "The agent of this machine and its workers.")
    tls: TlsConfig = section(TlsConfig, "Certificates between gateways and nodes.", prefix=True)
    admin: AdminConfig = section(AdminConfig, "The administrators' API.", prefix=True)
    log: LogConfig = section(LogConfig, "Logs.", prefix=True)
    cache_dir: str = knob("", "Where downloaded models are kept; empty is ~/.cache/inference-stack.")

    @property
    def device_title(self) -> str:
        """What a worker computes with, for people."""
        return f"simulated {self.node.preset_name}" if self.node.simulated else self.engine.device


def to_plain(config: Config) -> dict[str, Any]:
    """The tree as mappings, lists and scalars, for YAML and for messages."""
    plain = asdict(config)
    plain["models"] = list(plain["models"])
    return plain


def from_plain(plain: Mapping[str, Any], origin: str = "configuration") -> Config:
    """The tree that `to_plain` took apart. Raises `InferenceError` for an unknown setting or a value of the wrong type."""
    return build(Config, flatten(Config, plain, origin))
