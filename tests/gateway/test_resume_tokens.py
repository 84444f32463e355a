"""The ids of a stream's events: what goes in comes out, and nothing that was touched, moved or borrowed does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from inference_stack.core.errors import InferenceError
from inference_stack.gateway.resume import (
    LIFETIME_SECONDS,
    MAX_CHARACTERS,
    MAX_CHOICES,
    Identity,
    Mark,
    ResumeTokens,
    resume_diverged,
    resume_secret,
)

SECRET = bytes(range(32))
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODY = b'{"model": "tiny"}'
OURS = ResumeTokens(SECRET)
BODY_DIGEST = OURS.body_digest(CHAT, BODY)
PRINCIPAL = OURS.principal_digest("Bearer a", "")
CREATED = 1_763_850_000
FOREIGN = "none of this service's, or not yours"

token_lists = st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=5), max_size=6)
identities = st.builds(
    Identity,
    id=st.text(max_size=40),
    created=st.just(CREATED),
    seeds=st.lists(st.integers(0, 2**64 - 1), max_size=4).map(tuple),
    generation=st.integers(0, 2**40),
    numerics_id=st.text(max_size=40),
    body=st.just(BODY_DIGEST),
    principal=st.just(PRINCIPAL),
)


def mark(lists: list[list[int]], finished: bool = False, cached: int | None = None, node: bytes = bytes(4)) -> Mark:
    made = Mark()
    made.cached_tokens, made.node = cached, node
    for tokens in lists:
        made.add(tokens)
    if finished:
        made.add((), finished=True)
    return made


def identity(**changes: object) -> Identity:
    fields = {"id": "chatcmpl-1", "created": CREATED, "seeds": (7,), "generation": 1, "numerics_id": "n1"}
    return Identity(**{**fields, "body": BODY_DIGEST, "principal": PRINCIPAL, **changes})  # type: ignore[arg-type]


def token(closed: bool = False) -> str:
    return OURS.stamp(identity()).id([mark([[1, 2], [3]]), mark([[4]], finished=True)], closed).decode()


def refused(given: str, *, body: bytes = BODY_DIGEST, principal: bytes = PRINCIPAL, by: ResumeTokens = OURS) -> str:
    """That it is refused, and why."""
    with pytest.raises(InferenceError) as caught:
        by.open(given, body, principal, CREATED)
    info = caught.value.info
    assert (info.status, info.code, info.param) == (400, "invalid_resume_token", "Last-Event-ID")
    return info.message


@given(
    identities,
    st.lists(st.tuples(token_lists, st.booleans(), st.none() | st.integers(0, 2**31 - 1)), max_size=8),
    st.booleans(),
)
def test_what_is_sealed_is_opened(
    made: Identity, choices: list[tuple[list[list[int]], bool, int | None]], closed: bool
) -> None:
    marks = [mark(*choice, node=b"node") for choice in choices]
    found = OURS.open(OURS.stamp(made).id(marks, closed).decode(), BODY_DIGEST, PRINCIPAL, CREATED)
    assert (found.identity, found.closed) == (made, closed)
    assert [(p.finished, p.offset, p.cached_tokens, p.digest, p.node) for p in found.positions] == [
        (m.finished, m.offset, m.cached_tokens, m.digest(), b"node") for m in marks
    ]


@given(token_lists)
def test_the_hash_does_not_depend_on_how_tokens_came(lists: list[list[int]]) -> None:
    joined = mark([[token for tokens in lists for token in tokens]])
    assert (mark(lists).digest(), mark(lists).offset) == (joined.digest(), joined.offset)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8), st.data())
def test_other_tokens_have_another_hash(tokens: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(tokens) - 1))
    other = [*tokens[:place], data.draw(st.integers(0, 2**32 - 1)), *tokens[place + 1 :]]
    assume(other != tokens)
    assert mark([tokens]).digest() != mark([other]).digest()


def test_a_record_follows_its_choice() -> None:
    one = mark([[1]])
    seen = {one.record()}
    for change in (lambda: one.add((2,)), lambda: one.add((2, 3)), lambda: one.add((), finished=True)):
        change()
        seen.add(one.record())
    assert len(seen) == 4


@given(st.integers(0), st.integers(0, 5))
def test_every_bit_counts(place: int, bit: int) -> None:
    """Of a base64 character, that is: six bits."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    good = token()
    place %= len(good)
    other = alphabet[alphabet.index(good[place]) ^ (1 << bit)]
    assert FOREIGN in refused(good[:place] + other + good[place + 1 :])


@given(st.integers(0), st.text(min_size=1, max_size=8))
def test_nothing_can_be_put_in(place: int, more: str) -> None:
    good = token()
    place %= len(good) + 1
    assert FOREIGN in refused(good[:place] + more + good[place:])


@given(st.integers(0), st.integers(1))
def test_nothing_can_be_taken_out(place: int, count: int) -> None:
    good = token()
    place %= len(good)
    assert FOREIGN in refused(good[:place] + good[place + 1 + count % len(good) :])


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda raw: raw.decode("latin-1")))
def test_what_was_never_sealed_is_refused(made_up: str) -> None:
    assert FOREIGN in refused(made_up)


@pytest.mark.parametrize("spelling", [lambda t: t + "====", lambda t: t + "\n", lambda t: t.replace("-", "+") + " "])
def test_no_other_spelling_is_accepted(spelling: Callable[[str], str]) -> None:
    assert FOREIGN in refused(spelling(token()))


def test_what_is_too_long_is_refused_unread() -> None:
    assert FOREIGN in refused("A" * (MAX_CHARACTERS + 4))


def test_the_longest_id_is_short_enough_for_a_header() -> None:
    made = identity(seeds=(2**64 - 1,) * MAX_CHOICES)
    assert len(OURS.stamp(made).id([mark([[1]])] * MAX_CHOICES)) < 8000


@given(st.binary(min_size=32, max_size=64))
def test_another_key_opens_nothing(secret: bytes) -> None:
    assume(secret != SECRET)
    assert FOREIGN in refused(token(), by=ResumeTokens(secret))


def test_the_same_key_opens_it_elsewhere() -> None:
    assert ResumeTokens(SECRET).open(token(), BODY_DIGEST, PRINCIPAL, CREATED).identity == identity()


@given(st.binary(max_size=40))
def test_another_body_is_refused(body: bytes) -> None:
    assume(body != BODY)
    assert "byte for byte" in refused(token(), body=OURS.body_digest(CHAT, body))


def test_another_endpoint_is_refused() -> None:
    assert "another request" in refused(token(), body=OURS.body_digest(TEXT, BODY))


@given(st.text(max_size=30), st.text(max_size=30))
def test_another_principal_is_refused_without_a_word_on_whose_it_is(authorization: str, tenant: str) -> None:
    assume((authorization, tenant) != ("Bearer a", ""))
    other = OURS.principal_digest(authorization, tenant)
    assert refused(token(), principal=other) == refused("AAAA")


def test_what_is_said_of_the_sender_cannot_be_moved_between_fields() -> None:
    assert OURS.principal_digest("ab", "c") != OURS.principal_digest("a", "bc")
    assert OURS.body_digest("/a", b"bc") != OURS.body_digest("/ab", b"c")


def test_an_old_id_is_refused() -> None:
    with pytest.raises(InferenceError, match="too old"):
        OURS.open(token(), BODY_DIGEST, PRINCIPAL, CREATED + LIFETIME_SECONDS + 1)


def test_digests_cannot_be_computed_without_the_key() -> None:
    assert ResumeTokens(bytes(32)).principal_digest("Bearer a", "") != PRINCIPAL


def test_a_divergence_is_a_conflict() -> None:
    info = resume_diverged("its model has changed").info
    assert (info.status, info.code) == (409, "resume_diverged")


def test_the_secret_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(SECRET.hex().encode() + b"\n")
    assert resume_secret(str(tmp_path / "key")) == SECRET.hex().encode()


def test_without_a_file_every_process_has_its_own() -> None:
    assert len(resume_secret("")) == 32
    assert resume_secret("") != resume_secret("")


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("x" * 31 + " \n")
    with pytest.raises(InferenceError, match=r"gateway\.resume_key.*31 bytes; at least 32"):
        resume_secret(str(tmp_path / "key"))


def test_a_missing_file_is_named_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match=r"gateway\.resume_key.*No such file"):
        resume_secret(str(tmp_path / "none"))
