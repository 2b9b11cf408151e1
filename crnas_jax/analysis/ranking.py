"""How well one column of scores ranks what another says: is a supernet's score worth anything?

The statistics of a ranking study: rows are architectures, one column scores them, the other holds
what they reached when trained alone, once for each seed.
"""

import csv
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from scipy import stats

from crnas_jax.errors import UserError


def agreement(scores, reached, replicates: int = 2000, seed: int = 0) -> dict:
    """How `scores` rank `reached`.

    Args:
      scores: [rows], higher is better.
      reached: [rows], or [rows, seeds] of which the mean counts.
      replicates: of the bootstrap over rows.
      seed: of the bootstrap.

    Returns:
      `tau` (Kendall's tau-b) and `spearman`, each with a 95 % interval over resampled rows
      (`tau_ci95`, `spearman_ci95`); `regret_top1`: the best mean minus the mean of the row with the
      highest score; `rows`. NaN where a column is constant.

    Raises:
      ValueError: the columns differ in length, or have fewer than three rows.
    """
    scores = np.asarray(scores, float)
    reached = _means(reached)
    if len(scores) != len(reached) or len(scores) < 3:
        raise ValueError(f"{len(scores)} scores for {len(reached)} rows; at least three are needed")
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(scores), size=(replicates, len(scores)))
    found = {"rows": len(scores)}
    for name, statistic in (("tau", _tau), ("spearman", _spearman)):
        found[name] = statistic(scores, reached)
        resampled = [statistic(scores[rows], reached[rows]) for rows in draws]
        resampled = [value for value in resampled if np.isfinite(value)]
        low_high = np.percentile(resampled, [2.5, 97.5]) if resampled else (np.nan, np.nan)
        found[f"{name}_ci95"] = [float(value) for value in low_high]
    found["regret_top1"] = float(reached.max() - reached[np.argmax(scores)])
    return found


def spread(reached: Sequence[Sequence[float]]) -> dict:
    """Where the differences between trainings come from; `reached` is [rows, seeds].

    Returns:
      `seed_std`: of trainings of one architecture (pooled over rows); `row_std`: of their means;
      `reliability`: the share of the variance of those means that is not the seeds' (0..1, the
      square of the greatest correlation any score can be expected to have with them); `seed_tau`:
      Kendall's tau between the first two seeds. NaN with a single seed.
    """
    reached = np.asarray(reached, float)
    seeds = reached.shape[1]
    row_var = float(reached.mean(1).var(ddof=1))
    if seeds < 2:
        return {
            "seed_std": np.nan,
            "row_std": row_var**0.5,
            "reliability": np.nan,
            "seed_tau": np.nan,
        }
    seed_var = float(reached.var(1, ddof=1).mean())
    reliability = max(row_var - seed_var / seeds, 0.0) / row_var if row_var else np.nan
    return {
        "seed_std": seed_var**0.5,
        "row_std": row_var**0.5,
        "reliability": reliability,
        "seed_tau": _tau(reached[:, 0], reached[:, 1]),
    }


def repeats(scores: Sequence[Sequence[float]]) -> dict:
    """Agreement of repeated scorings, [rows, repeats]: the least `tau` of two, and their `std`."""
    scores = np.asarray(scores, float)
    number = scores.shape[1]
    taus = [_tau(scores[:, i], scores[:, j]) for i in range(number) for j in range(i)]
    return {
        "tau": min(taus) if taus else np.nan,
        "std": float(np.sqrt(scores.var(1, ddof=1).mean())) if number > 1 else np.nan,
    }


def read_table(path: str | pathlib.Path, columns: Sequence[str]) -> np.ndarray:
    """Numbers [rows, columns] of a CSV file with a header.

    Raises:
      UserError: no such file or column, an entry that is no number, or fewer than three rows.
    """
    rows = _rows(path, columns)
    if len(rows) < 3:
        raise UserError(path, "rows", f"there are {len(rows)}", "give at least three")
    numbers = np.empty((len(rows), len(columns)))
    for line, row in enumerate(rows):
        for place, column in enumerate(columns):
            try:
                numbers[line, place] = float(row[column])
                if not math.isfinite(numbers[line, place]):
                    raise ValueError
            except (TypeError, ValueError) as error:
                raise UserError(
                    path, f"line {line + 2}", f"{column} is {row[column]!r}", "give a number"
                ) from error
    return numbers


def read_names(path: str | pathlib.Path, column: str) -> list[str]:
    """The entries of a column of a CSV file."""
    return [row[column] for row in _rows(path, [column])]


def without_nan(value):
    """The same with None for what is not a number, as JSON wants it."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rows(path, columns):
    try:
        with pathlib.Path(path).open(newline="", encoding="utf-8-sig") as file:  # Excel's mark
            reader = csv.DictReader(file)
            rows, header = list(reader), reader.fieldnames or []
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(path, "file", str(error), "give a CSV file") from error
    for column in columns:
        if header.count(column) != 1:
            number = "two columns" if column in header else "no column"
            raise UserError(path, "header", f"{number} {column!r}", f"there are {header}")
    return rows


def _means(values):
    values = np.asarray(values, float)
    return values if values.ndim == 1 else values.mean(1)


def _tau(first, second):
    return _statistic(stats.kendalltau, first, second)


def _spearman(first, second):
    return _statistic(stats.spearmanr, first, second)


def _statistic(function, first, second):
    if np.ptp(first) == 0 or np.ptp(second) == 0:  # no ranking
        return float("nan")
    return float(function(first, second).statistic)
