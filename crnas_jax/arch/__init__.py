"""Architectures as values: their parts, their JSON form, their cost. No JAX."""

import json
from typing import Any

from crnas_jax.arch import families, scale_shapes
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError

# What has JSON, levels and channels of its outputs, a cost, a module, and parts that can be frozen.
Architecture = Arch | ScalePermuted
# The class of each family's architectures.
_CLASSES = dict.fromkeys(families.FAMILIES, Arch)
_CLASSES |= dict.fromkeys(scale_shapes.FAMILIES, ScalePermuted)


def read(text: str) -> Architecture:
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


def read_field(fields: Any, file: Any, remedy: str, is_own: bool = False) -> Architecture:
    """Read the architecture that a JSON file holds under `arch`.

    Args:
      fields: content of the file.
      file: path of the file, for messages.
      remedy: what to do where there is none.
      is_own: whether the user may have written it: then a mistake in it is to be corrected.

    Raises:
      UserError: there is no architecture.
    """
    if not isinstance(fields, dict) or "arch" not in fields:
        raise UserError(file, "arch", "missing", remedy)
    try:
        return read(json.dumps(fields["arch"]))
    except UserError as error:
        remedy = error.remedy if is_own else remedy
        raise UserError(file, error.field, error.problem, remedy) from error
