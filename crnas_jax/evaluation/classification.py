"""Top-1 and top-5 accuracy of a classifier over a split."""

import jax
import jax.numpy as jnp
import numpy as np

from crnas_jax import interruption
from crnas_jax.data import loader
from crnas_jax.data.transforms import ClassificationRows
from crnas_jax.models.build import Classifier
from crnas_jax.training.mesh import make_mesh, put_batch, replicated


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
    mesh = make_mesh(batch_size, devices)
    bn = "batch" if classifier.is_supernet else "running"

    def hits(variables, batch, choice):
        path = classifier.path(variables, choice)
        logits = classifier.apply(path, batch, choice, bn)["logits"]
        best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1] == batch["label"][:, None]
        counted = batch["weight"] > 0
        return jnp.stack([(best[:, :k].any(1) & counted).sum() for k in (1, 5)])

    run = jax.jit(hits, out_shardings=replicated(mesh))
    variables = jax.device_put(variables, replicated(mesh))
    plan = loader.Plan(source.sizes, batch_size, seed=None)
    total = np.zeros(2)
    for index, batch in enumerate(
        loader.batches(source, plan, ClassificationRows(size, augment=False))
    ):
        total += np.asarray(run(variables, put_batch(mesh, batch), choice_of(index)))
        interruption.stop_if_requested("the evaluation is done again from its beginning")
    top1, top5 = total / len(source)
    return {"top1": float(top1), "top5": float(top5)}
