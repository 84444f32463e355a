"""`numerics_id`: the name of everything that decides a result's bits. Equal names compute alike."""

from __future__ import annotations

import hashlib
import json

import torch

from inference_stack.models.api import LoadedModel
from inference_stack.ops.api import Ops


def numerics_id(loaded: LoadedModel, ops: Ops, kv_dtype: str, isa: str) -> str:
    """Hash of model revision, weight form, KV dtype, kernels with their libraries and ISA, and parallel shape."""
    facts = {
        "revision": loaded.revision,
        "quantisation": loaded.quantisation,
        "kv_dtype": kv_dtype,
        "kernels": ops.explain(),
        "torch": torch.__version__,
        "isa": isa,
        "parallel": "tp1pp1",
    }
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
    return f"ni-{digest}"
