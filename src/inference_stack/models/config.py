"""What a decoder-only model looks like, whoever wrote the file: `ModelConfig`, and its reading from Hugging Face's
config.json.

Everything that a supported architecture cannot honour is refused here by name, so that no option of a checkpoint is
silently ignored. Knows configuration keys; it knows no tensor and no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from inference_stack.core.errors import unsupported_model
from inference_stack.models.refusals import REASONS

if TYPE_CHECKING:  # ops import torch, which reading a configuration does not need
    from inference_stack.ops.api import Activation

Raw = Mapping[str, Any]
RopeKind = Literal["default", "linear", "llama3", "yarn"]

MAX_SIZE = 1 << 31
MAX_LAYERS = 1 << 12
MAX_POSITIONS = 1 << 24
MAX_EXPERTS = 256
"""Bounds on what a configuration can make this program allocate before the first tensor contradicts it."""

ROPE_KINDS = ("default", "linear", "llama3", "yarn")
WINDOWS: dict[str, int | None] = {"mixtral": None, "gpt_oss": 128}
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
}
HF_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
    "MixtralForCausalLM": "mixtral",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "GptOssForCausalLM": "gpt_oss",
}
THETAS = {"mixtral": 1e6, "gpt_oss": 150000.0}
GPT_OSS_ROPE = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
"""What is meant where a file says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding and how it was stretched.

    `factor` is the stretch; `original_positions` the context the model was pre-trained with (llama3, yarn);
    `attention_factor` None is derived from `factor` (yarn). `divisors` divide each frequency, for files that carry
    Llama 3's scaling as numbers.
    """

    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    divisors: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """The experts of every layer but `dense_layers`: `count` MLPs of inner `width`, of which a token goes through `chosen`.

    `normalised`: the weights of those chosen sum to 1. `clamp` is (alpha, limit) of gates of gpt-oss's kind.
    """

    count: int
    chosen: int
    width: int
    normalised: bool = True
    dense_layers: tuple[int, ...] = ()
    clamp: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder's dimensions and choices. `windows[layer]` is the layer's attention window in tokens, None for full
    attention.

    `rope` turns full-attention layers and, unless there is a `window_rope`, windowed ones too. `attention_scale`
    multiplies q·k. `eos_tokens` end a completion. `architecture` is a key of `registry.ARCHITECTURES`.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    max_positions: int
    norm_eps: float
    rope: RopeConfig
    attention_scale: float
    activation: Activation
    tied: bool
    window_rope: RopeConfig | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    eos_tokens: tuple[int, ...] = ()
    experts: ExpertsConfig | None = None

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.windows)


def config_from_hf(raw: Raw, generation: Raw | None = None) -> ModelConfig:
    """`ModelConfig` from config.json and generation_config.json. Raises `unsupported_model` naming what cannot be
    run.
    """
    architecture = _architecture(raw)
    _refuse(raw)
    hidden, heads = positive(raw, "hidden_size"), positive(raw, "num_attention_heads")
    head_dim = positive(raw, "head_dim", {"gemma3": 256, "gpt_oss": 64}.get(architecture, hidden // heads))
    positions = positive(raw, "max_position_embeddings", at_most=MAX_POSITIONS)
    rope, window_rope = _ropes(raw, architecture, positions)
    scale_base = number(raw, "query_pre_attn_scalar", 256.0) if architecture == "gemma3" else float(head_dim)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=positive(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=positive(raw, "intermediate_size"),
        heads=heads,
        kv_heads=positive(raw, "num_key_value_heads", heads),
        head_dim=head_dim,
        windows=effective(_windows(raw, architecture), positions),
        max_positions=positions,
        norm_eps=number(raw, "rms_norm_eps", 1e-6),
        rope=rope,
        window_rope=window_rope,
        attention_scale=scale_base**-0.5,
        activation=_activation(raw, architecture),
        tied=bool(raw.get("tie_word_embeddings", architecture == "gemma3")),
        attention_bias=bool(raw.get("attention_bias", architecture == "gpt_oss")),
        mlp_bias=bool(raw.get("mlp_bias", False)),
        eos_tokens=_eos(generation) or _eos(raw),
        experts=_experts(raw, architecture),
    )
    check(config)
    return config


def check(config: ModelConfig) -> None:
    """Raise `unsupported_model` for dimensions that do not go together."""
    if config.heads % config.kv_heads:
        raise unsupported_model(f"{config.heads} attention heads cannot share {config.kv_heads} KV heads evenly.")
    if config.head_dim % 2:
        raise unsupported_model(f"A head dimension of {config.head_dim} is odd; rotary embeddings need an even one.")
    for rope in (config.rope, config.window_rope or config.rope):
        _check_rope(rope)


def _check_rope(rope: RopeConfig) -> None:
    sound = rope.theta > 1 and rope.factor > 0 and rope.beta_fast > 0 and rope.beta_slow > 0
    if not sound or rope.high_freq_factor <= rope.low_freq_factor or rope.low_freq_factor <= 0:
        raise unsupported_model(f"These rotary embedding parameters make no sense: {rope}.")


def effective(windows: tuple[int | None, ...], positions: int) -> tuple[int | None, ...]:
    """Windows that can ever hide a token; the others are full attention. More than one size is refused."""
    kept = tuple(window if window is not None and window < positions else None for window in windows)
    if len(sizes := {window for window in kept if window is not None}) > 1:
        raise unsupported_model(f"Layers with different attention windows {sorted(sizes)} are not supported.")
    if any(size < 1 for size in sizes):
        raise unsupported_model(f"An attention window of {min(sizes)} tokens is not possible.")
    return kept


def integer(raw: Raw, key: str, default: int | None = None) -> int:
    """A whole number, or the default where the key is missing or null. Raises naming the key."""
    value = raw.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise unsupported_model(f"The model's configuration needs a whole number {key!r}; it has {value!r}.")
    return value


def positive(raw: Raw, key: str, default: int | None = None, at_most: int = MAX_SIZE) -> int:
    """A whole number from 1, or the default where the key is missing or null. Raises naming the key."""
    value = integer(raw, key, default)
    if not 1 <= value <= at_most:
        raise unsupported_model(f"The model's configuration needs {key!r} between 1 and {at_most}; it has {value}.")
    return value


def mapping(raw: Raw, key: str) -> dict[str, Any]:
    """An object, empty where the key is missing or null. Raises naming the key."""
    value = raw.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise unsupported_model(f"The model's configuration needs an object {key!r}; it has {value!r}.")
    return dict(value or {})


def number(raw: Raw, key: str, default: float | None = None) -> float:
    """A number, or the default where the key is missing or null. Raises naming the key."""
    value = raw.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise unsupported_model(f"The model's configuration needs a number {key!r}; it has {value!r}.")
    return float(value)


def _architecture(raw: Raw) -> str:
    names = raw.get("architectures") or []
    for name in names:
        if name in HF_ARCHITECTURES:
            return HF_ARCHITECTURES[name]
        if name in REASONS:
            raise unsupported_model(f"Architecture not supported: {name} has {REASONS[name]}.")
    given = ", ".join(map(str, names)) or f"none named (model_type {raw.get('model_type')!r})"
    raise unsupported_model(f"Architecture not supported: {given}. Supported: {', '.join(HF_ARCHITECTURES)}.")


def _refuse(raw: Raw) -> None:
    """What a checkpoint may ask for and no model here does."""
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if raw.get(key):
            raise unsupported_model(f"The configuration asks for {key} = {raw[key]!r}, which is not supported.")
    if raw.get("pretraining_tp", 1) != 1:
        raise unsupported_model("A pretraining_tp other than 1 is not supported.")


def _activation(raw: Raw, architecture: str) -> Activation:
    gemma = architecture == "gemma3"
    name = raw.get("hidden_activation" if gemma else "hidden_act") or ("gelu_pytorch_tanh" if gemma else "silu")
    if name not in ACTIVATIONS:
        raise unsupported_model(f"Activation {name!r} is not supported. Supported: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def _experts(raw: Raw, architecture: str) -> ExpertsConfig | None:
    """The experts of an architecture that has some, with the defaults that Hugging Face's configurations have."""
    if architecture not in ("mixtral", "qwen3_moe", "gpt_oss"):
        return None
    qwen = architecture == "qwen3_moe"
    key = "num_experts" if raw.get("num_experts") is not None else "num_local_experts"
    count = positive(raw, key, at_most=MAX_EXPERTS)
    found = ExpertsConfig(
        count=count,
        chosen=positive(raw, "num_experts_per_tok", at_most=count),
        width=positive(raw, "moe_intermediate_size" if qwen else "intermediate_size"),
        normalised=bool(raw.get("norm_topk_prob", False)) if qwen else True,
        dense_layers=_dense_layers(raw) if qwen else (),
        clamp=_clamp(raw) if architecture == "gpt_oss" else None,
    )
    if found.clamp and _activation(raw, architecture) != "silu":
        raise unsupported_model(f"gpt-oss with the activation {raw['hidden_act']!r} is not supported.")
    return found


def _clamp(raw: Raw) -> tuple[float, float]:
    alpha, limit = number(raw, "swiglu_alpha", 1.702), number(raw, "swiglu_limit", 7.0)
    if limit <= 0:
        raise unsupported_model(f"A swiglu_limit of {limit} makes no sense.")
    return alpha, limit


def _dense_layers(raw: Raw) -> tuple[int, ...]:
    layers, step = positive(raw, "num_hidden_layers", at_most=MAX_LAYERS), positive(raw, "decoder_sparse_step", 1)
    named = raw.get("mlp_only_layers") or []
    if not isinstance(named, list) or not all(isinstance(layer, int) for layer in named):
        raise unsupported_model(f"mlp_only_layers {named!r} is no list of layers.")
    return tuple(layer for layer in range(layers) if layer in named or (layer + 1) % step)


def _eos(raw: Raw | None) -> tuple[int, ...]:
    value = (raw or {}).get("eos_token_id")
    if value is None:
        return ()
    tokens = value if isinstance(value, list) else [value]
    return tuple(integer({"eos_token_id": token}, "eos_token_id") for token in tokens)


def _windows(raw: Raw, architecture: str) -> tuple[int | None, ...]:
    """Attention window of each layer, with the defaults that Hugging Face's configurations have."""
    layers = positive(raw, "num_hidden_layers", at_most=MAX_LAYERS)
    if architecture == "llama":
        return (None,) * layers
    given = raw.get("sliding_window", WINDOWS.get(architecture, 4096))
    window = None if given is None else integer({"sliding_window": given}, "sliding_window")
    if architecture in ("qwen2", "qwen3", "qwen3_moe") and not raw.get("use_sliding_window", False):
        return (None,) * layers
    if architecture in ("mistral", "mixtral", "qwen3_moe"):
        return (window,) * layers
    return tuple(window if windowed else None for windowed in _windowed(raw, architecture, layers))


def _windowed(raw: Raw, architecture: str, layers: int) -> list[bool]:
    """Which layers have a window, in architectures that mix both."""
    if (kinds := raw.get("layer_types")) is not None:
        if len(kinds) != layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
            raise unsupported_model(f"layer_types {kinds!r} do not describe {layers} sliding or full attention layers.")
        return [kind == "sliding_attention" for kind in kinds]
    if architecture == "gpt_oss":
        return [layer % 2 == 0 for layer in range(layers)]
    if architecture == "gemma3":
        pattern = positive(raw, "sliding_window_pattern", 6)
        return [(layer + 1) % pattern != 0 for layer in range(layers)]
    first = integer(raw, "max_window_layers", 28)
    return [layer >= first for layer in range(layers)]


def _ropes(raw: Raw, architecture: str, positions: int) -> tuple[RopeConfig, RopeConfig | None]:
    """Rope of full and of windowed layers. Old files have rope_theta and rope_scaling, new ones rope_parameters."""
    given, scaling = mapping(raw, "rope_parameters"), mapping(raw, "rope_scaling")
    if architecture == "gpt_oss" and not given and not scaling:
        given = dict(GPT_OSS_ROPE)
    if architecture != "gemma3":
        theta = number(raw, "rope_theta", THETAS.get(architecture, 10000.0))
        return rope_from_hf(given | scaling, theta, positions), None
    full, local = mapping(given, "full_attention") | scaling, mapping(given, "sliding_attention")
    return (
        rope_from_hf(full, number(raw, "rope_theta", 1e6), positions),
        rope_from_hf(local, number(raw, "rope_local_base_freq", 1e4), positions),
    )


def rope_from_hf(raw: Raw, theta: float, positions: int) -> RopeConfig:
    """Rope from a rope_parameters or rope_scaling object. Raises `unsupported_model` naming an unknown kind."""
    kind = raw.get("rope_type") or raw.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise unsupported_model(f"RoPE type {kind!r} is not supported. Supported: {', '.join(ROPE_KINDS)}.")
    if number(raw, "partial_rotary_factor", 1.0) != 1.0:
        raise unsupported_model("A partial_rotary_factor other than 1 is not supported.")
    original = positive(raw, "original_max_position_embeddings", positions)
    attention = raw.get("attention_factor")
    return RopeConfig(
        theta=number(raw, "rope_theta", theta),
        kind=cast(RopeKind, kind),
        factor=1.0 if kind == "default" else number(raw, "factor", positions / original if kind == "yarn" else None),
        original_positions=original,
        low_freq_factor=number(raw, "low_freq_factor", 1.0),
        high_freq_factor=number(raw, "high_freq_factor", 4.0),
        attention_factor=None if attention is None else number(raw, "attention_factor"),
        beta_fast=number(raw, "beta_fast", 0.0) or 32.0,
        beta_slow=number(raw, "beta_slow", 0.0) or 1.0,
        mscale=number(raw, "mscale", 0.0),
        mscale_all_dim=number(raw, "mscale_all_dim", 0.0),
        truncate=bool(raw.get("truncate", True)),
    )
