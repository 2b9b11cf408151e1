"""Architectures as values: their parts, their JSON form, their cost. No JAX."""

import json

from crnas_jax.arch.families import FAMILIES
from crnas_jax.arch.staged import Arch

# The class of each family's architectures.
_CLASSES = dict.fromkeys(FAMILIES, Arch)


def read(text: str) -> Arch:
    """Read an architecture of any family from what its `to_json` wrote.

    Raises:
      UserError: the text is no such object.
    """
    try:
        family = json.loads(text)["family"]
        architecture = _CLASSES.get(family, Arch)
    except (ValueError, TypeError, KeyError):  # `from_json` says what is wrong
        architecture = Arch
    return architecture.from_json(text)
