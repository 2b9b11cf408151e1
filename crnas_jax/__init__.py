"""Computation reallocation for object detection (CR-NAS, ICLR 2020) in JAX and Flax."""

__version__ = "0.2.0"


def load_detector(folder):
    """Load the trained detector in a folder, such as `<workdir>/searched`.

    crnas_jax.load_detector("runs/bccd/searched").predict(["photo.jpg"])

    Returns:
      An `evaluation.predict.Predictor`.
    """
    from crnas_jax.export import detector  # imported here, so that `crnas_jax.arch` needs no JAX

    return detector.load_detector(folder)


def load_backbone(path, remat=False):
    """Load the backbone of an export (`crnas-jax export`) for a detector of one's own.

    module, variables = crnas_jax.load_backbone("exports/mine")
    c2, c3, c4, c5 = module.apply(variables, images)

    Returns:
      The Linen module and its variables, see `export.package.load_backbone`.
    """
    from crnas_jax.export import package

    return package.load_backbone(path, remat)
