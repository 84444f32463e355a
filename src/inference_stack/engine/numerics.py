"""`numerics_id`: the name of everything that decides a result's bits. Equal names compute alike."""

from __future__ import annotations

import hashlib
import json
import secrets

from inference_stack.models.api import LoadedModel
from inference_stack.ops.facade import EXPERT_OPS, BoundOps


def numerics_id(loaded: LoadedModel, ops: BoundOps, kv_dtype: str, isa: str, alike: bool = True) -> str:
    """Hash of model revision, weight form, KV dtype, what decides each op's bits, and parallel shape.

    `isa` counts only where an op's bits depend on it: torch's do, the native kernels' do not. Where a row's bits depend on the
    batch it is in (not `alike`), no two engines compute alike: every one has a name of its own.
    """
    facts = {
        "revision": loaded.revision,
        "quantisation": loaded.quantisation,
        "kv_dtype": kv_dtype,
        "kernels": ops.numerics(isa, without=() if loaded.experts else EXPERT_OPS),
        "parallel": "tp1pp1",
    }
    if not alike:
        facts["engine"] = secrets.token_hex(8)
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
    return f"ni-{digest}"
