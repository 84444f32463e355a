"""Log-probabilities under the model's raw distribution: log-softmax of untouched logits, ranks, and the best alternatives.

Used for a sampled token and for prompt tokens alike. Rank 1 is the most likely token; equal logits rank by id, lower first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inference_stack.ops.api import Scored
from inference_stack.ops.reference.ranking import best, rank_of


def score(logits_SV: Tensor, tokens_S: Tensor, top: int) -> Scored:
    """What the raw distribution says about `tokens_S`, with `top` alternatives (0: none)."""
    logprobs_SV = torch.log_softmax(logits_SV.to(torch.float32), dim=-1)
    ids_SK = best(logits_SV, min(top, logits_SV.shape[1]))
    return Scored(
        logprob_S=logprobs_SV.gather(1, tokens_S[:, None])[:, 0],
        rank_S=rank_of(logits_SV, tokens_S),
        top_ids_SK=ids_SK,
        top_logprobs_SK=logprobs_SV.gather(1, ids_SK),
    )


def score_rows(logits_SV: Tensor, tokens_S: Tensor, wanted_S: Tensor, top: int) -> Scored:
    """As `score` for the rows of `wanted_S` (bool); the others hold NaN, rank 0 and id -1."""
    rows = wanted_S.nonzero()[:, 0]
    found = score(logits_SV.index_select(0, rows), tokens_S.index_select(0, rows), top)
    return Scored(
        logprob_S=_spread(found.logprob_S, wanted_S, rows, float("nan")),
        rank_S=_spread(found.rank_S, wanted_S, rows, 0),
        top_ids_SK=_spread(found.top_ids_SK, wanted_S, rows, -1),
        top_logprobs_SK=_spread(found.top_logprobs_SK, wanted_S, rows, float("nan")),
    )


def _spread(values: Tensor, wanted_S: Tensor, rows: Tensor, missing: float) -> Tensor:
    out = values.new_full((wanted_S.shape[0], *values.shape[1:]), missing)
    return out.index_copy_(0, rows, values)
