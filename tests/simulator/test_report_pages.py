"""The report's axes, charts and pages, the pages read by a parser."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_stack.simulator.api import Run
from inference_stack.simulator.fleet import Fleet
from inference_stack.simulator.report import axes, svg
from inference_stack.simulator.report.compare import render_comparison
from inference_stack.simulator.report.html import render
from inference_stack.simulator.report.numbers import summarise
from inference_stack.simulator.report.saved import report_of
from tests.simulator.parts import spec, traffic
from tests.simulator.reports import HOSTILE, empty, hostile, outcome, run, six_requests


@pytest.fixture
def six() -> Run:
    return six_requests()


# -- axes and words


@given(st.floats(1e-6, 1e12), st.booleans())
def test_ticks_are_few_and_cover(high: float, whole: bool) -> None:
    ticks = axes.nice_ticks(high, whole=whole)
    assert ticks[0] == 0.0
    assert ticks[-1] >= high * (1 - 1e-8)
    assert 2 <= len(ticks) <= 7


def test_whole_ticks_have_no_fractions() -> None:
    assert axes.nice_ticks(1, whole=True) == [0.0, 1.0]


@given(st.floats(1e-3, 1e8))
def test_time_ticks_are_few_and_inside(seconds: float) -> None:
    ticks, _ = axes.time_ticks(seconds)
    assert 2 <= len(ticks) <= 10
    assert all(0 <= at <= seconds * (1 + 1e-6) for at, _ in ticks)


def test_a_day_is_marked_in_hours() -> None:
    ticks, unit = axes.time_ticks(86400.0)
    assert unit == "hours"
    assert [text for _, text in ticks] == ["0", "3", "6", "9", "12", "15", "18", "21", "24"]


@given(st.floats(1e-6, 1e3), st.floats(1.05, 1e8))
def test_log_ticks_are_few_and_inside(low: float, factor: float) -> None:
    ticks = axes.log_ticks(low, low * factor)
    assert 1 <= len(ticks) <= 12
    assert all(low * (1 - 1e-9) <= tick <= low * factor * (1 + 1e-9) for tick in ticks)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0.0, "0 s"),
        (0.00085, "850 µs"),
        (0.0842, "84.2 ms"),
        (0.9999, "1 s"),
        (1.25, "1.25 s"),
        (200.4, "3 min 20 s"),
        (7500.0, "2 h 05 min"),
        (360000.0, "100 h 00 min"),
    ],
)
def test_durations_in_words(seconds: float | None, words: str) -> None:
    assert axes.duration(seconds) == words


@pytest.mark.parametrize(("seconds", "words"), [(0.04, "0:00:00.0"), (59.96, "0:01:00.0"), (90007.5, "25:00:07.5")])
def test_moments_in_words(seconds: float, words: str) -> None:
    assert axes.clock(seconds) == words


def test_nearly_all_is_not_shown_as_all() -> None:
    assert [axes.share(value) for value in (0.999999, 1.0, 0.973, None)] == ["99.99 %", "100.0 %", "97.3 %", "–"]


# -- charts


def parsed(figure: str) -> ET.Element:
    return ET.fromstring(figure)


def of_class(figure: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in figure.iter() if name in element.get("class", "").split()]


def test_a_line_goes_from_corner_to_corner() -> None:
    chart = svg.time_chart("t", np.array([0.0, 10.0]), [svg.Line("n", np.array([0.0, 100.0]))], seconds=10.0)
    (line,) = of_class(parsed(chart), "line")
    floor, right = svg.HEIGHT - svg.BOTTOM, svg.WIDTH - svg.RIGHT
    assert line.get("d") == f"M{svg.LEFT:.1f},{floor:.1f} {right:.1f},{svg.TOP:.1f}"


def test_many_points_are_thinned_to_a_mean_within_a_band() -> None:
    values = np.tile([0.0, 10.0], 5000)
    chart = parsed(svg.time_chart("t", np.arange(10000.0), [svg.Line("n", values)], seconds=1e4, top=10.0))
    (line,), (band,) = of_class(chart, "line"), of_class(chart, "band")
    heights = {float(point.split(",")[1]) for point in band.get("d", "")[1:].split()}
    assert heights == {svg.TOP, svg.HEIGHT - svg.BOTTOM}
    assert len(line.get("d", "").split()) == svg.POINTS


def test_marks_name_their_event_and_share_a_place() -> None:
    marks = [(5.0, "node 1 <dies>")] + [(9.0, f"event {number}") for number in range(8)]
    chart = parsed(svg.time_chart("t", np.array([10.0]), [], seconds=10.0, marks=marks))
    titles = [mark[0].text or "" for mark in of_class(chart, "mark")]
    assert titles[0] == "0:00:05.0 node 1 <dies>"
    assert titles[1].endswith("and 3 more")


def test_a_distribution_rises_to_the_right() -> None:
    curve = svg.Curve("n", np.array([0.1, 1.0, 10.0]), np.array([0.001, 0.5, 0.999]))
    (line,) = of_class(parsed(svg.cdf_chart("t", [curve])), "line")
    points = [tuple(map(float, point.split(","))) for point in line.get("d", "")[1:].split()]
    x, y = zip(*points, strict=True)
    assert list(x) == sorted(x)
    assert list(y) == sorted(y, reverse=True)
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)  # decades are equally wide


def test_a_straggler_does_not_stretch_the_axis() -> None:
    curve = svg.Curve("n", np.array([0.01, 0.02, 1000.0]), np.array([0.0, 0.9995, 1.0]))
    assert "1000 s" not in svg.cdf_chart("t", [curve])


def test_a_line_keeps_its_colour_beside_an_empty_one() -> None:
    nothing = svg.Curve("empty", np.array([]), np.array([]))
    curve = svg.Curve("n", np.array([0.1, 1.0]), np.array([0.0, 1.0]))
    chart = parsed(svg.cdf_chart("t", [nothing, curve]))
    assert [line.get("class") for line in of_class(chart, "line")] == ["line c1"]


def test_a_distribution_of_nothing_says_so() -> None:
    chart = parsed(svg.cdf_chart("t", [svg.Curve("n", np.array([]), np.array([]))]))
    assert "nothing was measured" in "".join(chart.itertext())


def test_bars_are_as_long_as_their_values() -> None:
    chart = parsed(svg.bar_chart("t", [("a", 4.0), ("b", 1.0)], str))
    wide, narrow = (float(bar.get("width", 0)) for bar in of_class(chart, "fill"))
    assert wide == pytest.approx(4 * narrow, rel=0.01)


def test_a_legend_stands_where_there_is_more_than_one_line() -> None:
    lines = [svg.Line("first", np.array([1.0])), svg.Line("second", np.array([1.0]))]
    both = svg.time_chart("t", np.array([1.0]), lines, seconds=1.0)
    assert [entry.tail or "".join(entry.itertext()) for entry in parsed(both).iter("li")] == ["first", "second"]
    assert "<li>" not in svg.time_chart("t", np.array([1.0]), lines[:1], seconds=1.0)


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_stand_out_from_the_background(theme: str) -> None:
    back = luminance(svg.BACKGROUND[theme])
    for colour in svg.SERIES_COLOURS[theme]:
        bright, dim = sorted((luminance(colour), back), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5


# -- the page


class Page(HTMLParser):
    """Elements, their attributes, and the text of a page; fails on an element that is closed out of turn."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def rendered(made: Run) -> Page:
    return Page(render(made, summarise(made)))


def test_headline_numbers_stand_before_the_charts(six: Run) -> None:
    text = rendered(six).text
    assert text.index("TTFT p95 2.7 s") < text.index("Charts")
    assert "Goodput 16.7 %" in text
    assert "Cost $9.00" in text


def test_the_page_shows_what_it_was_given(six: Run) -> None:
    text = rendered(six).text
    assert "node 1 is killed" in text
    assert "preset: l4" in text
    assert "What is not modelled" in text


def real() -> Run:
    return Fleet(spec(traffic(40, rate=2.0))).run()


@pytest.mark.parametrize("make", [hostile, empty, real])
def test_pages_are_well_formed_and_ask_for_nothing(make: Any) -> None:
    found = rendered(make())
    assert not found.tags & {"script", "img", "iframe", "object", "embed", "use", "image", "base", "form"}
    for _, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert {attributes.get("href", "data:,"), attributes.get("src", "data:,")} == {"data:,"}


def test_styles_ask_for_nothing(six: Run) -> None:
    style = render(six, summarise(six)).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "&#" not in style  # escaping would break selectors and strings


def test_hostile_names_are_shown_as_they_are() -> None:
    text = rendered(hostile()).text
    assert text.count(HOSTILE) >= 3


def test_a_partial_run_says_so_on_top(six: Run) -> None:
    six.complete = False
    assert rendered(six).text.index("Partial report.") < rendered(six).text.index("Goodput")


def test_a_complete_run_has_no_banner(six: Run) -> None:
    assert "Partial" not in rendered(six).text


def test_many_tenants_and_events_are_cut_with_their_number() -> None:
    outcomes = [outcome(number, 0, 1, 2, finish="stop", tenant=f"tenant {number}") for number in range(60)]
    text = rendered(run(outcomes, events=[(1.0, f"event {number}") for number in range(203)])).text
    assert "And 10 more with fewer requests" in text
    assert "And 3 later ones" in text


def test_the_comparison_page_is_well_formed_and_lays_curves_over_each_other(six: Run) -> None:
    other = hostile()
    other.complete = False
    named = {"before": report_of(six, summarise(six)), HOSTILE: report_of(other, summarise(other))}
    found = Page(render_comparison(named))
    lines = [attributes for _, attributes in found.elements if "line c1" in (attributes.get("class") or "")]
    assert "script" not in found.tags
    assert "Partial." in found.text
    assert "fleet.nodes" in found.text
    assert lines
