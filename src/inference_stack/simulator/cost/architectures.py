"""Dense decoder models by their dimensions: parameters, bytes of weights, and KV.

Dimensions are those of the models' published `config.json`. Knows no device and no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from inference_stack.core.kv_spec import KvGroupSpec

ACTIVATION_BYTES: Final = 2
"""Of one number that is not quantised: activations, embeddings, the output head, norms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """How projections are stored. `bits` a weight, scales included; `operand` is what devices that have it multiply in.

    Elsewhere weights are unpacked to bf16 on the way, and are streamed at `unpack_share` of the bandwidth: gpt-fast's published
    decode (A100, 2023) gives 0.84 for 8 and 0.73 for 4 bits on 7B and 70B models alike, after what a step costs without bytes.
    """

    name: str
    bits: float
    operand: str
    unpack_share: float


WEIGHT_FORMATS: Final[Mapping[str, WeightFormat]] = MappingProxyType(
    {
        form.name: form
        for form in (
            WeightFormat(name="bf16", bits=16, operand="bf16", unpack_share=1.0),
            WeightFormat(name="fp8", bits=8, operand="fp8", unpack_share=0.84),
            WeightFormat(name="int8", bits=8, operand="int8", unpack_share=0.84),
            # Groups of 128 weights with a 16-bit scale and a 4-bit zero point, as in AWQ and GPTQ.
            WeightFormat(name="w4", bits=4 + 20 / 128, operand="int8", unpack_share=0.73),
        )
    }
)
"""Formats by name. Embeddings, output head and norms stay at 16 bits in all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A decoder with gated MLPs and grouped-query attention, described by its published dimensions.

    `tied`: the output head is the embedding table. `head_norms`: queries and keys are normalised per head. `context` is the longest
    sequence in tokens.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    tied: bool = False
    head_norms: bool = False

    @property
    def projections(self) -> int:
        """Weights of the matrices in all layers: what a token is multiplied by, and what quantisation shrinks."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def output_head(self) -> int:
        """Weights of the matrix that turns a row into logits."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All weights, as model cards count them."""
        norms = self.hidden * (2 * self.layers + 1) + (2 * self.head_dim * self.layers if self.head_norms else 0)
        return self.projections + norms + self.output_head * (1 if self.tied else 2)

    def projection_bytes(self, form: WeightFormat) -> float:
        """Bytes that a step reads for all layers' matrices."""
        return self.projections * form.bits / 8

    def weight_bytes(self, form: WeightFormat) -> int:
        """Bytes of all weights in memory."""
        return round(self.projection_bytes(form)) + ACTIVATION_BYTES * (self.parameters - self.projections)

    @property
    def activation_bytes(self) -> int:
        """Bytes written and read again, per token and over all layers, between matrices: residual, norms, heads, gated MLP."""
        attention = (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        return 2 * ACTIVATION_BYTES * self.layers * (4 * self.hidden + attention + 3 * self.intermediate)

    def kv_groups(self, dtype: str = "float16", tensor_parallel: int = 1) -> tuple[KvGroupSpec, ...]:
        """The KV of one instance over all its devices. With more devices than KV heads, each head is kept more than once."""
        heads = max(self.kv_heads, tensor_parallel)
        layers = tuple(range(self.layers))
        return (KvGroupSpec(name="full", layers=layers, kv_heads=heads, head_dim=self.head_dim, dtype=dtype),)


def _model(name: str, *sizes: int, tied: bool = False, head_norms: bool = False) -> Architecture:
    layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, context = sizes
    return Architecture(
        name=name,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        context=context,
        tied=tied,
        head_norms=head_norms,
    )


ARCHITECTURES: Final[Mapping[str, Architecture]] = MappingProxyType(
    {
        model.name: model
        for model in (
            #                      layers hidden  mlp  heads kv  dim   vocab  context
            _model("smollm2-135m", 30, 576, 1536, 9, 3, 64, 49152, 8192, tied=True),
            _model("llama-2-7b", 32, 4096, 11008, 32, 32, 128, 32000, 4096),
            _model("llama-2-70b", 80, 8192, 28672, 64, 8, 128, 32000, 4096),
            _model("llama-3.1-8b", 32, 4096, 14336, 32, 8, 128, 128256, 131072),
            _model("llama-3.1-70b", 80, 8192, 28672, 64, 8, 128, 128256, 131072),
            _model("llama-3.2-1b", 16, 2048, 8192, 32, 8, 64, 128256, 131072, tied=True),
            _model("llama-3.2-3b", 28, 3072, 8192, 24, 8, 128, 128256, 131072, tied=True),
            _model("mistral-7b", 32, 4096, 14336, 32, 8, 128, 32768, 32768),
            _model("qwen3-0.6b", 28, 1024, 3072, 16, 8, 128, 151936, 40960, tied=True, head_norms=True),
            _model("qwen3-8b", 36, 4096, 12288, 32, 8, 128, 151936, 40960, head_norms=True),
            _model("qwen3-32b", 64, 5120, 25600, 64, 8, 128, 151936, 40960, head_norms=True),
        )
    }
)
"""Presets by name."""
