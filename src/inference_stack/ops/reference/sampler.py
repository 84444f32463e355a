"""One token per row, in this order: grammar, bias, penalties, bans, temperature, filters, arg-max of Gumbel-perturbed logits.

    allowed    z = -inf where the grammar forbids the token
    bias       z += bias
    penalties  repetition, over prompt and emitted tokens: z / r if z > 0 else z * r (CTRL, arXiv:1909.05858);
               then z -= frequency * n + presence * [n > 0], n counting emitted tokens only
    banned     z = -inf
    greedy     temperature 0: arg-max of z, the lowest id among equals
    otherwise  y = (z - max z) / temperature; y = -inf outside top-k, top-p, min-p; arg-max of y + Gumbel noise in float64
Adding Gumbel noise and taking the arg-max draws from softmax(y). A row's token depends on that row alone. A row with NaN or +inf
among its logits is reported by `finite_S` and sampled as if its logits were 0; nothing is raised.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from inference_stack.ops.api import Sampled, SampleInputs
from inference_stack.ops.reference.filters import filtered
from inference_stack.ops.reference.philox import noise_all, noise_of
from inference_stack.ops.reference.score import score_rows

NOISE_ROWS: Final = 4
"""Rows whose full-vocabulary noise is made at once: bounds memory and keeps it in the cache."""


def sample(logits_SV: Tensor, inputs: SampleInputs) -> Sampled:
    """Chooses one token per row as the file's docstring says, with raw log-probabilities where rows ask for them."""
    finite_S = logits_SV.amax(1) < float("inf")
    tokens_S = _choose(_adjusted(logits_SV, finite_S, inputs), inputs)
    if inputs.max_top < 0:
        return Sampled(tokens_S=tokens_S, finite_S=finite_S)
    scored = score_rows(logits_SV, tokens_S, inputs.top_S >= 0, inputs.max_top)
    return Sampled(
        tokens_S=tokens_S,
        finite_S=finite_S,
        logprob_S=scored.logprob_S,
        rank_S=scored.rank_S,
        top_ids_SK=scored.top_ids_SK,
        top_logprobs_SK=scored.top_logprobs_SK,
    )


def _adjusted(logits_SV: Tensor, finite_S: Tensor, inputs: SampleInputs) -> Tensor:
    """Logits after grammar, bias, penalties and bans; the given ones when no row asks for any of it."""
    touched = [inputs.history_row, inputs.bias_row, inputs.banned_row]
    broken = not bool(finite_S.all())
    if not (broken or inputs.allowed_SW is not None or any(column.numel() for column in touched)):
        return logits_SV
    z_SV = logits_SV.to(torch.float32, copy=True)
    if broken:
        z_SV[~finite_S] = 0.0
    if inputs.allowed_SW is not None:
        z_SV.masked_fill_(~allowed_tokens(inputs.allowed_SW, z_SV.shape[1]), -torch.inf)
    if inputs.bias_row.numel():
        z_SV.index_put_((inputs.bias_row, inputs.bias_token), inputs.bias_value.to(z_SV.dtype), accumulate=True)
    if inputs.history_row.numel():
        _penalise(z_SV, inputs)
    if inputs.banned_row.numel():
        z_SV.index_put_((inputs.banned_row, inputs.banned_token), z_SV.new_tensor(-torch.inf))
    return z_SV


def allowed_tokens(allowed_SW: Tensor, vocab: int) -> Tensor:
    """bool [S, V] of the bits: bit t of word w is token 32w + t."""
    bit = torch.arange(32, dtype=torch.int32, device=allowed_SW.device)
    return ((allowed_SW[:, :, None] >> bit) & 1).view(allowed_SW.shape[0], -1)[:, :vocab].to(torch.bool)


def _penalise(z_SV: Tensor, inputs: SampleInputs) -> None:
    """Changes the logits of tokens that a row's history holds, each (row, token) once."""
    vocab = z_SV.shape[1]
    pair_N, index = torch.unique(inputs.history_row * vocab + inputs.history_token, return_inverse=True)
    emitted_N = torch.zeros(pair_N.shape[0], device=z_SV.device)
    emitted_N.index_add_(0, index, inputs.history_is_output.to(torch.float32))
    row_N = pair_N // vocab
    flat = z_SV.view(-1)
    z_N = flat.index_select(0, pair_N)
    repetition_N = inputs.repetition_S[row_N]
    z_N = torch.where(z_N > 0, z_N / repetition_N, z_N * repetition_N)
    z_N -= inputs.frequency_S[row_N] * emitted_N
    z_N -= inputs.presence_S[row_N] * (emitted_N > 0)
    flat.index_copy_(0, pair_N, z_N)


def _choose(z_SV: Tensor, inputs: SampleInputs) -> Tensor:
    """Tokens int64 [S] from adjusted logits."""
    tokens_S = z_SV.argmax(1)
    if not inputs.any_random:
        return tokens_S
    random_S = inputs.temperature_S > 0
    if not inputs.any_filtered:
        _draw_all(z_SV, random_S.nonzero()[:, 0], inputs, tokens_S)
        return tokens_S
    vocab = z_SV.shape[1]
    by_k_S = (inputs.top_k_S > 0) & (inputs.top_k_S < vocab)
    filtered_S = by_k_S | (inputs.top_p_S < 1.0) | (inputs.min_p_S > 0.0)
    _draw_all(z_SV, (random_S & ~filtered_S).nonzero()[:, 0], inputs, tokens_S)
    _draw_filtered(z_SV, (random_S & filtered_S).nonzero()[:, 0], inputs, tokens_S)
    return tokens_S


def tempered(z_RV: Tensor, temperature_R: Tensor) -> Tensor:
    """(z - max z) / temperature: the best token is at 0, so that no temperature overflows. All -inf stays so."""
    top_R1 = z_RV.amax(1, keepdim=True)
    top_R1 = torch.where(top_R1 == -torch.inf, 0.0, top_R1)
    return (z_RV - top_R1).div_(temperature_R[:, None])


def _draw_all(z_SV: Tensor, rows: Tensor, inputs: SampleInputs, tokens_S: Tensor) -> None:
    """Draws for `rows` from their whole vocabulary, into `tokens_S`."""
    for part in rows.split(NOISE_ROWS):
        y_RV = tempered(z_SV.index_select(0, part), inputs.temperature_S[part])
        noise = noise_all(inputs.seed_S[part], inputs.position_S[part], inputs.choice_S[part], z_SV.shape[1])
        tokens_S[part] = noise.add_(y_RV).argmax(1)


def _draw_filtered(z_SV: Tensor, rows: Tensor, inputs: SampleInputs, tokens_S: Tensor) -> None:
    """Draws for `rows` among the tokens that their filters keep, into `tokens_S`."""
    if rows.shape[0] == 0:
        return
    y_FV = tempered(z_SV.index_select(0, rows), inputs.temperature_S[rows])
    for kept in filtered(y_FV, inputs.top_k_S[rows], inputs.top_p_S[rows], inputs.min_p_S[rows]):
        part = rows[kept.rows_F]
        noise = noise_of(inputs.seed_S[part], inputs.position_S[part], inputs.choice_S[part], kept.ids_FK)
        perturbed = noise.add_(kept.logits_FK).masked_fill_(~kept.keep_FK, -torch.inf)
        winners = perturbed == perturbed.amax(1, keepdim=True)
        tokens_S[part] = torch.where(winners, kept.ids_FK, z_SV.shape[1]).amin(1)
