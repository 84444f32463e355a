"""How a safetensors checkpoint says that it is quantised: config.json's quantization_config, or the files older tools wrote.

Which matrices are quantised shows in the tensors that are there; what the configuration must tell is their layout. Layouts
that nothing here reads are refused by name. Knows configuration keys; it knows no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from inference_stack.artifacts.files import ModelFiles
from inference_stack.core.errors import unsupported_model
from inference_stack.models.config import Raw, integer, mapping

Method = Literal["awq", "gptq", "compressed-tensors", "mxfp4"]

GPTQ_FORMATS = ("gptq", "gptq_v2")
COMPRESSED_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized")
BITS = (4, 8)


@dataclass(frozen=True, slots=True)
class Scheme:
    """A checkpoint's layout. `bits` as the configuration gives them (GPTQ); `zeros_less_one`: GPTQ's first format."""

    method: Method
    bits: int = 4
    zeros_less_one: bool = False


def read_scheme(files: ModelFiles) -> Scheme | None:
    """How the safetensors files of a directory are quantised; None where they are not.

    Raises `unsupported_model` naming a method, format or width that nothing here reads.
    """
    raw = (files.json("config.json") or {}).get("quantization_config")
    if raw is None and (older := files.json("quantize_config.json")) is not None:
        raw = {"quant_method": "gptq"} | older
    if raw is None and (older := files.json("quant_config.json")) is not None:
        raw = {"quant_method": "awq", "bits": older.get("w_bit", 4)} | older
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise unsupported_model(f"The configuration's quantization_config is {raw!r}, not an object.")
    return scheme_of(raw)


def scheme_of(raw: Raw) -> Scheme:
    """The scheme of a quantization_config."""
    method = raw.get("quant_method")
    if method == "awq":
        return _awq(raw)
    if method == "gptq":
        return _gptq(raw)
    if method == "compressed-tensors":
        return _compressed(raw)
    if method == "mxfp4":
        return Scheme("mxfp4")
    raise unsupported_model(
        f"Checkpoints quantised with {method!r} are not supported; use an unquantised one, GGUF, AWQ, GPTQ, "
        f"compressed-tensors or MXFP4."
    )


def _refuse(method: str, what: str) -> NoReturn:
    raise unsupported_model(f"Checkpoints quantised with {method} and {what} are not supported.")


def _awq(raw: Raw) -> Scheme:
    version = str(raw.get("version", "gemm")).lower()
    if version != "gemm":
        _refuse("awq", f"version {version!r} (only 'gemm')")
    if (bits := integer(raw, "bits", 4)) != 4:
        _refuse("awq", f"{bits} bits")
    if not raw.get("zero_point", True):
        _refuse("awq", "no zero points")
    return Scheme("awq")


def _gptq(raw: Raw) -> Scheme:
    form = str(raw.get("checkpoint_format") or "gptq").lower()
    if form not in GPTQ_FORMATS:
        _refuse("gptq", f"checkpoint_format {form!r} (only {', '.join(GPTQ_FORMATS)})")
    if (bits := integer(raw, "bits")) not in BITS:
        _refuse("gptq", f"{bits} bits")
    return Scheme("gptq", bits, zeros_less_one=form == "gptq")


def _compressed(raw: Raw) -> Scheme:
    for key in ("sparsity_config", "transform_config"):
        given = mapping(raw, key)
        if given and given.get("format") != "dense" and given.get("config_groups") != {}:
            _refuse("compressed-tensors", f"a {key}")
    if raw.get("kv_cache_scheme"):
        _refuse("compressed-tensors", "a kv_cache_scheme")
    for name, group in mapping(raw, "config_groups").items():
        if not isinstance(group, Mapping):
            _refuse("compressed-tensors", f"{name} = {group!r}")
        _check_group(raw, group)
    return Scheme("compressed-tensors")


def _check_group(raw: Raw, group: Raw) -> None:
    """A group of modules whose weights can be read. Activations are quantised here in a finer way than any it may ask for."""
    weights: dict[str, Any] = mapping(group, "weights")
    form = group.get("format") or raw.get("format")
    if form not in COMPRESSED_FORMATS:
        _refuse("compressed-tensors", f"format {form!r} (only {', '.join(COMPRESSED_FORMATS)})")
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    if kind != "int" or bits not in BITS:
        _refuse("compressed-tensors", f"weights of type {kind!r} with {bits} bits")
    if (strategy := weights.get("strategy")) not in (None, "tensor", "channel", "group"):
        _refuse("compressed-tensors", f"the strategy {strategy!r}")
    activations = mapping(group, "input_activations")
    if activations and not (activations.get("type", "int") == "int" and activations.get("dynamic")):
        _refuse("compressed-tensors", "activations quantised other than to integers dynamically")
