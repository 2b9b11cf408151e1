"""The figures of searches, trainings and studies, for pages and files: each is a `charts.Chart`."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from crnas_jax.analysis.charts import MARKERS, Chart, Series, dash_of, marker_of, svg
from crnas_jax.arch.staged import code_label
from crnas_jax.errors import UserError
from crnas_jax.evaluation.precision_recall import RECALLS

# Points of a training curve: more are averaged.
_CURVE_POINTS = 150
# More points than this have no intervals, which would hide each other.
_MOST_INTERVALS = 60
_MARKERS = dict(zip(MARKERS, "os^Dx.", strict=True))  # as matplotlib names them
# The style sheet of figures, in pages and in files.
STYLE = pathlib.Path(__file__).with_name("html") / "chart.css"


def scatter(
    x: Sequence[float],
    y,
    x_name: str,
    y_name: str,
    names: Sequence[str] = (),
    title: str = "",
    keys: Sequence[str] = (),
    least_span: float = 0.0,
) -> Chart:
    """Return points of two columns.

    Args:
      x: values on the x axis, [rows].
      y: values on the y axis, [rows], or [rows, seeds], drawn as mean and range.
      x_name: label of the x axis.
      y_name: label of the y axis.
      names: names of the rows, drawn beside their points.
      title: title of the figure.
      keys: see `Series.keys`.
      least_span: see `Chart.least_span`.
    """
    y = np.asarray(y, float).reshape(len(x), -1)
    low, high = (y.min(1), y.max(1)) if y.shape[1] > 1 else (None, None)
    series = Series("", x, y.mean(1), low=low, high=high, labels=tuple(names), keys=tuple(keys))
    return Chart(title, x_name, y_name, (series,), least_span=least_span)


def scores_over_cost(
    cost_name: str,
    costs: Sequence[float],
    rows: Sequence[Mapping],
    keys: Sequence[str],
    marked: Mapping[str, Sequence[str]],
    marks: Sequence[tuple[str, float]] = (),
    score_name: str = "AP in the supernet, %",
) -> Chart:
    """Return every scored network as its score over its cost.

    Args:
      cost_name: name of the cost with its unit.
      costs: cost of each network, [rows].
      rows: lines of a journal, `score` and `ci95`, [rows].
      keys: which network each is, [rows].
      marked: networks that are drawn once more, by the name of the series.
      marks: costs that are marked by a line, with their text.
      score_name: label of the scores' axis.
    """
    scores = 100 * np.array([row["score"] for row in rows], float)
    ends = [[None, None]] * len(rows)
    if len(rows) <= _MOST_INTERVALS:
        ends = [row.get("ci95", (None, None)) for row in rows]
    low, high = 100 * np.array(ends, float).reshape(-1, 2).T
    all_series = [Series("scored", costs, scores, 5, low=low, high=high, keys=tuple(keys))]
    front = pareto_front(costs, scores)
    if len(front) > 1:
        x, y = ([values[row] for row in front] for values in (costs, scores))
        all_series.append(Series("Pareto front", x, y, 2, is_line=True))
    place = {key: row for row, key in enumerate(keys)}
    for style, (name, wanted) in enumerate(marked.items()):
        chosen = [place[key] for key in wanted if key in place]
        if chosen:
            x, y = ([values[row] for row in chosen] for values in (costs, scores))
            names = tuple(keys[row] for row in chosen)
            all_series.append(Series(name, x, y, (1, 3, 4, 2)[style % 4], keys=names))
    title = f"Score over {cost_name}"
    return Chart(title, cost_name, score_name, tuple(all_series), tuple(marks))


def scores_in_order(scores: Sequence[float], keys: Sequence[str], score_name: str) -> Chart:
    """Return the scores of proposals in their order, and the best so far.

    Args:
      scores: score of each proposal, a fraction; NaN where it has none yet.
      keys: which network each is.
      score_name: label of the scores' axis.
    """
    numbers, values = np.arange(1, len(scores) + 1), 100 * np.asarray(scores, float)
    series = (
        Series("proposed", numbers, values, 5, keys=tuple(keys)),
        Series("best so far", numbers, np.fmax.accumulate(values), 2, is_line=True),
    )
    return Chart("Scores in the order of proposals", "proposal", score_name, series)


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Return the rows than which none is as cheap and better, or as good and cheaper, by cost."""
    front, best = [], -np.inf
    for row in np.lexsort((-np.asarray(scores), costs)).tolist():
        if scores[row] > best:
            front.append(row)
            best = scores[row]
    return front


def training_curves(title: str, runs: Mapping[str, Sequence[Mapping]], keys=None) -> Chart:
    """Return the loss of trainings over their steps, averaged over stretches of equal length.

    Args:
      title: title of the figure.
      runs: by name the lines of `metrics.jsonl`.
      keys: which network each training is, by name; None for no network.
    """
    series = []
    for style, (name, rows) in enumerate(runs.items()):
        steps, losses = zip(*((row["step"], row["loss"]) for row in rows), strict=True)
        x, y = (_averaged(values) for values in (steps, losses))
        key = (keys[name],) if keys and name in keys else ()
        series.append(Series(name, x, y, style, is_line=True, keys=key))
    last = max((max(one.x) for one in series if len(one.x)), default=1)
    return Chart(title, "step", "loss", tuple(series), (), (0, last))


def precision_recall(title: str, curves: Sequence[tuple[str, Sequence[float]]]) -> Chart:
    """Return precision over recall: names, and the precisions at the 101 recalls."""
    series = tuple(
        Series(name, RECALLS, curve, style, is_line=True)
        for style, (name, curve) in enumerate(curves)
    )
    return Chart(title, "recall", "precision", series, (), (0.0, 1.0), (0.0, 1.02))


def ranking(result: Mapping) -> Chart:
    """Return a ranking study (`studies.ranking_study`): AP trained alone over supernet scores."""
    rows, tau = result["rows"], result["agreement"]["tau"]
    names = [code_label(row["code"]) for row in rows]
    return scatter(
        [100 * row["score"][0] for row in rows],
        [[100 * ap for ap in row["AP"]] for row in rows],
        "AP on val with inherited weights, %",
        "AP on test, trained alone, %",
        names,
        f"Kendall's tau {tau:.2f}" if tau is not None else "Scores and trainings",
        names,
    )


def strategies(rows: Sequence[Mapping[str, Mapping]]) -> Chart:
    """Return a study of strategies (`studies.strategy_study`): AP found over image passes.

    Args:
      rows: for each seed the results by strategy.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    series = tuple(
        Series(
            name,
            [row[name]["image_passes"] for row in rows],
            [100 * row[name]["AP"] for row in rows],
            style,
        )
        for style, name in enumerate(names)
    )
    return Chart("Strategies, a point for each seed", "image passes", "AP found, %", series)


def save(chart: Chart, path: str | pathlib.Path) -> None:
    """Write a chart as .svg, or as .png by matplotlib.

    Raises:
      UserError: the file cannot be written, or is of neither kind.
    """
    path = pathlib.Path(path)
    with writing(path):
        if path.suffix.lower() == ".svg":
            path.write_text(svg(chart, STYLE.read_text()), encoding="utf-8")
        else:
            _save_png(chart, path)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turn what goes wrong with a figure's file into a UserError."""
    remedy = "name a .svg or .png that can be written"
    if path.suffix.lower() not in (".svg", ".png"):
        raise UserError(path, "file", f"{path.suffix!r} is no format of figures", remedy)
    try:
        yield
    except OSError as error:
        raise UserError(path, "file", str(error), remedy) from error


def _save_png(chart, path):
    # Importing matplotlib takes a second, which only callers that draw should pay. The Agg canvas
    # needs no display and no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.6), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for series in chart.series:
        colour = f"C{series.style % 6}"
        if series.low is not None:
            axes.vlines(series.x, series.low, series.high, colour, alpha=0.5, linewidth=1)
        form = {"linestyle": "none", "marker": _MARKERS[marker_of(series.style)], "markersize": 4}
        if series.is_line:
            dash = [float(part) for part in dash_of(series.style).split()]
            form = {"linestyle": (0, dash) if dash else "-"}
        axes.plot(series.x, series.y, color=colour, label=series.name or "_", **form)
        for label, *place in zip(series.labels, series.x, series.y, strict=False):
            # Names are shown as they are, not parsed as formulas.
            axes.annotate(
                label, place, (4, 4), textcoords="offset points", fontsize=7, parse_math=False
            )
    for label, place in chart.marks:
        axes.axvline(place, color="0.3", linestyle=":", linewidth=1)
        at_top = axes.get_xaxis_transform()
        axes.text(place, 1, label, transform=at_top, va="top", fontsize=7, parse_math=False)
    for limits, set_limits in ((chart.x_limits, axes.set_xlim), (chart.y_limits, axes.set_ylim)):
        if limits is not None:
            set_limits(limits)
    axes.set_xlabel(chart.x_name, parse_math=False)
    axes.set_ylabel(chart.y_name, parse_math=False)
    axes.set_title(chart.title, fontsize=9, parse_math=False)
    axes.grid(alpha=0.3)
    if chart.legend:
        legend = axes.legend(fontsize=7)
        for entry in legend.get_texts():
            entry.set_parse_math(False)
    figure.tight_layout()
    figure.savefig(path)


def _averaged(values):
    """Return the means of at most `_CURVE_POINTS` stretches of about equal length."""
    values = np.asarray(values, float)
    parts = np.array_split(values, min(_CURVE_POINTS, len(values)))
    return [float(part.mean()) for part in parts]
