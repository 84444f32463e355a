"""What an op is given and what it gives back. Model files call `Ops` and nothing else.

Every implementation obeys one law: a row's result depends on that row's inputs alone. Not on its neighbours, its place in
the batch, how its prompt was chunked, or whether its KV came from the prefix cache. Bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Activation = Literal["silu", "gelu_tanh"]
ExpertActivation = Literal["silu", "gelu_tanh", "clamped_swiglu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """A weight [N, K] in the canonical group-quantised form: w[n, k] = code[n, k] * scale[n, k // group] + zero[n, k // group].

    `codes`: with `bits` 4, uint8 [N, K/2], two codes 0 … 15 to a byte, the low nibble being the lower k; with `bits` 8, int8
    [N, K]. `scale_NG` and `zero_NG` [N, K/group] are both fp16 where that is exact for every value of the file, else both fp32;
    `zero_NG` is minus the zero point times the scale, None where weights are symmetric. `group` is a multiple of 16 that divides K.
    `order_K` int32: stored column k multiplies x[:, order_K[k]] (act-order checkpoints); None: the identity.

    CPU kernels multiply with quantised activations (`ops/reference/quantised.py` defines how), GPU kernels with 16-bit ones.
    """

    bits: int
    codes: Tensor
    scale_NG: Tensor
    zero_NG: Tensor | None
    group: int
    order_K: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.codes.shape[0], self.codes.shape[1] * (2 if self.bits == 4 else 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all its parts."""
        parts = (self.codes, self.scale_NG, self.zero_NG, self.order_K)
        return sum(part.nbytes for part in parts if part is not None)


class Prepared(Protocol):
    """A weight [N, K] in an implementation's own layout."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        ...

    def rows(self, index_T: Tensor) -> Tensor:
        """Some rows of the weight, fp32 [T, K]."""
        ...


@dataclass(slots=True, kw_only=True)
class Linear:
    """A projection: y = x @ weight.T + bias_N. As an embedding table: its rows.

    `weight` is dense [N, K] (fp32, fp16 or bf16) or `Quantised`, until `Ops.prepare` replaces it by the layout that the kernels
    want. `looked_up` says that `Ops.embed` reads it.
    """

    weight: Tensor | Quantised | Prepared
    bias_N: Tensor | None = None
    looked_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mxfp4:
    """Matrices [X, N, K] in microscaling fp4 (OCP MX specification 1.0): w = e2m1 code * 2 ** (scale - 127).

    `blocks` uint8 [X, N, K/2], two codes to a byte, the low nibble being the lower k; `scales` uint8 [X, N, K/32], one for 32
    neighbouring columns.
    """

    blocks: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, N, K)."""
        experts, rows, width = self.blocks.shape
        return experts, rows, width * 2

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.blocks.nbytes + self.scales.nbytes


@dataclass(slots=True, kw_only=True)
class Experts:
    """A layer's X gated MLPs, of which every token goes through `top_k`, and how these are chosen and weighed.

    `gate_up` [X, 2·I, D] holds gate rows, then up rows; `down` is [X, D, I]. Each is one dense tensor (fp32, fp16 or bf16), or
    `Mxfp4`, or one `Linear` an expert, with that expert's bias; `Ops.prepare` may replace them. `gate_up_bias_XN` and
    `down_bias_XD`, fp32, belong to stacked weights.

    A chosen expert's weight is its share in the softmax of the router's logits over all experts, or with `normalised` over the
    chosen ones alone. "clamped_swiglu" is gate · sigmoid(`alpha` · gate) · (up + 1), gate being at most `limit` and up within
    ± `limit` (arXiv:2508.10925).
    """

    gate_up: ExpertWeights
    down: ExpertWeights
    top_k: int
    normalised: bool
    activation: ExpertActivation = "silu"
    alpha: float = 1.702
    limit: float = 7.0
    gate_up_bias_XN: Tensor | None = None
    down_bias_XD: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all weights and biases."""
        biases = [bias for bias in (self.gate_up_bias_XN, self.down_bias_XD) if bias is not None]
        linears = [one for side in (self.gate_up, self.down) if isinstance(side, tuple) for one in side]
        biases += [one.bias_N for one in linears if one.bias_N is not None]
        stacks = [side for side in (self.gate_up, self.down) if not isinstance(side, tuple)]
        return sum(part.nbytes for part in (*biases, *stacks)) + sum(one.weight.nbytes for one in linears)


ExpertWeights = Tensor | Mxfp4 | tuple[Linear, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary tables, fp32 [max positions, E]: cosines and sines for the half-rotation layout (x1 | x2), scaling folded in."""

    cos_PE: Tensor
    sin_PE: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """How one attention layer splits its fused projection [T, (H + 2G)·E] and prepares q and k before attention."""

    q_heads: int
    kv_heads: int
    head_dim: int
    rope: Rope
    q_norm_E: Tensor | None = None
    k_norm_E: Tensor | None = None
    norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayer:
    """One layer's KV memory inside a device's arena, for one (model, group).

    The unit (K and V of one block) behind block-table entry e starts at byte `e * granule_bytes + offset_bytes` of `arena`
    (uint8 [bytes]). For each KV head it holds keys and values of 16 tokens in `dtype`, with int8 also a scale fp16 of each token's
    key and value: value = code * scale. How they lie there is agreed between the op that writes and the one that reads
    (`Implementation.kv_layout`); other code only moves whole units. `unit_bytes` and `offset_bytes` are multiples of
    `granule_bytes`.
    `group` selects the block table; `window` is in tokens (None: full).
    """

    arena: Tensor
    group: int
    offset_bytes: int
    granule_bytes: int
    unit_bytes: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTable:
    """One KV group's addresses for a step. `entry_RB` int64: arena entry of each row's blocks (0 where there is none).

    `entry_T` int64 is the entry of the block that receives token t's K and V, `offset_T` int64 its place there (0 … 15).
    """

    entry_RB: Tensor
    entry_T: Tensor
    offset_T: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """One step as device tensors. Rows are contiguous: row r owns tokens cu_q[r] … cu_q[r+1]-1, positions ascending by 1.

    `tokens_T`, `positions_T`, `row_T` int64 [T]; `context_R` int64 [R]: tokens of KV the row's last query may see (its
    start + its queries); `cu_q_X` int64 [R+1] are the bounds. `cu_q` and `context` are the same facts as host integers, so that
    no op reads the device to decide what to launch. `kv[layer]` is the layer's memory, `tables[group]` the block tables.
    `sampled_S` int64 [S]: the tokens whose logits are wanted.
    """

    tokens_T: Tensor
    positions_T: Tensor
    row_T: Tensor
    context_R: Tensor
    cu_q_X: Tensor
    cu_q: tuple[int, ...]
    context: tuple[int, ...]
    kv: tuple[KvLayer, ...]
    tables: tuple[GroupTable, ...]
    sampled_S: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleInputs:
    """Parameters of each sampled position, columns [S]; sparse lists are (row in 0…S-1, token) pairs.

    `seed_S` int64 holds the unsigned 64-bit seed's bits; `position_S` is the index in the whole sequence (prompt and emitted)
    that the sampled token will take; noise is Philox4x32-10 with key = seed, counter = (token // 4, position, choice, 0).
    `temperature_S` 0 is greedy. `history_*`: every known token of each penalised row, `history_is_output` telling emitted tokens
    from the prompt's (presence and frequency count emitted tokens only; repetition counts both). `bias_*` adds to logits,
    `banned_*` removes a token (stops before `min_tokens`). `allowed_SW` int32 [S, ceil(V/32)]: grammar bits, bit t of word w is
    token 32w+t, or None. `top_S` int64: how many alternatives to report (-1: no logprobs for the row).
    Host flags tell what to launch: `any_*`; `max_top` is the largest of `top_S`.
    """

    temperature_S: Tensor
    top_k_S: Tensor
    top_p_S: Tensor
    min_p_S: Tensor
    repetition_S: Tensor
    presence_S: Tensor
    frequency_S: Tensor
    seed_S: Tensor
    choice_S: Tensor
    position_S: Tensor
    top_S: Tensor
    history_row: Tensor
    history_token: Tensor
    history_is_output: Tensor
    bias_row: Tensor
    bias_token: Tensor
    bias_value: Tensor
    banned_row: Tensor
    banned_token: Tensor
    allowed_SW: Tensor | None = None
    any_random: bool = False
    any_filtered: bool = False
    max_top: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """`tokens_S` int64; `finite_S` bool: the row's logits were all finite (NaN or +inf anywhere fails the row).

    With `max_top` ≥ 0 also, under the raw distribution (log-softmax of the model's logits before any change): `logprob_S`
    fp32 and `rank_S` int64 (from 1) of the chosen token, `top_ids_SK` int64 and `top_logprobs_SK` fp32, best first,
    K = max_top (ties: lower id first).
    """

    tokens_S: Tensor
    finite_S: Tensor
    logprob_S: Tensor | None = None
    rank_S: Tensor | None = None
    top_ids_SK: Tensor | None = None
    top_logprobs_SK: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Raw log-probabilities of given tokens: the same columns as `Sampled`'s, for prompt tokens."""

    logprob_S: Tensor
    rank_S: Tensor
    top_ids_SK: Tensor
    top_logprobs_SK: Tensor


class Ops(Protocol):
    """The operations a model step is made of. Outputs live in the step's workspace until the last reference is dropped."""

    def embed(self, tokens_T: Tensor, table: Linear, scale: float = 1.0) -> Tensor:
        """x_TD = table[tokens] * scale, fp32."""
        ...

    def rmsnorm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x²) + eps) * weight, in fp32. (arXiv:1910.07467)"""
        ...

    def add_rmsnorm(self, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """s = x + residual; (rmsnorm(s), s)."""
        ...

    def linear(self, x_TK: Tensor, weight: Linear) -> Tensor:
        """y_TN = x @ W.T + b."""
        ...

    def prepare(self, weight: Linear | Experts) -> None:
        """Lay a weight out for `linear` and `embed`, or experts for `experts`, in place of what was loaded."""
        ...

    def rope_store(self, qkv_TX: Tensor, heads: HeadSpec, kv: KvLayer, step: StepInputs) -> Tensor:
        """Split the fused projection, norm q and k per head when asked, rotate both by position, write k and v to the arena.

        Returns q_THE. The only op that writes KV memory.
        """
        ...

    def attend(
        self,
        q_THE: Tensor,
        kv: KvLayer,
        step: StepInputs,
        scale: float,
        softcap: float = 0.0,
        sinks_H: Tensor | None = None,
    ) -> Tensor:
        """Causal attention of every query over its row's KV (blocks of `step.tables[kv.group]`), within `kv.window` if set.

        One path for prefill, chunk, decode and verify; keys are reduced in fixed tiles at absolute positions. A query at
        position p with window w sees positions p-w+1 … p. With a `softcap` c, a score s becomes c tanh(s / c). `sinks_H`
        fp32 is one more score of every query of a head, which takes its share of the softmax and has no value
        (arXiv:2309.17453). Memory that no query may see is never allowed to matter, even NaN.
        Returns o [T, H·E].
        """
        ...

    def act_mul(self, gate_up_TX: Tensor, kind: Activation) -> Tensor:
        """act(gate) * up of a fused [T, 2·I] projection; [T, I]."""
        ...

    def experts(self, x_TD: Tensor, router_logits_TX: Tensor, experts: Experts) -> Tensor:
        """y_TD: each token through the `top_k` experts of highest logits (ties: lower id first), their outputs weighed and summed
        in an order that is the token's own. (arXiv:1701.06538, arXiv:2401.04088)

        A token whose logits are not all finite becomes NaN, and touches no other.
        """
        ...

    def select(self, x_TD: Tensor, rows_S: Tensor) -> Tensor:
        """x[rows]."""
        ...

    def sample(self, logits_SV: Tensor, inputs: SampleInputs) -> Sampled:
        """Choose one token per row: grammar, bias, penalties, bans, temperature, top-k, top-p, min-p, then arg-max of
        Gumbel-perturbed logits."""
        ...

    def score(self, logits_SV: Tensor, tokens_S: Tensor, top: int) -> Scored:
        """Raw log-probabilities of `tokens_S` with `top` alternatives, for prompt logprobs."""
        ...

    def explain(self) -> dict[str, str]:
        """For each op, which implementation was chosen and why."""
        ...
