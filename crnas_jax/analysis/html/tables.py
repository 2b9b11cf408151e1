"""What the sections of a page share: sections, tables, figures, numbers."""

from collections.abc import Sequence

from markupsafe import Markup

from crnas_jax.analysis.charts import Chart, axes, svg
from crnas_jax.analysis.markup import element, join, text
from crnas_jax.analysis.report import points

MISSING = "\u2013"


def section(title: str, *children, ident: str) -> Markup | None:
    """Return a section with its heading; None where nothing is in it."""
    children = [child for child in children if child is not None]
    if not children:
        return None
    return element("section", element("h2", title), *children, id=ident)


def paragraph(*children, **attributes) -> Markup:
    """Return a paragraph."""
    return element("p", *children, **attributes)


def table(header: Sequence, rows: Sequence[Sequence], caption: str = "", **attributes) -> Markup:
    """Return a table that scrolls by itself where it is too wide; first entries name the rows.

    Args:
      header: texts of the columns.
      rows: entries by row, `Markup` or text; a `Markup` that is a cell already stays one.
      caption: what the table shows.
      **attributes: attributes of the table.
    """
    body = [
        element("tr", *(_cell(entry, place == 0) for place, entry in enumerate(row)))
        for row in rows
    ]
    head = element("tr", *(element("th", entry, scope="col") for entry in header))
    attributes = {"aria_label": caption or None, **attributes}
    shown = element("table", element("thead", head), element("tbody", *body), **attributes)
    head = element("p", caption, class_="caption") if caption else None
    return element("div", head, wide(shown, role="region", aria_label=caption or "table"))


def wide(content: Markup, class_: str = "", **attributes) -> Markup:
    """Return what scrolls by itself where it is too wide, with the keyboard too."""
    class_ = f"wide {class_}".strip()
    return element("div", content, class_=class_, tabindex="0", **attributes)


def _cell(entry, is_first):
    if isinstance(entry, Markup) and entry.startswith(("<td", "<th")):
        return entry
    return element("th", entry, scope="row") if is_first else element("td", entry)


def percent(value: float | None, interval: Sequence[float] | None = None) -> Markup:
    """Return a fraction in percent as a cell, with its interval."""
    if value is None:
        return element("td", MISSING)
    shown = join([f"{100 * value:.1f}", " "]) if interval else text(f"{100 * value:.1f}")
    return element("td", shown, span(interval), data_value=f"{value!r}")


def span(interval: Sequence[float] | None) -> Markup | None:
    """Return an interval of fractions in percent."""
    if not interval or None in interval:
        return None
    low, high = interval
    return element("span", f"[{100 * low:.1f}, {100 * high:.1f}]", class_="interval")


def difference(row: dict | None, name: str = "AP") -> str:
    """Return a difference in AP with its interval, both in percent points."""
    if not row or row.get(name) is None:
        return MISSING
    low, high = map(points, row["ci95"])
    return f"{points(row[name])} [{low}, {high}]"


def figure(chart: Chart, networks: dict[str, int] | None = None, about: str = "") -> Markup:
    """Return a chart with its caption, and what a page needs to find its points.

    Args:
      chart: the chart.
      networks: by key of a network its place in the page's list of networks; None for a chart that
        is only looked at.
      about: what there is to see in it.
    """
    title = element("strong", chart.title)
    caption = element("figcaption", title, f" {about}" if about else None)
    attributes = {}
    if networks is not None:
        points = _points(chart, networks)
        if points:
            label = f"{chart.title}. Arrow keys go through the networks, Enter follows one."
            attributes = {"data_points": points, "tabindex": "0", "aria_label": label}
    drawing = element("div", svg(chart), class_="plot", role="group", **attributes)
    return element("figure", drawing, caption)


def _points(chart, networks):
    """Return the points that have a network: its number and their place, in one text."""
    x_axis, y_axis = axes(chart)
    points = {}
    for series in chart.series:
        if len(series.keys) != len(series.x) or series.is_line:
            continue
        places = zip(x_axis.place(series.x), y_axis.place(series.y), strict=True)
        for key, (x, y) in zip(series.keys, places, strict=True):
            if key in networks and x == x and y == y:
                points[networks[key], x, y] = None
    return " ".join(f"{number},{x:g},{y:g}" for number, x, y in points)


def details(summary: str, *children) -> Markup:
    """Return what is shown on demand."""
    return element("details", element("summary", summary), *children)


def grid(*children, class_: str = "") -> Markup:
    """Return figures beside each other where there is room."""
    return element("div", *children, class_=f"grid {class_}".strip())


def duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    seconds = round(seconds)
    for unit, size, smaller, smaller_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // smaller_size} {smaller}"
    return f"{seconds} s"
