"""The self-check's part for sampling: rows that between them use every column, over a vocabulary that fills no vector."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from inference_stack.ops.api import SampleInputs
from inference_stack.ops.cpu.native import Native
from inference_stack.ops.cpu.sampler import CpuSampler

ROWS: Final = 8
VOCABULARY: Final = 517
TOP: Final = 5


def sampling_results(native: Native) -> dict[str, Tensor]:
    """What one kernel set samples and scores: tensors by name, from fixed pseudo-random inputs."""
    generator = torch.Generator().manual_seed(3)
    logits_SV = torch.randn(ROWS, VOCABULARY, generator=generator) * 4
    sampler = CpuSampler(native)
    sampled = sampler.sample(logits_SV, _inputs(generator))
    scored = sampler.score(logits_SV, sampled.tokens_S, TOP)
    found = {"sampled tokens": sampled.tokens_S}
    for name, one in (("sampled", sampled), ("scored", scored)):
        for column in ("logprob_S", "rank_S", "top_ids_SK", "top_logprobs_SK"):
            value = getattr(one, column)
            assert value is not None
            found[f"{name} {column}"] = value
    return found


def _inputs(generator: torch.Generator) -> SampleInputs:
    """A greedy row, a plain random one, and one for each filter, penalty, bias and ban."""
    row = torch.arange(ROWS)

    def only(number: int, value: float, other: float) -> Tensor:
        return torch.where(row == number, value, other)

    tokens = torch.randint(0, VOCABULARY, (3, ROWS), generator=generator)
    return SampleInputs(
        temperature_S=only(0, 0.0, 0.8),
        top_k_S=torch.where(row == 2, 20, 0),
        top_p_S=only(3, 0.7, 1.0),
        min_p_S=only(4, 0.05, 0.0),
        repetition_S=only(5, 1.3, 1.0),
        presence_S=only(6, 0.5, 0.0),
        frequency_S=only(6, 0.25, 0.0),
        seed_S=row * 7919 - 3,
        choice_S=row % 2,
        position_S=row + 40,
        top_S=row % (TOP + 2) - 1,
        history_row=torch.where(row < ROWS // 2, 5, 6),
        history_token=tokens[0],
        history_is_output=row % 2 == 0,
        bias_row=torch.full((ROWS,), 7),
        bias_token=tokens[1],
        bias_value=torch.linspace(-9, 9, ROWS),
        banned_row=row,
        banned_token=tokens[2],
        any_random=True,
        any_filtered=True,
        max_top=TOP,
    )
