"""When a link is dead: no sound, or beats that show that ours do not arrive; and when it only seems so."""

from inference_stack.wire.messages import Beat, StepReport
from inference_stack.wire.pulse import BEYOND, Pulse

SILENCE = 1.5
STEP = 0.25


class Pair:
    """Two ends on one clock; messages may be lost either way."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ours, self.theirs = Pulse(SILENCE, 0.0), Pulse(SILENCE, 0.0)

    def run(self, seconds: float, up: bool = True, down: bool = True) -> tuple[str | None, str | None]:
        """Both beat for a while; the verdicts of both, the first of each."""
        verdicts: list[str | None] = [None, None]
        for _ in range(int(seconds / STEP)):
            self.now += STEP
            out, back = self.ours.beat(self.now), self.theirs.beat(self.now)
            if up:
                self.theirs.hear(out, self.now)
            if down:
                self.ours.hear(back, self.now)
            for place, end in enumerate((self.ours, self.theirs)):
                verdicts[place] = verdicts[place] or end.verdict(self.now)
        return verdicts[0], verdicts[1]


def test_a_healthy_link_is_left_alone() -> None:
    assert Pair().run(60) == (None, None)


def test_silence_is_noticed_by_both_ends() -> None:
    pair = Pair()
    pair.run(5)
    ours, theirs = pair.run(3, up=False, down=False)
    assert ours is not None and theirs is not None and "silent" in ours


def test_a_cut_in_one_direction_is_noticed_by_both_ends() -> None:
    for up in (False, True):
        pair = Pair()
        pair.run(5)
        assert None not in pair.run(4, up=up, down=not up)


def test_who_is_overloaded_counts_its_own_looks() -> None:
    pair = Pair()
    pair.run(5)
    for _ in range(5):  # everything takes eight times as long as it should
        pair.now += 2.0
        assert pair.ours.verdict(pair.now) is None
    pair.ours.hear(pair.theirs.beat(pair.now), pair.now)
    assert pair.run(10) == (None, None)


def test_a_gap_shorter_than_the_limit_is_forgiven() -> None:
    pair = Pair()
    for _ in range(5):
        assert pair.run(1, up=False, down=False) == (None, None)
        assert pair.run(2) == (None, None)


def test_other_messages_are_signs_of_life() -> None:
    pulse = Pulse(SILENCE, 0.0)
    for step in range(40):
        pulse.hear(StepReport(deltas=()), step * STEP)
        assert pulse.verdict(step * STEP) is None


def test_who_overslept_does_not_blame_the_other() -> None:
    pair = Pair()
    pair.run(5)
    pair.ours.beat(pair.now)
    pair.now += 30
    assert pair.ours.verdict(pair.now) is None
    pair.theirs.hear(Beat(number=999, heard=0), pair.now)
    assert pair.run(10) == (None, None)


def test_what_the_other_side_heard_confirms_our_beats() -> None:
    pulse = Pulse(1.5, 0.0)
    assert (pulse.sent, pulse.confirmed) == (0, 0)
    pulse.beat(0.1)
    pulse.beat(0.2)
    pulse.hear(Beat(number=1, heard=1), 0.3)
    assert (pulse.sent, pulse.confirmed) == (2, 1)


def test_beats_that_arrive_late_are_no_cut_while_more_of_them_arrive() -> None:
    """Later and later, as with a reader that is overloaded; then none any more."""
    ours, verdicts = Pulse(SILENCE, 0.0), []
    for tick in range(1, 110):
        ours.beat(tick * STEP)
        ours.hear(Beat(number=tick, heard=min(tick, 100) * 4 // 5), tick * STEP)
        verdicts.append(ours.verdict(tick * STEP))
    assert verdicts[:100] == [None] * 100
    assert verdicts[-1] is not None and "arrived" in verdicts[-1]


def test_silence_is_noticed_as_soon_as_it_is_too_long() -> None:
    pair = Pair()
    pair.run(5)
    last = pair.now
    pair.now += 1.2
    assert pair.ours.verdict(pair.now) is None  # a look that came late counts for a fifth of the limit
    left = pair.ours.patience(pair.now)
    assert SILENCE - 0.3 < left < SILENCE - 0.28
    while pair.ours.verdict(pair.now) is None:
        pair.now += min(STEP, pair.ours.patience(pair.now))
    assert pair.now - last < 1.2 + SILENCE - 0.3 + 2 * BEYOND
