"""Log probabilities in the three shapes clients know: chat's entries, the columns of text completions, and prompt ranks.

A token is named by its text, and by its bytes because one token may be half a character.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from inference_stack.core.step import TokenLogprob
from inference_stack.frontend.completion import TokenEntry, TopEntry
from inference_stack.frontend.tokenizer import Tokenizer
from inference_stack.gateway.replies import (
    ChatLogprobs,
    ChatTokenLogprob,
    PromptLogprobs,
    RankedLogprob,
    TextLogprobs,
    TopLogprob,
)

IMPOSSIBLE: Final = -9999.0
"""What stands for minus infinity, which JSON cannot say."""


def _finite(logprob: float | None) -> float:
    return IMPOSSIBLE if logprob is None else max(float(logprob), IMPOSSIBLE)


def unique_text(utf8: bytes) -> str:
    """A token as text that no other token shares: OpenAI's `bytes:\\x..` where the bytes are no whole characters."""
    try:
        return utf8.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in utf8)


def chat_logprobs(entries: Iterable[TokenEntry], alternatives: int) -> ChatLogprobs:
    """Chat's shape, with exactly the `alternatives` likeliest tokens at each position."""
    return ChatLogprobs([_chat_entry(entry, alternatives) for entry in entries])


def _chat_entry(entry: TokenEntry, alternatives: int) -> ChatTokenLogprob:
    top = [TopLogprob(other.text, _finite(other.logprob), list(other.utf8)) for other in entry.top[:alternatives]]
    return ChatTokenLogprob(entry.text, _finite(entry.logprob), list(entry.utf8), top)


def text_logprobs(entries: Iterable[TokenEntry], alternatives: int, as_ids: bool = False) -> TextLogprobs:
    """The columns of a text completion. An entry without a log probability, the first of a prompt, has null in two. Tokens are
    named by their text, or `as_ids`."""
    columns = TextLogprobs([], [], [], [])
    for entry in entries:
        columns.tokens.append(_name(entry, as_ids))
        columns.text_offset.append(entry.offset)
        if entry.logprob is None:
            columns.token_logprobs.append(None)
            columns.top_logprobs.append(None)
        else:
            columns.token_logprobs.append(_finite(entry.logprob))
            columns.top_logprobs.append(_top(entry, alternatives, as_ids))
    return columns


def _top(entry: TokenEntry, alternatives: int, as_ids: bool) -> dict[str, float]:
    """The likeliest tokens, and the chosen one if it is not among them."""
    top = {_name(other, as_ids): _finite(other.logprob) for other in entry.top[:alternatives]}
    top.setdefault(_name(entry, as_ids), _finite(entry.logprob))
    return top


def _name(entry: TokenEntry | TopEntry, as_id: bool) -> str:
    return f"token_id:{entry.token}" if as_id else unique_text(entry.utf8)


def prompt_ranks(tokenizer: Tokenizer, entries: Sequence[TokenLogprob], alternatives: int) -> PromptLogprobs:
    """One entry per prompt token: itself and the likeliest alternatives, by token id. The first has no past: null."""
    ranks: PromptLogprobs = [None]
    for entry in entries:
        position = {str(entry.token): _ranked(tokenizer, entry.token, entry.logprob, entry.rank)}
        for rank, (token, logprob) in enumerate(entry.top[:alternatives], 1):
            position.setdefault(str(token), _ranked(tokenizer, token, logprob, rank))
        ranks.append(position)
    return ranks


def _ranked(tokenizer: Tokenizer, token: int, logprob: float, rank: int) -> RankedLogprob:
    return RankedLogprob(_finite(logprob), rank, tokenizer.token_text(token))
