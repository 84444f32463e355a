"""Keeps nodes out that mean other words by a model's tokens: a stream that moved there would go on in another language.

Knows digests; how they are made is the nodes' business. An empty one says nothing, and is accepted: external servers and nodes of
an older version do not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from inference_stack.core.errors import SERVER_ERROR, ErrorInfo
from inference_stack.core.fleet import ModelInfo, NodeState


class Vocabularies:
    """Each model's: the gateway's `own`, where it is known, otherwise that of the first node that tells."""

    def __init__(self, own: Mapping[str, str]) -> None:
        self._known = {name: digest for name, digest in own.items() if digest}

    def accepted(self, state: NodeState) -> tuple[NodeState, tuple[str, ...]]:
        """The state without the models that are refused, and for each of them why. A node of which nothing is left has an error."""
        refused = {info.name: self._refusal(state.node, info) for info in state.models if self._foreign(info)}
        if not refused:
            return state, ()
        reasons = tuple(refused.values())
        kept = tuple(info for info in state.models if info.name not in refused)
        error = ErrorInfo(message=reasons[0], type=SERVER_ERROR, code="vocabulary_mismatch", status=503)
        return replace(state, models=kept, error=state.error if kept else error), reasons

    def _foreign(self, info: ModelInfo) -> bool:
        return bool(info.vocabulary) and self._known.setdefault(info.name, info.vocabulary) != info.vocabulary

    def _refusal(self, node: str, info: ModelInfo) -> str:
        return (
            f"{node} serves `{info.name}` with another vocabulary ({info.vocabulary}, not {self._known[info.name]}): "
            "its tokens mean other words here"
        )
