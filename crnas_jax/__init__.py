"""Computation reallocation for object detection (CR-NAS, ICLR 2020) in JAX and Flax."""

__version__ = "0.1.0"


def load_detector(folder):
    """The trained detector in a folder, for one `<workdir>/searched`; see `evaluation.predict`.

    crnas_jax.load_detector("runs/bccd/searched").predict(["photo.jpg"])
    """
    from crnas_jax.export.detector import (
        detector as export,  # here, so that `crnas_jax.arch.staged` stays free of JAX
    )

    return export.load_detector(folder)
