import itertools

from hypothesis import given
from hypothesis import strategies as st

from inference_stack.cli.sse import EventParser

STREAM = 'data: {"é": 1}\r\n\r\n: comment\n\ndata:two\ndata: lines\n\nid: 7\nevent: x\ndata: [DONE]\n\n'.encode()
EVENTS = ['{"é": 1}'.encode(), b"two\nlines", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12).map(sorted))
def test_any_split_gives_the_same_events(cuts: list[int]) -> None:
    parser = EventParser()
    edges = [0, *cuts, len(STREAM)]
    found = [event for start, end in itertools.pairwise(edges) for event in parser.feed(STREAM[start:end])]
    assert found == EVENTS


def test_an_unfinished_event_is_held_back() -> None:
    assert EventParser().feed(b"data: x\n") == []
