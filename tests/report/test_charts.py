"""Charts are well-formed, say what they show, hold their points inside the frame, and take names for text."""

from __future__ import annotations

import math
import re
from importlib.resources import files
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmm.report import charts
from gradmm.report.charts import Bar, Series, Words
from gradmm.report.numbers import at_most, distance, is_wide, log_ticks, significant, ticks
from run_folders import HOSTILE

WORDS = Words("Title.", "Description.", "x axis", "y axis")
SERIES = [Series("one", [(1, 0.1), (2, 0.01)]), Series("two", [(1, 0.3), (3, 0.02)], 1)]
BARS = [Bar("a", (0.7, 0.6, 0.8)), Bar("b", (0.5, None, None), 1, "hollow")]
DRAWN = {
    "lines": charts.line_chart,
    "scatter": lambda words, series: charts.scatter(words, series, series[0].points),
    "histogram": lambda words, series: charts.histogram(words, [0, 1, 2], series),
    "dots": lambda words, series: charts.dot_plot(words, [Bar(one.name, (0.7, 0.6, 0.8)) for one in series]),
}
FINITE = st.floats(-1e9, 1e9, allow_subnormal=False)


def parsed(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(markup.replace("&#39;", "'"))


def texts_in(root: ElementTree.Element) -> list[str]:
    return [one.text or "" for one in root.iter()]


@pytest.mark.parametrize("kind", DRAWN)
def test_a_chart_says_what_it_shows_and_has_its_numbers_as_a_table(kind: str) -> None:
    root = parsed(DRAWN[kind](WORDS, SERIES))
    picture = next(one for one in root.iter("svg") if one.get("role") == "img")
    assert [one.tag for one in picture][:2] == ["title", "desc"]
    assert (picture[0].text, picture[1].text) == ("Title.", "Description.")
    table = root.find(".//details//table")
    assert table is not None
    assert len(table.findall("./tbody/tr")) >= 2
    assert all(one.get("scope") == "row" for one in table.findall("./tbody/tr/th"))


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text(kind: str, name: str) -> None:
    words = Words(name, name, name, name)
    markup = DRAWN[kind](words, [Series(name, [(0, 0.1), (1, 0.2)], labels=(name, name)), SERIES[0]])
    assert {one.tag for one in parsed(markup).iter()} <= {
        *("figure", "figcaption", "strong", "svg", "title", "desc", "path", "text", "details", "summary", "div"),
        *("table", "thead", "tbody", "tr", "th", "td", "ul", "li"),
    }
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", markup)
    assert " style=" not in re.sub(r">[^<]*<", "><", markup)  # which the page's policy would refuse


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=20))
def test_every_point_lies_within_the_picture(points: list[tuple[float, float]]) -> None:
    for markup in (charts.line_chart(WORDS, [Series("s", points)]), charts.scatter(WORDS, [Series("s", points)])):
        root = parsed(markup)
        picture = next(one for one in root.iter("svg") if one.get("role") == "img")
        for mark in (one for one in picture.iter("path") if (one.get("class") or "").startswith(("line", "mark"))):
            start = re.match(r"M([-\d.]+) ([-\d.]+)", mark.get("d") or "")
            assert start is not None
            assert 0 <= float(start[1]) <= charts.WIDTH
            assert 0 <= float(start[2]) <= charts.HEIGHT


@given(st.lists(FINITE, min_size=2, max_size=2, unique=True))
def test_ticks_lie_between_the_ends_and_are_round(ends: list[float]) -> None:
    low, high = sorted(ends)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-3):
        return
    found = ticks(low, high)
    slack = (high - low) * 1e-6
    assert 1 <= len(found) <= 13
    assert all(low - slack <= tick <= high + slack for tick in found)
    if len(found) > 1:
        step = found[1] - found[0]
        leading = step / 10 ** math.floor(math.log10(step) + 1e-6)
        assert min(abs(leading - factor) for factor in (1, 2, 5)) < 1e-3


@given(st.floats(1e-9, 1e6), st.floats(1.5, 1e9))
def test_ticks_of_a_logarithmic_axis_lie_between_the_ends(low: float, factor: float) -> None:
    found = log_ticks(low, low * factor)
    assert 1 <= len(found) <= 13
    assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in found)
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 2], False), ([1, 3], True), ([0, 5], False), ([-1, 5], False), ([], False)]
)
def test_an_axis_is_logarithmic_where_values_are_positive_and_far_apart(
    values: list[float], expected: bool
) -> None:
    assert is_wide(values) is expected


def test_a_logarithmic_axis_says_so_and_puts_equal_ratios_at_equal_distances() -> None:
    root = parsed(charts.line_chart(WORDS, [Series("s", [(0, 0.01), (1, 0.1), (2, 1.0)])]))
    assert "y axis (log scale)" in texts_in(root)
    line = next(one for one in root.iter("path") if (one.get("class") or "").startswith("line"))
    heights = [float(place.split(" ")[1]) for place in (line.get("d") or "")[1:].split("L")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)


def test_an_interval_that_is_not_known_is_not_drawn() -> None:
    root = parsed(charts.dot_plot(WORDS, BARS))
    lines = [one for one in root.iter("path") if (one.get("class") or "").startswith("line")]
    assert len(lines) == 1
    assert "\N{EN DASH}" in texts_in(root)


def test_classes_differ_in_colour_and_in_shape() -> None:
    looks = range(16)
    seen = {(look % charts.LOOKS, charts._shape(look, 0, 0, 4)) for look in looks}
    assert len(seen) == len(looks)
    assert len({charts._shape(look, 0, 0, 4) for look in range(charts.LOOKS)}) == charts.LOOKS


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0051, "0.0051"), (6.3e-5, "0.000063"), (0.0, "0.0000"), (1.2, "1.2000"), (None, "\N{EN DASH}")],
)
def test_small_distances_keep_two_digits(value: float | None, shown: str) -> None:
    assert distance(value) == shown


def test_numbers_have_no_exponent_where_a_person_can_do_without() -> None:
    assert significant(0.0000123) == "0.0000123"
    assert significant(123456.0) == "123,000"
    assert significant(1e-5) == "0.00001"


# ---- colours


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_are_as_far_apart_as_wcag_aa_asks(theme: int) -> None:
    style = (files("gradmm.report") / "templates" / "style.css").read_text()
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colours = {name: pair[theme] for name, *pair in found}
    for ground in ("paper", "raised", "ours", "warn"):
        assert contrast(colours["ink"], colours[ground]) >= 7
    for name in ("quiet", "link"):
        for ground in ("paper", "raised"):
            assert contrast(colours[name], colours[ground]) >= 4.5, name
    for look in range(charts.LOOKS):
        assert contrast(colours[f"c{look}"], colours["paper"]) >= 4.5, look
    assert contrast(colours["warn-rule"], colours["warn"]) >= 3


@given(st.floats(1e-3, 100))
def test_what_was_spent_is_never_said_to_be_less(epsilon: float) -> None:
    said = float(at_most(epsilon))
    assert epsilon - 1e-9 <= said <= epsilon + 1.01e-4
