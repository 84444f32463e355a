"""humming-kernels as the registry knows it: taken only by name, and refused in words where it cannot or may not serve."""

from __future__ import annotations

from typing import Final

import torch

from inference_stack.ops.api import Quantised
from inference_stack.ops.humming import wheel
from inference_stack.ops.humming.linear import HummingLinear, compare, laid_out
from inference_stack.ops.humming.wheel import Humming
from inference_stack.ops.implementation import Implementation
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

NAME: Final = "humming"
SPEED: Final = 25
SIDES: Final = (256, 512)
FORMS: Final = ((4, 128, True), (4, 32, False), (8, 32, False))
"""Bits, group, and whether zeros differ, of the weights of the self-check; each size of a model is compared again."""


def humming_implementations(settings: TritonSettings) -> tuple[Implementation, ...]:
    """`linear`, of which everything but quantised weights is Triton's."""
    one = HummingChoice(settings)
    return (
        Implementation(
            op="linear", name=NAME, speed=SPEED, refuses=one.refuses, build=one.build, graphs=True, by_name=True
        ),
    )


class HummingChoice:
    """The package on one device: what it refuses there is found out once."""

    def __init__(self, settings: TritonSettings) -> None:
        self._settings = settings
        self._humming: Humming | None = None
        self._verdicts: dict[torch.device, str | None] = {}

    def refuses(self, device: torch.device) -> str | None:
        """Why it cannot multiply on a device, or None. The first time it is compared with the reference there."""
        settings = self._settings
        if settings.deterministic:
            return "deterministic is on, and its order of summation follows from the number of rows"
        if settings.weights != "native":
            return f"weights are to be executed in {settings.weights}"
        if settings.dtype not in wheel.OLDEST:
            return f"it multiplies fp16 and bf16, not {settings.dtype}"
        refusal = wheel.refuses_card(device, settings.dtype)
        if refusal is not None:
            return refusal
        found = wheel.humming()
        if isinstance(found, str):
            return found
        self._humming = found
        if device not in self._verdicts:
            self._verdicts[device] = disagreement(found, device, settings.dtype)
        return self._verdicts[device]

    def build(self, workspace: Workspace) -> HummingLinear:
        """The op. Raises RuntimeError where nobody has asked whether it can run."""
        if self._humming is None:
            raise RuntimeError("humming was not asked whether it can run")
        return HummingLinear(workspace, self._settings, self._humming)


def disagreement(humming: Humming, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the package is not to be trusted, or None: its products of small weights of each form beside the reference's."""
    draw = torch.Generator().manual_seed(0)
    for bits, group, zeros in FORMS:
        weight, bias_N = _drawn(draw, bits, group, zeros), torch.randn(SIDES[0], generator=draw)
        try:
            compare(laid_out(humming, weight, bias_N, device, dtype), weight, bias_N)
        except Exception as error:  # it compiles, and launches what it compiled: anything may be raised
            return f"its self-check failed: {type(error).__name__}: {error}"
    return None


def _drawn(draw: torch.Generator, bits: int, group: int, zeros: bool) -> Quantised:
    """Random codes over their whole range; zeros that differ, or in the middle."""
    outputs, depth = SIDES
    codes = torch.randint(0, 256, (outputs, depth * bits // 8), generator=draw)
    scale_NG = (torch.rand(outputs, depth // group, generator=draw) * 0.1 + 0.01).half()
    zero_NG = torch.randint(0, 16, scale_NG.shape, generator=draw) if zeros else torch.full(scale_NG.shape, 8)
    return Quantised(
        bits=bits,
        codes=codes.to(torch.uint8) if bits == 4 else (codes - 128).to(torch.int8),
        scale_NG=scale_NG.float(),
        zero_NG=-zero_NG * scale_NG.float() if bits == 4 else None,
        group=group,
    )
