"""Racing: all candidates see a few images, and those that are surely not the best see no more.

All candidates see the same mini-batches in the same order. At each look but the last a candidate is
dropped where another one is better by more than c standard errors of their paired difference
(Maron and Moore, "Hoeffding races", NIPS 1993, with Student's t instead of Hoeffding's bound). The
standard error comes from a bootstrap with the same resampled images for all, so effects that an
image has on all of them cancel.

Where several best ones are wanted, as many have to be better.

The best is compared with every other candidate at every look, and one unlucky comparison drops it.
Therefore c shares the allowed error, 1 - confidence, among all of them (Bonferroni). Evidence alone
drops: candidates that hardly differ are all scored on all images, as in the exhaustive search.
"""

from collections.abc import Sequence

import numpy as np
from scipy import special

from crnas_jax.search.scores import PartialScores, Ranked, rank
from crnas_jax.search.strategies.exhaustive import candidates
from crnas_jax.spaces.space import Code, Space

# Looks: shares of the mini-batches seen by then.
LOOKS = (0.125, 0.25, 0.5, 1.0)
# Images before a candidate may be dropped: fewer say little about their own spread.
_MIN_IMAGES = 16


def racing(
    spaces: Sequence[Space],
    scores: PartialScores,
    confidence: float = 0.95,
    keep: Sequence[Code] = (),
    num_best: int = 1,
) -> list[Ranked]:
    """Find the best codes of each space; drop others as soon as they surely are not among them.

    Args:
      spaces: candidates of one space race each other; calls `enumerate`.
      scores: scorer of codes on a part of the images.
      confidence: how probable it is, at least, that a space's truly best code, or any other one of
        its `num_best`, is scored on all images (where differences of scores are about normal).
      keep: codes that are never dropped; those that are in no space are ignored.
      num_best: how many best codes of each space are wanted.

    Returns:
      For each space the codes that were scored on all images, best first.
    """
    alive = candidates(spaces)
    seen = looks(scores)
    error = (1 - confidence) / max(len(seen) - 1, 1)
    tails = [error / max(len(codes) - 1, 1) for codes in alive]
    ranked = []
    for num_batches in seen:
        ranked = rank(lambda codes, n=num_batches: scores.score_on(codes, n), alive)
        if num_batches < scores.num_batches:
            codes = sorted({code for space_codes in alive for code in space_codes})
            draws = dict(zip(codes, scores.draws(codes, num_batches), strict=True))
            num_images = scores.num_images(num_batches)
            alive = [
                _unbeaten(space_ranked, draws, num_images, tail, keep, num_best)
                for space_ranked, tail in zip(ranked, tails, strict=True)
            ]
    scores.clear()
    return ranked


def looks(scores: PartialScores) -> list[int]:
    """Return the number of first mini-batches seen by each look, ascending.

    The first look has enough images and objects to judge by, the last one all; looks that coincide
    count once.
    """
    enough = (
        count
        for count in range(1, scores.num_batches)
        if scores.num_images(count) >= _MIN_IMAGES and scores.num_objects(count)
    )
    least = next(enough, scores.num_batches)
    return sorted({max(round(share * scores.num_batches), least) for share in LOOKS})


def cutoff(num_images: int, num_samples: int, tail: float) -> float:
    """Return c, in standard deviations of a difference's draws, all numbers at least 2.

    Images and draws are both samples that a variance is estimated from, so Student's t has fewer
    degrees of freedom than either alone; and what the bootstrap estimates is (n - 1) / n of it.

    Args:
      num_images: images seen, n.
      num_samples: bootstrap samples.
      tail: probability that a difference whose true value is 0 exceeds c.
    """
    freedom = 1 / (1 / (num_images - 1) + 1 / (num_samples - 1))
    return float(-special.stdtrit(freedom, tail) * np.sqrt(num_images / (num_images - 1)))


def _unbeaten(
    ranked: Ranked, draws: dict, num_images: int, tail: float, keep: Sequence[Code], num_best: int
) -> list[Code]:
    """List the codes to keep, and those than which fewer than `num_best` are surely better."""
    values = np.array([value for _, value in ranked])
    samples = np.stack([draws[code] for code, _ in ranked])
    if samples.shape[1] < 2:  # one draw has no spread
        return [code for code, _ in ranked]
    limit, unbeaten = cutoff(num_images, samples.shape[1], tail), []
    for place, (code, value) in enumerate(ranked):
        # Only those before it can be better. Identical ones differ by 0, with an error of 0: a tie.
        errors = (samples[:place] - samples[place]).std(axis=1, ddof=1)
        num_better = np.count_nonzero(values[:place] - value > limit * errors)
        if code in keep or num_better < num_best:
            unbeaten.append(code)
    return unbeaten
