"""How long devices take: presets from data sheets, or models fitted to measured steps.

`cost_from` reads what a configuration says; the rest can be used directly. Nothing here queues, waits or has a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from inference_stack.core.errors import InferenceError, invalid
from inference_stack.simulator.api import CostModel
from inference_stack.simulator.cost.architectures import ARCHITECTURES, WEIGHT_FORMATS
from inference_stack.simulator.cost.fitted import FittedCost, fit, from_coefficients
from inference_stack.simulator.cost.hardware import HARDWARE
from inference_stack.simulator.cost.roofline import RooflineCost
from inference_stack.simulator.cost.samples import read_samples

Preset = TypeVar("Preset")

KV_DTYPES: Final[Mapping[str, str]] = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "int8": "int8",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
}
"""How KV may be stored, in short and as the engine's settings call it."""
_PRESET_KEYS: Final = ("hardware", "model", "weights", "kv", "tensor_parallel")


def cost_from(plain: Mapping[str, Any], folder: Path | None = None) -> CostModel:
    """The cost model that a configuration describes, in one of four ways:

        {hardware: h200, model: llama-3.1-8b, weights: bf16, kv: fp16, tensor_parallel: 2}
        {samples: FILE}        {fitted: FILE}        {linear: {base: 0.004, per_token: 0.0001}}

    Files are relative to `folder`. Raises `InferenceError` naming a key or value that does not exist, and those that do.
    """
    if not isinstance(plain, Mapping):
        raise invalid(f"a cost model is described by settings by name, not by {plain!r}", param="cost")
    kinds: dict[str, Callable[[Any], CostModel]] = {
        "samples": lambda name: fit(read_samples(_file(name, "samples", folder)))[0],
        "fitted": lambda name: FittedCost.load(_file(name, "fitted", folder)),
        "linear": _linear,
    }
    kind = next((kind for kind in kinds if kind in plain), None)
    if kind is None:
        return _preset(plain)
    _only(plain, (kind,))
    return kinds[kind](plain[kind])


def _preset(plain: Mapping[str, Any]) -> RooflineCost:
    _only(plain, _PRESET_KEYS, ("samples", "fitted", "linear"))
    devices = plain.get("tensor_parallel", 1)
    if type(devices) is not int:
        raise invalid(f"tensor_parallel is a whole number of devices, not {devices!r}", param="tensor_parallel")
    return RooflineCost(
        _pick(HARDWARE, plain.get("hardware"), "hardware"),
        _pick(ARCHITECTURES, plain.get("model"), "model"),
        _pick(WEIGHT_FORMATS, plain.get("weights", "bf16"), "weights"),
        _pick(KV_DTYPES, plain.get("kv", "fp16"), "kv"),
        devices,
    )


def _linear(plain: Any) -> FittedCost:
    if not isinstance(plain, Mapping):
        raise invalid(f"linear expects coefficients by name, not {plain!r}", param="linear")
    return from_coefficients(plain, "linear")


def _file(name: Any, key: str, folder: Path | None) -> Path:
    if not isinstance(name, str) or not name or "\0" in name:
        raise invalid(f"{key} expects the name of a file, not {name!r}", param=key)
    return (folder or Path()) / name


def _pick(presets: Mapping[str, Preset], name: Any, key: str) -> Preset:
    if not isinstance(name, str) or name not in presets:
        raise _unknown(key, name, presets)
    return presets[name]


def _only(plain: Mapping[str, Any], known: Iterable[str], alternatives: Iterable[str] = ()) -> None:
    for key in plain:
        if key not in known:
            raise _unknown("key", key, (*known, *alternatives))


def _unknown(key: str, value: Any, known: Iterable[str]) -> InferenceError:
    said = f"cost model: {key} is missing" if value is None else f"cost model: there is no {key} {value!r}"
    return invalid(f"{said}; there are {', '.join(known)}", param=str(key))
