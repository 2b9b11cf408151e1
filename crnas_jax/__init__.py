"""Computation reallocation for object detection (CR-NAS, ICLR 2020) in JAX and Flax."""

__version__ = "0.1.0"


def load_detector(folder):
    """Load the trained detector in a folder, such as `<workdir>/searched`.

    crnas_jax.load_detector("runs/bccd/searched").predict(["photo.jpg"])

    Returns:
      An `evaluation.predict.Predictor`.
    """
    from crnas_jax.export import detector  # imported here, so that `crnas_jax.arch` needs no JAX

    return detector.load_detector(folder)
