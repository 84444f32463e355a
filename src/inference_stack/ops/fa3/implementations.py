"""FlashAttention-3 as the registry knows it: taken only by name, and refused in words where it cannot or may not serve."""

from __future__ import annotations

from typing import Final

import torch

from inference_stack.core.kv_spec import KvGroupSpec
from inference_stack.ops.fa3 import wheel
from inference_stack.ops.fa3.attention import Fa3Attention
from inference_stack.ops.fa3.selfcheck import disagreement
from inference_stack.ops.fa3.wheel import DTYPES, HEAD_DIMS, Attend
from inference_stack.ops.implementation import TOKEN_ROWS, Implementation
from inference_stack.ops.triton.settings import TritonSettings
from inference_stack.ops.workspace import Workspace

NAME: Final = "fa3"
SPEED: Final = 25


def fa3_implementations(settings: TritonSettings) -> tuple[Implementation, ...]:
    """`attend`, reading what Triton's `rope_store` writes."""
    fa3 = Fa3(settings)
    return (
        Implementation(
            op="attend",
            name=NAME,
            speed=SPEED,
            refuses=fa3.refuses,
            build=fa3.build,
            graphs=True,
            kv_layout=TOKEN_ROWS,
            kv_dtypes=frozenset({DTYPES[settings.dtype]} if settings.dtype in DTYPES else ()),
            refuses_group=fa3.refuses_group,
            by_name=True,
        ),
    )


class Fa3:
    """The package on one device: what it refuses there is found out once."""

    def __init__(self, settings: TritonSettings) -> None:
        self._settings = settings
        self._run: Attend | None = None
        self._verdicts: dict[tuple[torch.device, tuple[int, ...], bool], str | None] = {}
        self._device = torch.device("cpu")

    def refuses(self, device: torch.device) -> str | None:
        """Why it cannot attend on a device, or None. The first time it is compared with the reference there."""
        if self._settings.deterministic:
            return "deterministic is on, and its order of summation follows from the batch"
        if self._settings.dtype not in DTYPES:
            return f"it computes in fp16 and bf16, not in {self._settings.dtype}"
        refusal = wheel.refuses_card(device)
        if refusal is not None:
            return refusal
        found = wheel.attend()
        if isinstance(found, str):
            return found
        self._run, self._device = found, device
        return self._verdict(HEAD_DIMS, windowed=False)

    def refuses_group(self, spec: KvGroupSpec) -> str | None:
        """Why it cannot attend to layers of this shape on the device for which it was chosen, or None."""
        if spec.head_dim not in HEAD_DIMS:
            sizes = ", ".join(map(str, HEAD_DIMS))
            return f"{spec.name} has heads of {spec.head_dim}; it knows {sizes}"
        return None if spec.window is None else self._verdict((spec.head_dim,), windowed=True)

    def build(self, _: Workspace) -> Fa3Attention:
        """The op. Raises RuntimeError where nobody has asked whether it can run."""
        if self._run is None:
            raise RuntimeError("fa3 was not asked whether it can run")
        return Fa3Attention(self._run)

    def _verdict(self, head_dims: tuple[int, ...], *, windowed: bool) -> str | None:
        key = self._device, head_dims, windowed
        if key not in self._verdicts:
            run = self._run
            self._verdicts[key] = (
                "it was not loaded"
                if run is None
                else disagreement(run, self._device, self._settings.dtype, head_dims, windowed=windowed)
            )
        return self._verdicts[key]
