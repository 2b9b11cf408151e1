"""How often does the procedure return a worse network? Simulated through its own decision.

    python benchmarks/decision.py

25 allocations have true values N(0, 1); the baseline is at their mean, or in the null rows equal to
the best of them. The supernet's scores and the true values under the short schedule are correlated
with those under the full one. A training adds its seed's deviation, of standard deviation 1; `val`
adds a network's own deviation, the same whenever the network is scored. Operations are left out.
"""

import itertools

import numpy as np
from absl import app, flags
from common import report

from crnas_jax.search import refine

_SEARCHES = flags.DEFINE_integer("searches", 2000, "Simulated searches of each row.")
_FINALISTS = flags.DEFINE_integer("finalists", 4, "Allocations that are trained alone.")

NUM_ALLOCATIONS = 25
SHORT_CORRELATION = 0.8
NOISES, SUPERNETS = (0.3, 0.63), (0.3, 0.6, 0.85)
SEEDS, CONFIDENCES = (2, 3, 4), (0.7, 0.8, 0.9)
NUM_DRAWS = 200


def correlated(rng, values, correlation):
    """Draw values with unit variance that are correlated with unit-variance ones."""
    return correlation * values + np.sqrt(1 - correlation**2) * rng.normal(size=values.shape)


def search(rng, noise: float, supernet: float, is_null: bool, num_finalists: int) -> dict:
    """Simulate a search up to its last rung.

    Returns:
      True values of `baseline`, `found` (the short trainings' winner) and `argmax` (the supernet's
      first); whether the baseline won; the last rung's `ap` [2, 4] and `deviations` [2, draws].
    """
    values = rng.normal(size=NUM_ALLOCATIONS + 1)  # the baseline is the last
    values[-1] = values[:-1].max() if is_null else values[:-1].mean()
    on_val = noise * rng.normal(size=len(values))
    scores = correlated(rng, values, supernet)
    finalists = [*np.argsort(-scores[:-1])[:num_finalists], len(values) - 1]
    short = correlated(rng, values, SHORT_CORRELATION) + on_val + rng.normal(size=len(values))
    winner = max(finalists, key=lambda network: short[network])
    rung = [len(values) - 1, winner]
    return {
        "baseline": values[-1],
        "found": values[winner],
        "argmax": values[scores[:-1].argmax()],
        "is_baseline": winner == rung[0],
        "ap": (values + on_val)[rung, None] + rng.normal(size=(2, max(SEEDS))),
        "deviations": noise * rng.normal(size=(2, NUM_DRAWS)),
    }


def outcome(row: dict, num_seeds: int, confidence: float) -> tuple[float, float]:
    """Return the true gains over the baseline: what is returned, and the best mean of the rung."""
    if row["is_baseline"]:
        return 0.0, 0.0
    ap, gain = row["ap"][:, :num_seeds], row["found"] - row["baseline"]
    draws = ap.mean(1, keepdims=True) + row["deviations"]
    decision = refine.decide((refine.BASELINE, "searched"), ap, draws, confidence)
    best = ap.mean(1).argmax()
    return (gain if decision.network != refine.BASELINE else 0.0), (gain if best else 0.0)


def main(argv):
    """Simulate all rows and report them."""
    del argv
    rows = []
    for noise, supernet, is_null in itertools.product(NOISES, SUPERNETS, (False, True)):
        rng = np.random.default_rng([int(100 * noise), int(100 * supernet), is_null])
        searches = [
            search(rng, noise, supernet, is_null, _FINALISTS.value) for _ in range(_SEARCHES.value)
        ]
        argmax = np.array([row["argmax"] - row["baseline"] for row in searches])
        for num_seeds, confidence in itertools.product(SEEDS, CONFIDENCES):
            gains = np.array([outcome(row, num_seeds, confidence) for row in searches])
            returned, best = gains.T
            rows.append(
                {
                    "val_noise": noise,
                    "supernet": supernet,
                    "null": is_null,
                    "seeds": num_seeds,
                    "confidence": confidence,
                    "worse": float((returned < 0).mean()),
                    "mean_loss": float(-returned.mean()),
                    "share_of_gain": float(returned.mean() / best.mean()),
                    "baseline_returned": float((returned == 0).mean()),
                    "argmax_worse": float((argmax < 0).mean()),
                }
            )
    report("decision", {"searches": _SEARCHES.value, "rows": rows})


if __name__ == "__main__":
    app.run(main)
