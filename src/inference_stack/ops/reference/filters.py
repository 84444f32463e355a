"""top-k, top-p and min-p: which tokens of the tempered distribution may be sampled.

Tokens are ordered by tempered logit, equal ones by id. top-k keeps the first k. top-p then renormalises over those and keeps the
shortest prefix whose probability reaches p: the token that crosses p stays. min-p keeps tokens at least min_p times as likely as
the best. The best token always stays. A row is looked at through its best 1024 tokens first, then 8192, and in full only when
those do not decide; all ways sum in the same order and so agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from inference_stack.ops.reference.ranking import best

PREFIXES: Final = (1024, 8192)


@dataclass(frozen=True, slots=True)
class Kept:
    """For the rows `rows_F` (int64 [F]): candidate ids [F, K], best first, their tempered logits, and which of them stay."""

    rows_F: Tensor
    ids_FK: Tensor
    logits_FK: Tensor
    keep_FK: Tensor


def filtered(tempered_FV: Tensor, top_k_F: Tensor, top_p_F: Tensor, min_p_F: Tensor) -> Iterator[Kept]:
    """The candidates of every row, rows in groups. `tempered_FV`: row maximum 0. Off: top_k 0, top_p 1, min_p 0."""
    vocab = tempered_FV.shape[1]
    limit_F = torch.where(top_k_F > 0, top_k_F.clamp(max=vocab), vocab)
    mass_F = tempered_FV.to(torch.float64).exp_().cumsum(1)[:, -1]
    rows_F = torch.arange(tempered_FV.shape[0], device=tempered_FV.device)
    for width in (*(prefix for prefix in PREFIXES if prefix < vocab), vocab):
        parameters = (limit_F[rows_F], top_p_F[rows_F], min_p_F[rows_F], mass_F[rows_F])
        kept, decided_F = _kept(tempered_FV[rows_F], rows_F, parameters, width)
        yield Kept(*(column[decided_F] for column in (kept.rows_F, kept.ids_FK, kept.logits_FK, kept.keep_FK)))
        rows_F = rows_F[~decided_F]
        if rows_F.shape[0] == 0:
            return


def _kept(
    tempered_FV: Tensor, rows_F: Tensor, parameters: tuple[Tensor, Tensor, Tensor, Tensor], width: int
) -> tuple[Kept, Tensor]:
    """(candidates among the best `width` tokens, whether those decided the row)."""
    limit_F, top_p_F, min_p_F, mass_F = (column[:, None] for column in parameters)
    ids_FK = best(tempered_FV, width)
    logits_FK = tempered_FV.gather(1, ids_FK)
    weight_FK = logits_FK.to(torch.float64).exp_()
    within_FK = torch.arange(width, device=ids_FK.device) < limit_F
    before_FK = (weight_FK * within_FK).cumsum(1)
    top_F = before_FK[:, -1:].clone()
    before_FK = torch.cat([torch.zeros_like(top_F), before_FK[:, :-1]], dim=1)
    whole_F = torch.where(limit_F < tempered_FV.shape[1], top_F, mass_F)
    nucleus_FK = (before_FK < top_p_F.to(torch.float64) * whole_F) | (top_p_F >= 1.0)
    keep_FK = within_FK & nucleus_FK & (weight_FK >= min_p_F.to(torch.float64))
    keep_FK[:, 0] = True
    cut_by_k = limit_F <= width
    cut_by_rest = ~keep_FK[:, -1:] & (limit_F >= tempered_FV.shape[1])
    return Kept(rows_F, ids_FK, logits_FK, keep_FK), (cut_by_k | cut_by_rest)[:, 0]
