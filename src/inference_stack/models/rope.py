"""Rotary position tables (arXiv:2104.09864) and the ways of stretching them to longer contexts.

Computed once, in fp32, in the order of operations of the models' own implementations, because a frequency that differs
in its last bit is another angle at position 100,000. Knows angles only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inference_stack.models.config import RopeConfig
from inference_stack.ops.api import Rope


def rope_tables(config: RopeConfig, head_dim: int, positions: int) -> Rope:
    """Cosines and sines for positions 0 … positions-1, attention factor folded in; both halves of E hold the same
    angles.
    """
    angle_PF = torch.arange(positions).float()[:, None] * frequencies(config, head_dim)
    factor = _attention_factor(config)
    angle_PE = torch.cat((angle_PF, angle_PF), dim=-1)
    return Rope(cos_PE=angle_PE.cos() * factor, sin_PE=angle_PE.sin() * factor)


def frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position of each pair of dimensions, fp32 [head_dim / 2]."""
    powers = config.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    plain = 1.0 / powers
    if config.divisors is not None:
        plain = plain / torch.tensor(config.divisors)
    if config.kind == "linear":
        return plain / config.factor
    if config.kind == "llama3":
        return _llama3(config, plain)
    if config.kind == "yarn":
        return _yarn(config, powers, head_dim)
    return plain


def _llama3(config: RopeConfig, plain: Tensor) -> Tensor:
    """Llama 3.1: long waves are stretched, short ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    longest, shortest = (config.original_positions / f for f in (config.low_freq_factor, config.high_freq_factor))
    blend = config.original_positions / wavelength - config.low_freq_factor
    blend = blend / (config.high_freq_factor - config.low_freq_factor)
    between = (1 - blend) * plain / config.factor + blend * plain
    stretched = torch.where(wavelength > longest, plain / config.factor, plain)
    return torch.where((wavelength >= shortest) & (wavelength <= longest), between, stretched)


def _yarn(config: RopeConfig, powers: Tensor, head_dim: int) -> Tensor:
    """YaRN (arXiv:2309.00071): interpolate slow dimensions, keep fast ones, ramp between."""
    low, high = (_rotations_to_dim(config, rotations, head_dim) for rotations in (config.beta_fast, config.beta_slow))
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (config.factor * powers) * (1 - keep) + 1.0 / powers * keep


def _rotations_to_dim(config: RopeConfig, rotations: float, head_dim: int) -> float:
    """The dimension that turns this often over the original context."""
    turns = config.original_positions / (rotations * 2 * math.pi)
    return head_dim * math.log(turns) / (2 * math.log(config.theta))


def _attention_factor(config: RopeConfig) -> float:
    """What YaRN multiplies cosines and sines with; 1 for every other kind."""
    if config.kind != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor
    if config.mscale and config.mscale_all_dim:
        return _mscale(config.factor, config.mscale) / _mscale(config.factor, config.mscale_all_dim)
    return _mscale(config.factor, 1.0)


def _mscale(factor: float, multiplier: float) -> float:
    return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0
