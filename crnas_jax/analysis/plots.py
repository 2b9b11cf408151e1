"""Figures of measurements."""

import pathlib
from collections.abc import Sequence

import numpy as np

from crnas_jax.errors import UserError


def scatter(
    path: str | pathlib.Path,
    x: Sequence[float],
    y,
    x_name: str,
    y_name: str,
    names: Sequence[str] = (),
    title: str = "",
) -> None:
    """Draw a scatter plot of two columns as PNG.

    Args:
      path: file to write.
      x: values on the x axis, [rows].
      y: values on the y axis, [rows], or [rows, seeds], drawn as mean and range.
      x_name: label of the x axis.
      y_name: label of the y axis.
      names: names of the rows, drawn beside their points.
      title: title of the figure.

    Raises:
      UserError: the file cannot be written.
    """
    # Importing matplotlib takes a second, which only callers that draw should pay. The Agg canvas
    # needs no display and no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    y = np.asarray(y, float).reshape(len(x), -1)
    figure = Figure(figsize=(6, 5), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    mean = y.mean(1)
    # Rounding may put the mean of equal numbers below or above them.
    error_bars = np.maximum([mean - y.min(1), y.max(1) - mean], 0)
    axes.errorbar(x, mean, error_bars, fmt="o", capsize=3)
    for name, *place in zip(names, x, mean, strict=False):
        # Names are shown as they are, not parsed as formulas.
        axes.annotate(name, place, (4, 4), textcoords="offset points", fontsize=7, parse_math=False)
    axes.set_xlabel(x_name, parse_math=False)
    axes.set_ylabel(y_name, parse_math=False)
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:  # a missing folder or an unknown format
        problem = str(error)
        raise UserError(path, "file", problem, "name a .png that can be written") from error
