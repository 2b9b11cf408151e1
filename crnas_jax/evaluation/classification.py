"""Top-1 and top-5 accuracy of a classifier over a split."""

import jax
import jax.numpy as jnp
import numpy as np

from crnas_jax.data.transforms import ClassificationRows
from crnas_jax.evaluation.predict_split import over_split
from crnas_jax.models.build import Classifier


def accuracy(
    classifier: Classifier,
    variables,
    source,
    size: int,
    batch_size: int,
    choice_of,
    devices: int | None = None,
) -> dict[str, float]:
    """Shares of the images whose label is the best, and among the best five, logits.

    Args:
      classifier: stand-alone, scored with its running statistics, or a supernet, scored with the
        mini-batch's.
      variables: of all of it.
      source: a classification split.
      size: side of the crops.
      batch_size: images in a mini-batch.
      choice_of: from a mini-batch's number to the path to run on it.
      devices: how many to use; all when None.
    """
    bn = "batch" if classifier.has_banks else "running"

    def hits(variables, batch, choice):
        path = classifier.path(variables, choice)
        logits = classifier.apply(path, batch, choice, bn)["logits"]
        best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1] == batch["label"][:, None]
        counted = batch["weight"] > 0
        return jnp.stack([(best[:, :k].any(1) & counted).sum() for k in (1, 5)])

    rows = ClassificationRows(size, augment=False)
    batches = over_split(hits, variables, source, rows, batch_size, devices, choice_of)
    top1, top5 = np.sum([found for _, found in batches], axis=0) / len(source)
    return {"top1": float(top1), "top5": float(top5)}
