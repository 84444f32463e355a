"""Which kernels this process may use: a set is trusted once it gave the portable kernels' bits on every operation here.

All sets promise the same bits. A processor, compiler or emulator that breaks the promise is found out at start-up.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from inference_stack.ops.api import Linear, Quantised
from inference_stack.ops.cpu.attention_check import attention_results
from inference_stack.ops.cpu.linear import CpuLinear
from inference_stack.ops.cpu.native import Native
from inference_stack.ops.cpu.rows import CpuRows
from inference_stack.ops.cpu.sampling_check import sampling_results
from inference_stack.ops.workspace import Workspace

PORTABLE = "portable"
ROWS, INPUTS, OUTPUTS = 11, 96, 40


def choose(module: ModuleType, wanted: str = "") -> tuple[str, list[str]]:
    """(name of the fastest trusted kernel set or of the `wanted` one, remarks on sets that failed).

    Raises ValueError when the wanted set does not exist here.
    """
    names = list(module.kernel_names())
    if wanted and wanted not in names:
        raise ValueError(f"this processor has no kernels called {wanted!r}; it has {', '.join(names)}")
    expected = results(module, PORTABLE)
    remarks: list[str] = []
    for name in [wanted] if wanted else names:
        found = results(module, name)
        wrong = sorted(op for op, value in expected.items() if not torch.equal(value, found[op]))
        if not wrong:
            return name, remarks
        remarks.append(f"{name} kernels give other bits than the portable ones in {', '.join(wrong)}")
    return PORTABLE, remarks


def results(module: ModuleType, kernels: str) -> dict[str, Tensor]:
    """What one kernel set computes on fixed pseudo-random inputs, as integers so that NaN compares too."""
    native = Native(module, 1, kernels)
    workspace = Workspace(max_tokens=ROWS, max_samples=ROWS)
    linear, rows = CpuLinear(native, workspace), CpuRows(native, workspace)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, INPUTS, generator=generator) * 3
    norm = torch.rand(INPUTS, generator=generator)
    normed, total = rows.add_rmsnorm(x, x.flip(0).contiguous(), norm, 1e-5)
    found = {
        "rmsnorm": rows.rmsnorm(x, norm, 1e-5),
        "add_rmsnorm": torch.cat((normed, total)),
        "silu": rows.act_mul(x, "silu"),
        "gelu": rows.act_mul(x, "gelu_tanh"),
    }
    for name, weight in _weights(generator).items():
        found[f"linear {name}"] = linear(x, weight)
        found[f"embed {name}"] = rows.embed(torch.arange(ROWS), weight)
    found |= attention_results(native) | sampling_results(native)
    return {name: value.clone().view(torch.int32) for name, value in found.items()}


def _weights(generator: torch.Generator) -> dict[str, Linear]:
    dense = torch.randn(OUTPUTS, INPUTS, generator=generator)
    bias = torch.randn(OUTPUTS, generator=generator)
    found = {
        str(dtype): Linear(weight=dense.to(dtype), bias_N=bias)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    for bits, group, half in ((4, 32, True), (4, 96, False), (8, 32, True), (8, 16, False)):
        width = INPUTS // 2 if bits == 4 else INPUTS
        codes = torch.randint(0, 256, (OUTPUTS, width), generator=generator)
        scale = torch.rand(OUTPUTS, INPUTS // group, generator=generator).to(torch.float16 if half else torch.float32)
        weight = Quantised(
            bits=bits,
            codes=codes.to(torch.uint8) if bits == 4 else (codes - 128).to(torch.int8),
            scale_NG=scale,
            zero_NG=-8 * scale if bits == 4 else None,
            group=group,
        )
        found[f"w{bits}g{group}"] = Linear(weight=weight, bias_N=bias)
    return found
