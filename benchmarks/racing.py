"""Does racing keep its word, and what does it save? Simulated races with known true values.

    python benchmarks/racing.py

The project's `racing` runs on made-up scores: an image has an effect on all candidates, and on each
one more by itself; a score is the mean over images. Beside it runs the rule that it replaced (a
bootstrap comparison with the leader at each look, and fixed shares of candidates that go on). For
each rule:

- `dropped`: share of races in which the truly best candidate is dropped before the last look (at
  most 0.05 is promised);
- `at first look`: those in which it is dropped at the first one;
- `winner lost`: share in which the candidate found is not the exhaustive search's;
- `regret`: how much truly worse the one found is than the exhaustive search's, in the mean, in
  standard deviations of a paired difference on one image (below 0: better by luck);
- `passes`: image passes as a share of the exhaustive search's.

Kinds of images: `normal`; `heavy` (Student's t with 3 degrees of freedom); `hits` (an image is won
or not, and images differ in how easy they are); `rare` (normal, but the best has its mean from one
image in twenty). Truths: `tie` (candidate 0 counts as the best), candidate 0 ahead by 0.1 standard
deviations of a paired difference or of a score, and `spread`, true values from N(0, 1) where a
paired difference on one image has the standard deviation that is named.
"""

import dataclasses
import functools
import math
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import common
import numpy as np
from absl import app, flags

from crnas_jax.search.scores import rank
from crnas_jax.search.strategies.racing import LOOKS, looks, racing

_RACES = flags.DEFINE_integer("races", 1000, "Races of 25 candidates in each setting.")

# Images and mini-batches, and candidates; where many numbers are drawn there are fewer races, by
# these divisors.
SPLITS = {(87, 8): 1, (160, 16): 1, (5000, 16): 4}
CANDIDATES = {25: 1, 153: 5}
SETTINGS = [
    ("normal", "tie"),
    ("normal", "0.1 difference"),
    ("normal", "0.1 score"),
    ("heavy", "tie"),
    ("hits", "tie"),
    ("hits", "0.1 score"),
    ("rare", "tie"),
    ("normal", "spread 4"),
    ("normal", "spread 10"),
]
NUM_SAMPLES = 200
# Resamplings of each look; races take turns, for drawing them takes longer than a race.
NUM_RESAMPLINGS = 20
# Standard deviation of an image's effect on all, in that of a candidate's own: scores of two
# candidates on one image correlate by 0.75.
COMMON = math.sqrt(3)
# Beta distribution of how easy an image is: mean 0.7.
EASE = (2.1, 0.9)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Space of the codes (0,), (1,), ... below `size`."""

    size: int
    enumerable: bool = True
    noun: str = "number"

    def count(self):
        return self.size

    def enumerate(self):
        return [(code,) for code in range(self.size)]

    def sample(self, rng):
        return (int(rng.integers(self.size)),)


class Images:
    """`PartialScores` of given values of each image, [candidates, images]."""

    def __init__(self, values, batch_size, resamplings):
        self.values, self.batch_size, self.resamplings = values, batch_size, resamplings
        self.num_batches = math.ceil(values.shape[1] / batch_size)
        self.asked = np.zeros(len(values), int)  # images, by candidate
        self.score_on_images = functools.lru_cache(lambda n: values[:, :n].mean(1))
        self.draws_on_images = functools.lru_cache(lambda n: values[:, :n] @ resamplings[n].T / n)

    def num_images(self, num_batches):
        return min(num_batches * self.batch_size, self.values.shape[1])

    def num_objects(self, num_batches):
        return self.num_images(num_batches)

    def score(self, codes):
        return self.score_on(codes, self.num_batches)

    def score_on(self, codes, num_batches):
        num_images, rows = self.num_images(num_batches), [code for (code,) in codes]
        self.asked[rows] = np.maximum(self.asked[rows], num_images)
        return self.score_on_images(num_images)[rows].tolist()

    def draws(self, codes, num_batches):
        return self.draws_on_images(self.num_images(num_batches))[[code for (code,) in codes]]

    def effort(self):
        return {"evaluated": len(self.asked), "image_passes": int(self.asked.sum())}

    def clear(self):
        pass


def halving(spaces, scores, confidence=0.95):
    """Run the rule that racing replaced, on one space."""
    alive, num_candidates = spaces[0].enumerate(), spaces[0].count()
    shares = {}
    for batch_share, candidate_share in zip(LOOKS, (1, 0.5, 0.25, 0.125), strict=True):
        least = looks(scores)[0]
        seen = min(max(round(batch_share * scores.num_batches), least), scores.num_batches)
        shares.setdefault(seen, candidate_share)
    for num_batches, share in sorted(shares.items()):
        alive = alive[: max(math.ceil(share * num_candidates), 2)]
        (ranked,) = rank(lambda codes, n=num_batches: scores.score_on(codes, n), [alive])
        alive = [code for code, _ in ranked]
        if num_batches < scores.num_batches:
            draws = scores.draws(alive, num_batches)
            beaten = np.mean(draws[0] > draws, axis=1) >= confidence
            alive = [code for code, is_beaten in zip(alive, beaten, strict=True) if not is_beaten]
    return [ranked]


RULES = {"racing": racing, "before": halving}


def draw_values(kind, truth, num_candidates, num_images, rng):
    """Return values [candidates, images] and true values, with unit sd of a paired difference."""
    size, best = (num_candidates, num_images), np.arange(num_candidates) == 0
    if kind == "hits":
        ease = rng.beta(*EASE, num_images)
        a, b = EASE
        mean, pair_variance = a / (a + b), 2 * a * b / ((a + b) * (a + b + 1))
        unit, score = math.sqrt(pair_variance), math.sqrt(mean * (1 - mean))
    else:
        # A candidate's own part has a standard deviation of 1.
        unit, score = math.sqrt(2), math.sqrt(1 + COMMON**2)
    lead = {"0.1 difference": 0.1 * unit, "0.1 score": 0.1 * score}.get(truth, 0.0)
    true = lead * best
    if truth.startswith("spread"):
        true = rng.normal(0, unit / float(truth.split()[1]), num_candidates)
    if kind == "hits":
        values = (rng.random(size, np.float32) < ease).astype(np.float32)
        # Some of the best one's misses become hits.
        values[0] = np.maximum(values[0], rng.random(num_images) < lead / (1 - mean))
    else:
        own = rng.standard_normal(size, np.float32)
        if kind == "heavy":
            own = (rng.standard_t(3, size) / math.sqrt(3)).astype(np.float32)
        if kind == "rare":
            own[0] += 20 * (rng.random(num_images) < 0.05) - 1
        values = own + COMMON * rng.standard_normal(num_images, np.float32)
        values += true[:, None].astype(np.float32)
    return values / unit, true / unit


def resample(num_images, rng):
    """Return how often each image is in each sample, float32 [samples, images]."""
    chances = np.full(num_images, 1 / num_images)
    return rng.multinomial(num_images, chances, NUM_SAMPLES).astype(np.float32)


def simulate(kind, truth, num_candidates, split, num_races, resamplings, rng):
    """Return the measures of each rule over a number of races; both see the same images."""
    space, sums = Numbers(num_candidates), {name: np.zeros(5) for name in RULES}
    for race in range(num_races):
        values, true = draw_values(kind, truth, num_candidates, split[0], rng)
        best, winner = int(np.argmax(true)), int(np.argmax(values.mean(1)))
        for name, rule in RULES.items():
            scores = Images(values, split[1], resamplings[race % NUM_RESAMPLINGS])
            found = rule([space], scores)[0][0][0][0]
            first = scores.num_images(looks(scores)[0])
            sums[name] += (
                scores.asked[best] < split[0],
                scores.asked[best] == first < split[0],
                found != winner,
                true[winner] - true[found],
                scores.asked.mean() / split[0],
            )
    names = ("dropped", "at first look", "winner lost", "regret", "passes")
    return {
        rule: dict(zip(names, np.round(total / num_races, 4).tolist(), strict=True))
        for rule, total in sums.items()
    }


def main(_):
    start, rows, rng = time.time(), [], np.random.default_rng(0)
    for split, split_divisor in SPLITS.items():
        scores = Images(np.zeros((1, split[0])), split[1], None)
        seen = [scores.num_images(count) for count in looks(scores)]
        resamplings = [
            {num_images: resample(num_images, rng) for num_images in seen[:-1]}
            for _ in range(NUM_RESAMPLINGS)
        ]
        for num_candidates, divisor in CANDIDATES.items():
            num_races = max(_RACES.value // (divisor * split_divisor), 1)
            for kind, truth in SETTINGS:
                setting = {
                    "images": split[0],
                    "looks": seen,
                    "candidates": num_candidates,
                    "kind": kind,
                    "truth": truth,
                    "races": num_races,
                }
                measures = simulate(kind, truth, num_candidates, split, num_races, resamplings, rng)
                rows.append(setting | measures)
                print(f"{time.time() - start:.0f} s", rows[-1], file=sys.stderr, flush=True)
    keeps = [row["racing"]["dropped"] for row in rows if row["kind"] != "rare"]
    ratios = {"most dropped, of 0.05": max(keeps), "mean dropped": float(np.mean(keeps))}
    common.report("racing", {"ratios": ratios, "rows": rows})


if __name__ == "__main__":
    app.run(main)
