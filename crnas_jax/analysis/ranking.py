"""Statistics of a ranking study: how well scores rank architectures.

Rows are architectures. One column scores them, for instance with a supernet; the other holds the
results of training each of them alone, once for each seed.
"""

import csv
import functools
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from scipy import stats

from crnas_jax.errors import UserError


def agreement(scores, results, num_samples: int = 2000, seed: int = 0) -> dict:
    """Measure how well `scores` rank `results`.

    Args:
      scores: scores of the rows, [rows], higher is better.
      results: results of the rows, [rows], or [rows, seeds] to be averaged over seeds.
      num_samples: number of bootstrap samples of the rows.
      seed: seed of the bootstrap samples.

    Returns:
      `tau` (Kendall's tau-b) and `spearman`, each with a 95 % interval over resampled rows
      (`tau_ci95`, `spearman_ci95`); `regret_top1` and `regret_top4`: largest mean result minus that
      of the row with the highest score, and minus the best of the four rows with the highest
      scores, with intervals as well; `rows`: number of rows. NaN where a column is constant.

    Raises:
      ValueError: the columns differ in length, or have fewer than three rows.
    """
    scores = np.asarray(scores, float)
    results = _row_means(results)
    if len(scores) != len(results) or len(scores) < 3:
        raise ValueError(f"{len(scores)} scores for {len(results)} rows; at least three are needed")
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(scores), size=(num_samples, len(scores)))
    statistics = {"rows": len(scores)}
    names = {
        "tau": _tau,
        "spearman": _spearman,
        "regret_top1": functools.partial(_regret, 1),
        "regret_top4": functools.partial(_regret, 4),
    }
    for name, statistic in names.items():
        statistics[name] = statistic(scores, results)
        resampled = [statistic(scores[rows], results[rows]) for rows in draws]
        resampled = [value for value in resampled if np.isfinite(value)]
        low_high = np.percentile(resampled, [2.5, 97.5]) if resampled else (np.nan, np.nan)
        statistics[f"{name}_ci95"] = [float(value) for value in low_high]
    return statistics


def spread(results: Sequence[Sequence[float]]) -> dict:
    """Split the differences between trainings into seeds and architectures.

    Args:
      results: results of the rows, [rows, seeds].

    Returns:
      `seed_std`: standard deviation between trainings of one architecture (pooled over rows);
      `row_std`: standard deviation of the rows' means; `reliability`: share of the variance of
      those means that does not come from the seeds (0..1, the square of the largest correlation
      that any score can be expected to have with them); `seed_tau`: Kendall's tau between the first
      two seeds. With a single seed all but `row_std` are NaN.
    """
    results = np.asarray(results, float)
    num_seeds = results.shape[1]
    row_var = float(results.mean(1).var(ddof=1))
    if num_seeds < 2:
        return {
            "seed_std": np.nan,
            "row_std": row_var**0.5,
            "reliability": np.nan,
            "seed_tau": np.nan,
        }
    seed_var = float(results.var(1, ddof=1).mean())
    reliability = max(row_var - seed_var / num_seeds, 0.0) / row_var if row_var else np.nan
    return {
        "seed_std": seed_var**0.5,
        "row_std": row_var**0.5,
        "reliability": reliability,
        "seed_tau": _tau(results[:, 0], results[:, 1]),
    }


def repeats(scores: Sequence[Sequence[float]]) -> dict:
    """Measure how well repeated scorings of the same rows agree.

    Args:
      scores: scores of the rows, [rows, repeats].

    Returns:
      `tau`: smallest Kendall's tau between two repeats; `std`: standard deviation between repeats
      (pooled over rows). NaN with a single repeat.
    """
    scores = np.asarray(scores, float)
    num_repeats = scores.shape[1]
    taus = [_tau(scores[:, i], scores[:, j]) for i in range(num_repeats) for j in range(i)]
    return {
        "tau": min(taus) if taus else np.nan,
        "std": float(np.sqrt(scores.var(1, ddof=1).mean())) if num_repeats > 1 else np.nan,
    }


def read_table(path: str | pathlib.Path, columns: Sequence[str]) -> np.ndarray:
    """Read numbers [rows, columns] from a CSV file with a header.

    Args:
      path: CSV file.
      columns: names of the columns.

    Raises:
      UserError: there is no such file or column, an entry is no number, or there are fewer than
        three rows.
    """
    rows = _read_rows(path, columns)
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
    """Read the entries of one column of a CSV file with a header.

    Raises:
      UserError: there is no such file or column.
    """
    return [row[column] for row in _read_rows(path, [column])]


def nan_to_none(value):
    """Return the value with None for NaN and infinities, which JSON does not have.

    Args:
      value: number, string or None, or lists and dicts of these.
    """
    if isinstance(value, dict):
        return {name: nan_to_none(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [nan_to_none(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_rows(path, columns):
    try:
        with pathlib.Path(path).open(newline="", encoding="utf-8-sig") as file:  # Excel adds a BOM
            reader = csv.DictReader(file)
            rows, header = list(reader), reader.fieldnames or []
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(path, "file", str(error), "give a CSV file") from error
    for column in columns:
        if header.count(column) != 1:
            problem = "two columns" if column in header else "no column"
            raise UserError(path, "header", f"{problem} {column!r}", f"there are {header}")
    return rows


def _row_means(values):
    values = np.asarray(values, float)
    return values if values.ndim == 1 else values.mean(1)


def _regret(count, scores, results):
    first = np.argsort(-scores, kind="stable")[:count]
    return float(results.max() - results[first].max())


def _tau(first, second):
    return _correlation(stats.kendalltau, first, second)


def _spearman(first, second):
    return _correlation(stats.spearmanr, first, second)


def _correlation(function, first, second):
    if np.ptp(first) == 0 or np.ptp(second) == 0:  # a constant column ranks nothing
        return float("nan")
    return float(function(first, second).statistic)
