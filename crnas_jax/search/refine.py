"""Which network of a last rung is returned: evidence for a difference to the baseline.

A rung holds the baseline and its challengers, each trained with the same seeds and scored on the
same images. Run and simulation (`benchmarks/decision.py`) call the same functions.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import special

from crnas_jax.runtime.options import check_below_one, check_counts, check_positive

BASELINE = "baseline"
# What compared networks are called in sentences.
CALLED = {BASELINE: "baseline", "stage_only": "stage-only", "searched": "found"}


@dataclasses.dataclass(frozen=True)
class RefineOptions:
    """How what the searches found is trained and compared before a network is returned.

    Attributes:
      finalists: best allocations of the stage search, or scale-permuted networks, that are trained
        alone with the short schedule, beside the baseline's; 0 for the paper's procedure, which
        trains none.
      operation_finalists: best codes of the operation search that are, beside the code of ones; 0
        takes the best code untrained.
      short: epochs of a finalist over those of the full schedule.
      seeds: trainings of each network of the last rung.
      confidence: least probability of being better than the baseline for a network to be returned.
    """

    finalists: int = 4
    operation_finalists: int = 2
    short: float = 1 / 3
    seeds: int = 2
    confidence: float = 0.8

    def __post_init__(self):
        check_counts(self, "finalists", "operation_finalists", least=0)
        check_counts(self, "seeds")
        check_positive(self, "short", "confidence")
        check_below_one(self, "confidence")

    def num_finalists(self, level: str) -> int:
        """Return how many of a search's best are trained alone; none in the paper's procedure."""
        if not self.finalists:
            return 0
        return self.operation_finalists if level == "operation" else self.finalists

    @property
    def num_seeds(self) -> int:
        """Number of trainings of each compared network."""
        return self.seeds if self.finalists else 1


@dataclasses.dataclass(frozen=True)
class Difference:
    """AP of a network minus AP of the baseline, over images and seeds.

    Attributes:
      value: difference of the means over seeds.
      interval: 95 % interval.
      probability: how probable it is that the network is better; None where a single seed leaves
        the spread between trainings unknown.
    """

    value: float
    interval: tuple[float, float]
    probability: float | None


def difference(ap: np.ndarray, draws: np.ndarray, network: int) -> Difference:
    """Compare a network of a rung with the first one.

    The variance of a difference is that of the paired bootstrap over images of the means over
    seeds, plus 2/n times the variance between the n seeds, pooled over all networks of the rung;
    its quantiles are those of Student's t with the degrees of freedom of the latter. With a single
    seed the interval is the bootstrap's, over images alone.

    Args:
      ap: AP of distinct networks, each with every seed, [networks, seeds].
      draws: mean AP over seeds on resampled images, the same for all networks,
        [networks, samples].
      network: row of the network.
    """
    if network == 0:  # itself, whatever the spread of its trainings
        return Difference(0.0, (0.0, 0.0), 0.5)
    ap, num_seeds = np.asarray(ap, float), np.shape(ap)[1]
    value = float(ap[network].mean() - ap[0].mean())
    differences = np.asarray(draws[network], float) - np.asarray(draws[0], float)
    if num_seeds == 1:
        low, high = np.quantile(differences, [0.025, 0.975])
        return Difference(value, (min(float(low), value), max(float(high), value)), None)
    variance = differences.var(ddof=1) + 2 / num_seeds * ap.var(axis=1, ddof=1).mean()
    error, freedom = float(np.sqrt(variance)), len(ap) * (num_seeds - 1)
    half_width = special.stdtrit(freedom, 0.975) * error
    # Without any spread (networks that detect nothing) only equality is uncertain.
    score = value / error if error else np.inf * value if value else 0.0
    probability = float(special.stdtr(freedom, score))
    return Difference(value, (value - half_width, value + half_width), probability)


def intervals(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return 95 % intervals, within 0 to 1, of a metric of networks by the rule of `difference`.

    Args:
      values: the metric of each network with every seed, [networks, seeds].
      draws: its mean over seeds on resampled images, [networks, samples].

    Returns:
      Low and high ends, [networks, 2]; NaN where a value is NaN.
    """
    values, num_seeds = np.asarray(values, float), np.shape(values)[1]
    means = values.mean(1)
    ends = np.full((len(values), 2), np.nan)
    seed_variance = 0.0
    rows = np.flatnonzero(np.isfinite(means))
    # Resampled images may have nothing to detect.
    real = [row_draws[np.isfinite(row_draws)] for row_draws in np.asarray(draws, float)]
    if num_seeds > 1 and len(rows):
        seed_variance = values[rows].var(axis=1, ddof=1).mean() / num_seeds
        quantile = special.stdtrit(len(rows) * (num_seeds - 1), 0.975)
    for row in rows:
        if len(real[row]) < 2:
            continue
        if num_seeds == 1:
            low, high = np.quantile(real[row], [0.025, 0.975])
            ends[row] = min(low, means[row]), max(high, means[row])
        else:
            half = quantile * np.sqrt(real[row].var(ddof=1) + seed_variance)
            ends[row] = means[row] - half, means[row] + half
    return np.clip(ends, 0, 1)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is returned, and the evidence.

    Attributes:
      network: name of the returned network.
      challenger: name of the network that the evidence is about: the returned one, or the one that
        came nearest to replacing the baseline; None where nothing differs from the baseline.
      difference: the challenger's difference to the baseline; None without a challenger.
      reason: a sentence for people.
    """

    network: str
    challenger: str | None
    difference: Difference | None
    reason: str


def decide(names: Sequence[str], ap: np.ndarray, draws: np.ndarray, confidence: float) -> Decision:
    """Return the best network that is better than the baseline with enough probability.

    Args:
      names: names of distinct networks, the baseline first.
      ap: see `difference`.
      draws: see `difference`.
      confidence: least probability of being better than the baseline.
    """
    means = np.asarray(ap, float).mean(1)
    differences = [difference(ap, draws, row) for row in range(1, len(names))]
    rows = sorted(range(1, len(names)), key=lambda row: -means[row])
    if not rows:
        return Decision(BASELINE, None, None, "the searches found the baseline itself")
    if differences[0].probability is None:
        best = rows[0]
        reason = (
            "not decided: with one seed nothing tells a difference between networks from one "
            "between trainings (refine.seeds)"
        )
        return Decision(BASELINE, names[best], differences[best - 1], reason)
    passing = [row for row in rows if differences[row - 1].probability >= confidence]
    if passing:
        best = passing[0]
        return Decision(
            names[best],
            names[best],
            differences[best - 1],
            f"on val it is better than the baseline with a probability of "
            f"{differences[best - 1].probability:.2f}; at least {confidence:g} was asked for",
        )
    best = max(rows, key=lambda row: differences[row - 1].probability)
    reason = (
        f"on val no network is better than it with the probability that is asked for, "
        f"{confidence:g}; the {CALLED[names[best]]} network comes nearest with "
        f"{differences[best - 1].probability:.2f}"
    )
    return Decision(BASELINE, names[best], differences[best - 1], reason)
