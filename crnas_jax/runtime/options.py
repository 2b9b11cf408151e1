"""Bounds that frozen option dataclasses check in their `__post_init__`.

A failed check raises a UserError that names the options class and the field. `settings` turns it
into an error about the config field that the value came from.
"""

import math
from collections.abc import Sequence

from crnas_jax.errors import UserError

_INTEGER_LIMIT = 2**31


def check_counts(options, *fields: str, least: int = 1) -> None:
    """Require whole numbers of at least `least`, alone or in tuples of any depth."""
    _check(options, fields, _is_whole, lambda v: v >= least, f"whole number of at least {least}")


def check_positive(options, *fields: str) -> None:
    """Require finite numbers above 0, alone or in tuples."""
    _check(options, fields, _is_real, lambda v: v > 0, "number above 0")


def check_not_negative(options, *fields: str) -> None:
    """Require finite numbers of at least 0, alone or in tuples."""
    _check(options, fields, _is_real, lambda v: v >= 0, "number of at least 0")


def check_below_one(options, *fields: str) -> None:
    """Require finite numbers below 1, alone or in tuples."""
    _check(options, fields, _is_real, lambda v: v < 1, "number below 1")


def check_fractions(options, *fields: str) -> None:
    """Require numbers of 0 to 1, alone or in tuples."""
    _check(options, fields, _is_real, lambda v: 0 <= v <= 1, "number of 0 to 1")


def check_length(options, field: str, length: int, or_empty: bool = False) -> None:
    """Require a tuple of `length` entries, or with `or_empty` also an empty one."""
    value = getattr(options, field)
    allowed = (0, length) if or_empty else (length,)
    if not isinstance(value, tuple | list) or len(value) not in allowed:
        raise _error(options, field, f"{value!r}", f"give {length} entries")


def check_choice(options, field: str, choices: Sequence) -> None:
    """Require one of `choices`; of a tuple, every entry must be one of them."""
    value = getattr(options, field)
    for entry in value if isinstance(value, tuple | list) else (value,):
        if entry not in choices:
            allowed = " or ".join(repr(choice) for choice in choices)
            raise _error(options, field, f"{entry!r} is unknown", f"use {allowed}")


def _check(options, fields, has_type, in_range, kind):
    for field in fields:
        value = getattr(options, field)
        if not all(has_type(entry) and in_range(entry) for entry in _entries(value)):
            raise _error(options, field, f"{value!r}", f"give a {kind}")


def _entries(value):
    """List the numbers in a value, however deep in tuples they stand."""
    if isinstance(value, tuple | list):
        return [number for entry in value for number in _entries(entry)]
    return [value]


def _is_whole(value):
    return type(value) is int and abs(value) < _INTEGER_LIMIT


def _is_real(value):
    return type(value) in (int, float) and math.isfinite(value)


def _error(options, field, problem, remedy):
    return UserError(type(options).__name__, field, problem, remedy)
