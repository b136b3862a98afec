"""Charts as small SVG, written by hand.

Not a plotting library's: what stands here follows the page's theme (its colours are the style sheet's variables,
so dark, light and print need no second picture), is told to screen readers (a title, a description, and the
numbers as a table), and takes some kilobytes where plotly takes five megabytes of script and matplotlib a picture
that cannot be read on a telephone. Every name in it is data, and is escaped by `element`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from gradmm.errors import printable
from gradmm.report.numbers import NONE, is_wide, log_ticks, significant, tick_labels, ticks

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 74, 18, 34, 52
LOOKS = 8
"""Colours in the style sheet, and shapes here."""
NEUTRAL = -1
"""The look of what is of no class: the text's colour, a circle."""
_LETTER = 8.2  # width of a letter of labels, which are bold, in units of the picture

Point = tuple[float, float]
Format = Callable[[float], str]


@dataclass(frozen=True)
class Words:
    """What a chart says of itself."""

    title: str
    """What is drawn; for screen readers, and above the chart."""
    description: str
    """What to see in it, in a sentence."""
    x: str
    """Name of the axis, with its unit."""
    y: str


@dataclass(frozen=True)
class Series:
    """Points that belong together."""

    name: str
    points: Sequence[Point]
    look: int = 0
    """Which colour and shape; alike for what is alike on a page."""
    kind: str = "filled"
    """How its marks are drawn: `filled`, `hollow`, `faint`, `speck`, `large`, `ring`, `dashed`, `cross`."""
    labels: Sequence[str] = ()
    """Of single points: drawn if `is_labelled`, shown on pointing otherwise."""
    is_labelled: bool = False


@dataclass(frozen=True)
class Bar:
    """A value with its interval."""

    name: str
    value: tuple[float, float | None, float | None]
    """With the bounds of its interval; None where it has none."""
    look: int = 0
    kind: str = "filled"


@dataclass
class Scale:
    """From values to places."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    ticks: list[float] = field(init=False)

    def __post_init__(self) -> None:
        if self.low == self.high:
            margin = abs(self.low) * 0.1 or 1.0
            self.low, self.high = self.low - margin, self.high + margin
        self.ticks = log_ticks(self.low, self.high) if self.is_log else ticks(self.low, self.high)

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high, at = self.low, self.high, value
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (at - low) / (high - low)


def element(name: str, attributes: dict[str, Any], *inside: str) -> Markup:
    """An element; values and text are escaped, and control characters written out. `class_` is class."""
    given = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _shown(value))
        for key, value in attributes.items()
        if value is not None
    )
    body = Markup("").join(one if isinstance(one, Markup) else escape(printable(one)) for one in inside)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), given, body)


def _shown(value: Any) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else printable(str(value))


def line_chart(words: Words, series: Sequence[Series]) -> Markup:
    """Lines over a linear x and, where the values are far apart, a logarithmic y."""
    points = [point for one in series for point in one.points]
    frame = _Frame(words, [x for x, _ in points], [y for _, y in points], may_be_log_x=False)
    drawn = [
        element("path", {"class_": f"line {_colour(one.look)}", "d": frame.path(one.points)}) for one in series
    ]
    ends = [
        _mark(Series("", one.points[-1:], one.look), *frame.at(one.points[-1])) for one in series if one.points
    ]
    table = _table([words.x, *(one.name for one in series)], _by_x(series))
    return _figure(words, frame.drawn() + drawn + ends, table, series if len(series) > 1 else ())


def scatter(
    words: Words,
    series: Sequence[Series],
    path: Sequence[Point] = (),
    log_x: bool = True,
    legend: Sequence[Series] | None = None,
) -> Markup:
    """Points on two axes.

    Args:
        words: of the chart.
        series: the points; the last lie on top.
        path: a thin line between some of them, in the order in which they came about.
        log_x: whether x is logarithmic where the values are far apart.
        legend: what stands in the legend instead of the series.
    """
    points = [point for one in series for point in one.points]
    frame = _Frame(words, [x for x, _ in points], [y for _, y in points], may_be_log_x=log_x, may_be_log_y=False)
    drawn = [element("path", {"class_": "trail", "d": frame.path(path)})] if len(path) > 1 else []
    for one in series:
        names = one.labels or [one.name] * len(one.points)
        for point, name in zip(one.points, names, strict=True):
            drawn.append(_mark(one, *frame.at(point), "" if one.is_labelled else name))
    drawn += _labels(frame, series)
    rows = [
        [name, significant(x), significant(y)]
        for one in series
        for (x, y), name in zip(one.points, one.labels or [one.name] * len(one.points), strict=True)
    ]
    table = _table(["", words.x, words.y], rows)
    return _figure(words, frame.drawn() + drawn, table, series if legend is None else legend)


def histogram(words: Words, edges: Sequence[float], sets: Sequence[Series]) -> Markup:
    """Steps over bins; of every set, `points` are (left edge of the bin, share)."""
    frame = _Frame(words, list(edges), [0.0, *(y for one in sets for _, y in one.points)], is_close=True)
    drawn = []
    for one in sets:
        steps = [
            point
            for (_, share), left, right in zip(one.points, edges, edges[1:], strict=False)
            for point in ((left, share), (right, share))
        ]
        outline = [(edges[0], 0.0), *steps, (edges[-1], 0.0)]
        kind = "area" if one.kind == "filled" else "line" if one.kind == "hollow" else "line dashed"
        drawn.append(element("path", {"class_": f"{kind} {_colour(one.look)}", "d": frame.path(outline)}))
    bins = [f"{significant(low)} to {significant(high)}" for low, high in pairwise(edges)]
    rows = [[name, *(significant(one.points[i][1]) for one in sets)] for i, name in enumerate(bins)]
    return _figure(words, frame.drawn() + drawn, _table([words.x, *(one.name for one in sets)], rows), sets)


def dot_plot(words: Words, bars: Sequence[Bar], form: Format = significant) -> Markup:
    """A dot and its interval for every name, one below the other; names stand above, where long ones have room."""
    values = [value for bar in bars for value in bar.value if value is not None]
    step, top = 44, 12
    bottom = top + step * len(bars) + 6
    scale = Scale(*_padded(min(values), max(values)), 8, WIDTH - RIGHT)
    drawn = [_gridline(scale(tick), top, bottom, form(tick)) for tick in scale.ticks]
    drawn.append(element("text", {"class_": "axis end", "x": WIDTH - RIGHT, "y": bottom + 42}, words.x))
    for i, bar in enumerate(bars):
        y, name = top + step * (i + 0.72), _cut(printable(bar.name), int(WIDTH / 10))
        drawn.append(element("text", {"class_": "name", "x": 4, "y": y - 12}, name))
        value, low, high = bar.value
        if low is not None and high is not None:
            reach = f"M{scale(low):.1f} {y}H{scale(high):.1f}"
            drawn.append(element("path", {"class_": f"line {_colour(bar.look)}", "d": reach}))
        dot = {"class_": f"mark {bar.kind} {_colour(bar.look)}", "d": _shape(0, scale(value), y, 5.0)}
        drawn.append(element("path", dot, element("title", {}, bar.name)))
    rows = [[bar.name, *(NONE if value is None else form(value) for value in bar.value)] for bar in bars]
    table = _table(["", words.x, "from", "to"], rows)
    return _figure(words, drawn, table, (), height=bottom + BOTTOM)


class _Frame:
    """Two axes with their ticks and names."""

    def __init__(
        self,
        words: Words,
        xs: Sequence[float],
        ys: Sequence[float],
        may_be_log_x: bool = False,
        may_be_log_y: bool = True,
        is_close: bool = False,
    ) -> None:
        self.words = words
        log_x, log_y = may_be_log_x and is_wide(xs), may_be_log_y and not is_close and is_wide(ys)
        spans = [(min(own), max(own)) if own else (0.0, 1.0) for own in (xs, ys)]
        x = spans[0] if is_close else _padded(*spans[0], log_x)
        y = (0.0, spans[1][1] * 1.05) if is_close else _padded(*spans[1], log_y)
        self.x = Scale(*x, LEFT, WIDTH - RIGHT, log_x)
        self.y = Scale(*y, HEIGHT - BOTTOM, TOP, log_y)

    def at(self, point: Point) -> Point:
        return self.x(point[0]), self.y(point[1])

    def path(self, points: Sequence[Point]) -> str:
        places = (f"{x:.1f} {y:.1f}" for x, y in map(self.at, points))
        return "M" + "L".join(places)

    def drawn(self) -> list[Markup]:
        """The axes; the name of y stands above it, where it can be read without tilting the head."""
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        found = []
        for tick, name in zip(self.y.ticks, tick_labels(self.y.ticks), strict=True):
            y = self.y(tick)
            found.append(element("path", {"class_": "grid", "d": f"M{LEFT} {y:.1f}H{right}"}))
            found.append(element("text", {"class_": "tick end", "x": LEFT - 8, "y": y + 4}, name))
        for tick, name in zip(self.x.ticks, tick_labels(self.x.ticks), strict=True):
            found.append(_gridline(self.x(tick), TOP, bottom, name))
        x_name = self.words.x + (" (log scale)" if self.x.is_log else "")
        y_name = self.words.y + (" (log scale)" if self.y.is_log else "")
        found.append(element("text", {"class_": "axis end", "x": right, "y": HEIGHT - 8}, x_name))
        found.append(element("text", {"class_": "axis", "x": 4, "y": 18}, y_name))
        return found


def _padded(low: float, high: float, is_log: bool = False) -> Point:
    """A little room on either side."""
    if is_log:
        factor = (high / low) ** 0.08
        return low / factor, high * factor
    margin = (high - low) * 0.08
    return low - margin, high + margin


def _gridline(x: float, top: float, bottom: float, name: str) -> Markup:
    line = element("path", {"class_": "grid", "d": f"M{x:.1f} {top}V{bottom}"})
    return line + element("text", {"class_": "tick middle", "x": x, "y": bottom + 20}, name)


def _colour(look: int) -> str:
    return "neutral" if look == NEUTRAL else f"c{look % LOOKS}"


def _mark(series: Series, x: float, y: float, name: str = "") -> Markup:
    """A point; what it is shows on pointing at it."""
    radius = {"large": 8.0, "cross": 13.0, "ring": 7.0, "dashed": 6.0, "faint": 2.6, "speck": 1.9}.get(
        series.kind, 4.2
    )
    shape = _cross(x, y, radius) if series.kind == "cross" else _shape(series.look, x, y, radius)
    found = {"class_": f"mark {series.kind} {_colour(series.look)}", "d": shape}
    return element("path", found, *([element("title", {}, name)] if name else []))


def _cross(x: float, y: float, r: float) -> str:
    return f"M{x - r:.1f} {y:.1f}h{2 * r:.1f}M{x:.1f} {y - r:.1f}v{2 * r:.1f}"


def _shape(look: int, x: float, y: float, r: float) -> str:
    """One of eight outlines of about one area; shapes shift against colours from the ninth class on."""
    shape = (look + look // LOOKS) % LOOKS
    if look == NEUTRAL or shape == 0:  # a circle
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    corners, turn, size = ((3, 0.0, 1.3), (4, 0.125, 1.2), (4, 0.0, 1.25), (3, 0.5, 1.3), (5, 0.0, 1.15))[
        min(shape, 5) - 1
    ]
    if shape == 6:
        corners, turn, size = 6, 0.0, 1.1
    pointed = shape == 7  # a star of four rays
    if pointed:
        corners, size = 8, 1.5
    places = []
    for i in range(corners):
        angle = 2 * math.pi * (i / corners + (0.0 if pointed else turn)) - math.pi / 2
        reach = r * size * (0.42 if pointed and i % 2 else 1.0)
        places.append(f"{x + reach * math.cos(angle):.1f} {y + reach * math.sin(angle):.1f}")
    return "M" + "L".join(places) + "z"


def _labels(frame: _Frame, series: Sequence[Series]) -> list[Markup]:
    """Names beside their points, where they find room: right, left, above or below, and nowhere else."""
    wanted = [(one.name, frame.at(point)) for one in series if one.is_labelled for point in one.points]
    taken = [(x - 6, y - 6, x + 6, y + 6) for _, (x, y) in wanted]
    found = []
    for name, (x, y) in wanted:
        length = _LETTER * len(printable(name))
        for left, base in (
            (x + 12, y + 4),
            (x - 12 - length, y + 4),
            (x - length / 2, y - 13),
            (x - length / 2, y + 22),
        ):
            box = (left, base - 11, left + length, base + 3)
            is_inside = box[0] >= LEFT and box[2] <= WIDTH - 2 and box[1] >= TOP - 8 and box[3] <= HEIGHT - BOTTOM
            if is_inside and not any(_overlap(box, other) for other in taken):
                found.append(element("text", {"class_": "label", "x": left, "y": base}, name))
                taken.append(box)
                break
    return found


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _by_x(series: Sequence[Series]) -> list[list[str]]:
    """A row for every x that any of them has."""
    known = [dict(one.points) for one in series]
    xs = sorted({x for own in known for x in own})
    return [[significant(x), *(significant(own.get(x)) for own in known)] for x in xs]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    first = element("tr", {}, *(element("th", {"scope": "col"}, name) for name in head))
    body = Markup("").join(
        element("tr", {}, element("th", {"scope": "row"}, row[0]), *(element("td", {}, cell) for cell in row[1:]))
        for row in rows
    )
    whole = element("table", {"class_": "numbers"}, element("thead", {}, first), element("tbody", {}, body))
    scroll = element(
        "div", {"class_": "scroll", "tabindex": 0, "role": "region", "aria_label": "The numbers"}, whole
    )
    return element("details", {"class_": "data"}, element("summary", {}, "The numbers as a table"), scroll)


def _legend(series: Sequence[Series]) -> Markup:
    """A list beside the picture, so that it wraps as text does."""
    if not series:
        return Markup("")
    items = []
    for one in series:
        glyph = element(
            "svg", {"viewBox": "0 0 24 24", "aria_hidden": "true", "class_": "glyph"}, _mark(one, 12.0, 12.0)
        )
        items.append(element("li", {}, glyph, one.name))
    return element("ul", {"class_": "legend"}, *items)


def _figure(
    words: Words, drawn: Iterable[Markup], table: Markup, legend: Sequence[Series], height: float = HEIGHT
) -> Markup:
    """The picture with its words: a title, a description, a legend, and the numbers."""
    named = {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img", "class_": "chart"}
    title, description = element("title", {}, words.title), element("desc", {}, words.description)
    caption = element("figcaption", {}, element("strong", {}, words.title), " ", words.description)
    return element(
        "figure", {}, caption, _legend(legend), element("svg", named, title, description, *drawn), table
    )
