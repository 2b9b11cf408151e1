"""Top-1 and top-5 accuracy of a classifier over a split."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from crnas_jax.data.source import ClassificationSource
from crnas_jax.data.transforms import ClassificationRows
from crnas_jax.evaluation.predict_split import run_on_split
from crnas_jax.models.build import Classifier


def accuracy(
    classifier: Classifier,
    variables: PyTree,
    source: ClassificationSource,
    crop_size: int,
    batch_size: int,
    choice_of: Callable[[int], PyTree],
    num_devices: int | None = None,
) -> dict[str, float]:
    """Return `top1` and `top5`: shares of images with their label among the 1 or 5 best logits.

    Args:
      classifier: a stand-alone network, run with its stored statistics, or a supernet, run with
        the mini-batch's.
      variables: its variables, with banks for a supernet.
      source: a classification split.
      crop_size: side of the crops, pixels.
      batch_size: images in a mini-batch.
      choice_of: function from a mini-batch's index to the path to run on it.
      num_devices: number of devices; all when None.
    """
    to_row = ClassificationRows(crop_size, augment=False)
    batches = run_on_split(
        _hits, classifier, variables, source, to_row, batch_size, num_devices, choice_of
    )
    top1, top5 = np.sum([counts for _, counts in batches], axis=0) / len(source)
    return {"top1": float(top1), "top5": float(top5)}


def _hits(classifier, variables, batch, choice):
    """Return how many images have their label among the 1 and 5 best logits, int32 [2]."""
    path = classifier.path(variables, choice)
    logits = classifier.apply(path, batch, choice, classifier.default_bn)["logits"]
    best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1] == batch["label"][:, None]
    counted = batch["weight"] > 0
    return jnp.stack([(best[:, :k].any(1) & counted).sum() for k in (1, 5)])
