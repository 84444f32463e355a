"""Models of any supported architecture with weights drawn from a seed: for measuring, where only the shapes matter.

A name and the seed decide a tensor's numbers, in whatever order and by whichever thread it is drawn; devices of different kinds
draw different ones. Values are as small as trained ones, so that activations stay finite through any number of layers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Final

import numpy as np
import torch
from torch import Tensor

from inference_stack.artifacts.canonical import Form, Grouped
from inference_stack.artifacts.revision import REVISION_CHARS
from inference_stack.core.errors import unsupported_model
from inference_stack.models.api import LoadedModel
from inference_stack.models.config import ModelConfig
from inference_stack.models.cuda_lane import usable
from inference_stack.models.fusing import Part
from inference_stack.models.placing import HostPlacer, Placer
from inference_stack.models.registry import ARCHITECTURES
from inference_stack.models.stored import DTYPE_NAMES, Extent, Layout
from inference_stack.models.weights import Prepare, Weights

SPREAD: Final = 0.02
"""Standard deviation of weights and biases; norms are this close to 1."""
CODE_SPREAD: Final = {4: (16**2 / 12) ** 0.5, 8: (255**2 / 12) ** 0.5}
"""Standard deviation of codes that are all equally likely."""
DENSE: Final = ("model.embed_tokens.weight", "lm_head.weight", ".gate.weight", ".router.weight")
"""Ends of names of matrices that quantised checkpoints leave as they are: tables, the output matrix, routers of experts."""


def load_random(
    config: ModelConfig,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    seed: int = 0,
    quantise: str | None = None,
    max_positions: int = 0,
    prepare: Prepare | None = None,
) -> LoadedModel:
    """A model of this configuration with seeded normal weights of `dtype`, drawn on `device`; no file is read.

    `quantise` "w4g128" (or another width of 4 or 8 bits and group) makes projections codes, scales and zeros, as checkpoints do;
    the table, the output matrix and routers stay dense. `max_positions` and `prepare` as for `load_model`. Raises
    `unsupported_model` for a form or a type that cannot be, or that does not divide a projection's inputs.
    """
    if dtype not in DTYPE_NAMES:
        raise unsupported_model(f"Parameters cannot be kept as {dtype}.")
    source = RandomSource(dtype, seed, _form(quantise))
    with closing(_placer(usable(device))) as placer:
        weights = RandomWeights(source, placer, prepare)
        positions = min(max_positions or config.max_positions, config.max_positions)
        try:
            model = ARCHITECTURES[config.architecture](config, weights, positions)
        except BaseException:
            weights.abandon()
            raise
        weights.finish((), lambda what, done, total: None)
    return LoadedModel(
        model=model,
        architecture=config.architecture,
        revision=_revision(config, dtype, placer.device, seed, quantise),
        quantisation=weights.describe(),
        weight_bytes=weights.nbytes,
        eos_tokens=config.eos_tokens,
        linears=tuple(weights.linears),
        experts=tuple(weights.mixtures),
    )


def _form(quantise: str | None) -> Form | None:
    if quantise is None:
        return None
    match = re.fullmatch(r"w([48])g(\d{2,6})", quantise)
    group = int(match[2]) if match else 0
    if match is None or group < 16 or group % 16:
        raise unsupported_model(
            f"Random weights cannot be {quantise!r}; w4g128 and the like, groups in sixteens, can be."
        )
    bits = int(match[1])
    return Form(bits, group, zeros=bits == 4, half=True)


def _placer(device: torch.device) -> Placer:
    return HostPlacer() if device.type == "cpu" else DrawnPlacer(device)


def _revision(config: ModelConfig, *facts: object) -> str:
    """Equal for equal weights: what they are drawn from."""
    return hashlib.sha256(repr((config, facts)).encode()).hexdigest()[:REVISION_CHARS]


class RandomSource:
    """A `Source` that has every tensor that was declared, and draws its numbers when it is read."""

    norms_hold_one = True

    def __init__(self, dtype: torch.dtype, seed: int, form: Form | None) -> None:
        self._dtype, self._seed, self._form = dtype, seed, form
        self._layouts: dict[str, Layout] = {}

    def declare(self, name: str, shape: tuple[int, ...]) -> None:
        """Have a tensor of this name and shape. Raises `unsupported_model` where groups do not divide its columns."""
        form = self._form if len(shape) == 2 and not name.endswith(DENSE) else None
        size = int(np.prod(shape, dtype=np.int64))
        if form is None:
            dtype = torch.float32 if len(shape) == 1 else self._dtype
            self._layouts[name] = Layout(label="random", shape=shape, nbytes=size * dtype.itemsize, dtype=dtype)
            return
        if shape[1] % form.group:
            raise unsupported_model(f"{name} has {shape[1]} inputs, which are no multiple of a group of {form.group}.")
        scales = size // form.group * 2 * (2 if form.zeros else 1)
        self._layouts[name] = Layout(label="random", shape=shape, nbytes=size * form.bits // 8 + scales, form=form)

    def names(self) -> Iterable[str]:
        """Every declared tensor."""
        return self._layouts

    def layout(self, name: str) -> Layout | None:
        """As it was declared; None where it was not."""
        return self._layouts.get(name)

    def extent(self, name: str) -> Extent | None:
        """None: no file has it."""
        return None

    def read(self, name: str, out: Tensor) -> None:
        """Draw a dense tensor, on the device of `out`."""
        generator = torch.Generator(out.device).manual_seed(self._key(name))
        out.normal_(0.0, SPREAD, generator=generator)
        if name.endswith("norm.weight"):
            out += 1.0

    def read_grouped(self, name: str, out: Grouped) -> None:
        """Draw codes that are all equally likely, and scales that bring them to the spread of dense weights."""
        numbers = np.random.default_rng(self._key(name))
        codes = np.frombuffer(numbers.bytes(out.codes.nbytes), out.codes.dtype).reshape(out.codes.shape)
        out.codes[:] = np.maximum(codes, -127) if out.form.bits == 8 else codes
        typical = SPREAD / CODE_SPREAD[out.form.bits]
        out.scale_NG[:] = typical * numbers.uniform(0.5, 1.5, out.scale_NG.shape)
        if out.zero_NG is not None:
            out.zero_NG[:] = -7.5 * out.scale_NG  # the middle of sixteen codes

    def _key(self, name: str) -> int:
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:7], "little")  # what every generator takes


class RandomWeights(Weights):
    """Weights that are there as soon as a model asks for them."""

    def __init__(self, source: RandomSource, placer: Placer, prepare: Prepare | None) -> None:
        super().__init__(source, prepare=prepare, placer=placer)
        self._declare = source.declare

    def _part(self, name: str, shape: tuple[int, ...]) -> Part:
        self._declare(name, shape)
        return super()._part(name, shape)


class DrawnPlacer(HostPlacer):
    """A GPU on which weights are drawn in place, by the stream that will compute with them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def enter_thread(self) -> None:
        """The current device is a property of the thread."""
        torch.cuda.set_device(self.device)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See `Placer`."""
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def put(self, host: Tensor) -> Tensor:
        """See `Placer`."""
        return host.to(self.device)

    def close(self) -> None:
        """See `Placer`."""
        torch.cuda.synchronize(self.device)
