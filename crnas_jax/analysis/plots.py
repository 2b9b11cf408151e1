"""Figures of what was measured."""

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
    """A scatter plot of two columns as PNG.

    Args:
      path: of the file.
      x: [rows].
      y: [rows], or [rows, seeds]: mean and range are drawn.
      x_name: of the axis.
      y_name: of the axis.
      names: of the rows.
      title: of the figure.

    Raises:
      UserError: the file cannot be written.
    """
    # Importing it takes a second; only those who draw pay. No display, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    y = np.asarray(y, float).reshape(len(x), -1)
    figure = Figure(figsize=(6, 5), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    mean = y.mean(1)
    # A mean of equal numbers may be rounded to less or more than they are.
    reach = np.maximum([mean - y.min(1), y.max(1) - mean], 0)
    axes.errorbar(x, mean, reach, fmt="o", capsize=3)
    for name, *place in zip(names, x, mean, strict=False):
        # A name is shown as it is: it is no formula.
        axes.annotate(name, place, (4, 4), textcoords="offset points", fontsize=7, parse_math=False)
    axes.set_xlabel(x_name, parse_math=False)
    axes.set_ylabel(y_name, parse_math=False)
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:  # no such folder, no such format
        problem = str(error)
        raise UserError(path, "file", problem, "name a .png that can be written") from error
