"""Charts as values, drawn as SVG.

A chart is drawn with the classes of `html/report.css`, so that it follows a page's colours; in a
file of its own (`plots.save`) these come with it. Series differ in marker or dash, not in colour
alone.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from crnas_jax.analysis.markup import element, join, shorten

WIDTH, HEIGHT = 400, 280
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 12, 44
_LINE = 18
NUM_STYLES = 6
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "dot")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 4")


@dataclasses.dataclass(frozen=True)
class Series:
    """Points or a line.

    Attributes:
      name: text in the legend; "" for none.
      x: values on the x axis, [n].
      y: values on the y axis, [n]; NaN where there is none.
      style: number of its colour, marker and dash, from 0.
      is_line: whether the points are joined, and have no markers.
      low: lower ends of intervals, [n]; None for no intervals.
      high: upper ends, [n].
      keys: which network each point, or the whole line, is: what a page follows; () for none.
      labels: texts drawn beside the points; () for none.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = 0
    is_line: bool = False
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    keys: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Chart:
    """Series over two axes.

    Attributes:
      title: what it shows.
      x_name: name of the x axis with its unit.
      y_name: name of the y axis with its unit.
      series: what is drawn, the last on top.
      marks: vertical lines, by their text their place on the x axis.
      x_limits: ends of the x axis; None for those of the values.
      y_limits: ends of the y axis; None for those of the values.
      least_span: least length of the y axis: no small difference fills it.
    """

    title: str
    x_name: str
    y_name: str
    series: tuple[Series, ...]
    marks: tuple[tuple[str, float], ...] = ()
    x_limits: tuple[float, float] | None = None
    y_limits: tuple[float, float] | None = None
    least_span: float = 0.0

    @property
    def legend(self) -> tuple[Series, ...]:
        """Series with a name."""
        return tuple(series for series in self.series if series.name)


@dataclasses.dataclass(frozen=True)
class Axis:
    """Values on a line of pixels.

    Attributes:
      low: value at `start`.
      high: value at `end`.
      start: pixel of the lower value.
      end: pixel of the higher one.
    """

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values, marks, limits, start, end, least_span=0.0) -> "Axis":
        """Return the axis that holds values with some room."""
        if limits is not None:
            return cls(*limits, start, end)
        values = np.asarray([*values, *marks], float)
        values = values[np.isfinite(values)]
        low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
        room = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
        room = max(room, (least_span - (high - low)) / 2)
        return cls(float(low - room), float(high + room), start, end)

    def place(self, values) -> np.ndarray:
        """Return the pixels of values, to a tenth."""
        share = (np.asarray(values, float) - self.low) / (self.high - self.low)
        return np.round(self.start + share * (self.end - self.start), 1)

    def ticks(self, count: int = 5) -> list[float]:
        """Return about `count` round values on the axis."""
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / count))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if span / (m * power) <= count + 0.5)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(step * place, 12) for place in range(first, last + 1)]


def axes(chart: Chart) -> tuple[Axis, Axis]:
    """Return the axes of a chart in pixels of its SVG."""
    xs = [value for series in chart.series for value in series.x]
    ys = [
        value
        for series in chart.series
        for values in (series.y, series.low, series.high)
        if values is not None
        for value in values
    ]
    marks = [place for _, place in chart.marks]
    x_axis = Axis.around(xs, marks, chart.x_limits, LEFT, WIDTH - RIGHT)
    bottom = HEIGHT - BOTTOM
    return x_axis, Axis.around(ys, (), chart.y_limits, bottom, TOP, chart.least_span)


def svg(chart: Chart, style: str = "") -> Markup:
    """Return a chart as an SVG element.

    Args:
      chart: the chart.
      style: style sheet that comes with it, with the title, in a file of its own.
    """
    x_axis, y_axis = axes(chart)
    height = HEIGHT + _LINE * len(chart.legend) + (_LINE if style else 0)
    parts = [element("title", chart.title)]
    if style:
        ground = element("rect", width="100%", height="100%", class_="ground")
        parts += [element("style", Markup(style)), ground]
        parts.append(_text(shorten(chart.title, 70), 8, height - 6, "start"))
    parts += _grid(chart, x_axis, y_axis)
    parts += (_series(series, x_axis, y_axis) for series in chart.series)
    parts += (_legend(series, HEIGHT + _LINE * row) for row, series in enumerate(chart.legend))
    attributes = {"width": WIDTH, "height": height} if style else {}
    return element(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height}",
        class_="chart",
        role="img",
        **attributes,
    )


def dash_of(style: int) -> str:
    """Return the dashes of a style; with the colour they make 36 different lines."""
    return DASHES[(style + style // NUM_STYLES) % NUM_STYLES]


def marker_of(style: int) -> str:
    """Return the marker of a style."""
    return MARKERS[(style + style // NUM_STYLES) % NUM_STYLES]


def number(value: float) -> str:
    """Return a number of an axis or a table, without needless digits."""
    return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.3g}"


def _text(content, x, y, anchor="middle", **attributes):
    return element("text", content, x=x, y=y, text_anchor=anchor, **attributes)


def _grid(chart, x_axis, y_axis):
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in x_axis.ticks():
        x = x_axis.place(value)
        yield element("path", d=f"M{x} {TOP}V{bottom}", class_="grid")
        yield _text(number(value), x, bottom + 16, class_="tick")
    for value in y_axis.ticks():
        y = y_axis.place(value)
        yield element("path", d=f"M{LEFT} {y}H{right}", class_="grid")
        yield _text(number(value), LEFT - 6, y + 4, "end", class_="tick")
    yield element("path", d=f"M{LEFT} {TOP}V{bottom}H{right}", class_="axis")
    yield _text(shorten(chart.x_name, 64), (LEFT + right) / 2, HEIGHT - 10)
    middle = (TOP + bottom) / 2
    place = f"rotate(-90 14 {middle})"
    yield _text(shorten(chart.y_name, 44), 14, middle, transform=place)
    for label, value in chart.marks:
        x = x_axis.place(value)
        yield element("path", d=f"M{x} {TOP}V{bottom}", class_="mark")
        is_right = x > (LEFT + right) / 2
        yield _text(shorten(label, 30), x + (-4 if is_right else 4), TOP + 10, _side(is_right))


def _side(is_right):
    return "end" if is_right else "start"


def _series(series, x_axis, y_axis):
    x, y = x_axis.place(series.x), y_axis.place(series.y)
    is_there = np.isfinite(x) & np.isfinite(y)
    key = series.keys[0] if len(series.keys) == 1 else None
    parts = []
    if series.low is not None:
        low, high = y_axis.place(series.low), y_axis.place(series.high)
        bars = [
            f"M{a:g} {b:g}V{c:g}"
            for a, b, c in zip(x, low, high, strict=True)
            if np.isfinite([a, b, c]).all()
        ]
        parts.append(element("path", d="".join(bars), class_="interval"))
    if series.is_line:
        parts.append(
            element(
                "path",
                d=_line(x, y, is_there),
                class_="line",
                stroke_dasharray=dash_of(series.style) or None,
            )
        )
    else:
        points = zip(x[is_there].tolist(), y[is_there].tolist(), strict=True)
        marker = marker_of(series.style)
        # A path of all points takes a tenth of the room of an element for each.
        parts.append(
            element("path", d="".join(_MARKS[marker](a, b) for a, b in points), class_=marker)
        )
    for label, a, b in zip(series.labels, x, y, strict=False):
        is_right = a > (LEFT + WIDTH) / 2
        parts.append(_text(shorten(label, 24), a + (-7 if is_right else 7), b + 4, _side(is_right)))
    return element("g", *parts, class_=f"series s{series.style % NUM_STYLES}", data_network=key)


def _line(x, y, is_there):
    """Return the path of a line, which is interrupted where a value is missing."""
    parts, is_open = [], False
    for a, b, there in zip(x.tolist(), y.tolist(), is_there.tolist(), strict=True):
        if there:  # "h0" is a dot where a point stands alone
            parts.append(f"L{a:g} {b:g}" if is_open else f"M{a:g} {b:g}h0")
        is_open = there
    return "".join(parts)


def _legend(series, y):
    if series.is_line:
        swatch = element(
            "path",
            d=f"M{LEFT} {y}H{LEFT + 26}",
            class_="line",
            stroke_dasharray=dash_of(series.style) or None,
        )
    else:
        marker = marker_of(series.style)
        swatch = element("path", d=_MARKS[marker](LEFT + 13, y), class_=marker)
    key = series.keys[0] if len(series.keys) == 1 else None
    return join(
        [
            element("g", swatch, class_=f"series s{series.style % NUM_STYLES}", data_network=key),
            _text(shorten(series.name, 56), LEFT + 34, y + 4, "start"),
        ]
    )


# A circle or a dot is a line without length and with round ends.
_MARKS = {
    "circle": lambda x, y: f"M{x:g} {y:g}h0",
    "square": lambda x, y: f"M{x - 3.5:g} {y - 3.5:g}h7v7h-7z",
    "diamond": lambda x, y: f"M{x:g} {y - 5:g}l5 5l-5 5l-5 -5z",
    "triangle": lambda x, y: f"M{x:g} {y - 5:g}l5 9h-10z",
    "cross": lambda x, y: f"M{x - 4:g} {y - 4:g}l8 8m0 -8l-8 8",
    "dot": lambda x, y: f"M{x:g} {y:g}h0",
}
