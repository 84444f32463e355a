"""Stop strings: the same answer for every way to cut the text, and no text held back without need."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference_stack.frontend.stops import StopMatcher

alphabet = "ab\n"
stop_lists = st.lists(st.text(alphabet, min_size=1, max_size=4), min_size=1, max_size=4)
pieces = st.lists(st.text(alphabet, max_size=4), max_size=12)


def naive(text: str, stops: list[str], include: bool, armed_from: int = 0) -> tuple[str, str | None]:
    """Look at every end in turn; the longest stop string that ends first counts, if it ends behind `armed_from`."""
    for end in range(armed_from + 1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


def run(deltas: list[str], stops: list[str], include: bool, unarmed: int = 0) -> tuple[str, str | None]:
    matcher = StopMatcher(stops, include=include)
    shown = ""
    for index, delta in enumerate(deltas):
        matched = matcher.feed(delta, armed=index >= unarmed)
        shown += matched.text
        if matched.stop is not None:
            return shown, matched.stop
    return shown + matcher.flush(), None


@given(deltas=pieces, stops=stop_lists, include=st.booleans())
def test_the_answer_equals_a_search_of_the_whole_text(deltas: list[str], stops: list[str], include: bool) -> None:
    assert run(deltas, stops, include) == naive("".join(deltas), stops, include)


@given(deltas=pieces, stops=stop_lists, include=st.booleans(), unarmed=st.integers(0, 6))
def test_stops_that_end_too_early_do_not_count(
    deltas: list[str], stops: list[str], include: bool, unarmed: int
) -> None:
    expected = naive("".join(deltas), stops, include, armed_from=len("".join(deltas[:unarmed])))
    assert run(deltas, stops, include, unarmed) == expected


@given(deltas=pieces, stops=stop_lists)
def test_only_a_possible_beginning_is_held_back(deltas: list[str], stops: list[str]) -> None:
    matcher, shown, text = StopMatcher(stops), "", ""
    for delta in deltas:
        text += delta
        matched = matcher.feed(delta)
        if matched.stop is not None:
            return
        shown += matched.text
        held = text[len(shown) :]
        possible = [size for size in range(len(text) + 1) if any(s.startswith(text[len(text) - size :]) for s in stops)]
        assert len(held) == max(size for size in possible if text[len(text) - size :] not in stops)


def test_the_match_that_ends_first_wins() -> None:
    assert run(["xabcd"], ["abcd", "bc"], False) == ("xa", "bc")


def test_of_two_that_end_together_the_longer_wins() -> None:
    assert run(["xabc"], ["bc", "abc"], False) == ("x", "abc")


def test_with_include_nothing_is_held_back() -> None:
    assert StopMatcher(["STOP"], include=True).feed("text ST").text == "text ST"


def test_without_stops_text_passes() -> None:
    assert run(["a", "", "b"], [], False) == ("ab", None)
