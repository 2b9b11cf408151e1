"""Filling frozen options from the fields of a config that have the same names."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from crnas_jax.errors import UserError

_START = "start from the config of configs/base.py"
# Names of fields before they took the field's standard names, and their present names.
RENAMED = {
    "short": "min_size",
    "long": "max_size",
    "rate_per_image": "lr_per_image",
    "drops": "lr_drops",
    "clip": "clip_norm",
    "initial": "init_from",
    "keep": "beam",
    "chunk": "max_subnets_per_call",
}
# Fields whose names are old names of others.
_REUSED = ("refine.short",)


def config_of(content: dict) -> ConfigDict:
    """Return the config that a working folder's `config.json` holds: JSON's lists were tuples."""
    return ConfigDict(_tuples(content)).lock()


def _tuples(value):
    if isinstance(value, dict):
        return {name: _tuples(entry) for name, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def section(config: ConfigDict, place: str) -> ConfigDict:
    """Return the section at a dotted place of a config.

    Raises:
      UserError: the config does not have it.
    """
    for name in place.split("."):
        if name not in config:
            raise UserError("config", place, "missing", _START)
        config = config[name]
    return config


def refuse_old_names(config: ConfigDict, place: str = "") -> None:
    """Raise UserError for a field under an old name: it would have no effect."""
    for name, value in config.items():
        if name in RENAMED and f"{place}{name}" not in _REUSED:
            problem = f"is now {RENAMED[name]!r}"
            raise UserError("config", f"{place}{name}", problem, "use the new name")
        if isinstance(value, ConfigDict):
            refuse_old_names(value, f"{place}{name}.")


def read(
    options_class: type,
    config: ConfigDict,
    place: str,
    names: Mapping[str, str] | None = None,
    **given,
):
    """Fill an options dataclass from a section of a config.

    A field of the dataclass takes the value of the config field with the same name, so a new option
    needs no line here. Fields that the section lacks keep their defaults.

    Args:
      options_class: frozen dataclass that checks itself.
      config: the whole config.
      place: dotted place of the section, "" for the top.
      names: config names of dataclass fields that have another.
      given: values of fields that do not come from the section.

    Raises:
      UserError: a value is out of bounds, named by its place in the config; or a field without
        default is missing.
    """
    fields = section(config, place) if place else config
    config_names, values = {}, dict(given)
    for field in dataclasses.fields(options_class):
        name = (names or {}).get(field.name, field.name)
        config_names[field.name] = f"{place}.{name}".lstrip(".")
        if field.name in given:
            continue
        if name in fields:
            values[field.name] = _frozen(fields[name])
        elif field.default is dataclasses.MISSING:
            raise UserError("config", config_names[field.name], "missing", _START)
    return build(options_class, values, config_names)


def build(options_class: type, values: Mapping, config_names: Mapping[str, str]):
    """Return an options object; its errors name the config field that a value came from."""
    try:
        return options_class(**values)
    except UserError as error:
        if error.where != options_class.__name__:  # about a file that an option names
            raise
        name, bracket, rest = error.field.partition("[")
        place = config_names.get(name, name) + bracket + rest
        raise UserError("config", place, error.problem, error.remedy) from error


def _frozen(value):
    """Return lists as tuples, however deep; sections stay as they are."""
    return tuple(map(_frozen, value)) if isinstance(value, tuple | list) else value
