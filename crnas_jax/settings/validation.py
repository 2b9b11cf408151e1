"""What the values of a config must be, field by field."""

import contextlib
import functools
import math

from crnas_jax.errors import UserError

_RECIPES = ("stage_train", "operation_train", "detector_train", "pretrain")
# Whole numbers, or tuples of them.
_COUNTS = (
    *("data.short", "data.long", "data.max_objects"),
    *("data.synthetic.size", "data.synthetic.train", "data.synthetic.val", "data.synthetic.test"),
    *("data.mask_size", "detector.pyramid_channels", "detector.head_channels"),
    *("detector.mask_channels", "detector.stacks"),
    *("detector.rpn_samples", "detector.roi_samples", "detector.nms_candidates"),
    *("detector.pre_nms", "detector.post_nms", "widths", "supernet.widths"),
    *("supernet.dilations", "supernet.grids"),
    *("search.keep", "search.batch_size", "search.calibration_images", "search.evaluations"),
    *("search.population", "search.parents", "search.samples"),
    *("bootstrap", "pretrain.data.size", "pretrain.data.synthetic.size"),
    *("pretrain.data.synthetic.train", "pretrain.data.synthetic.val"),
    *(f"{recipe}.{name}" for recipe in _RECIPES for name in ("batch_size", "accumulate")),
    *(f"{recipe}.log_every" for recipe in _RECIPES),
)
_COUNTS_OR_0 = (
    *("seed", "devices", "search.batches", "search.chunk"),
    *(f"{recipe}.warmup_steps" for recipe in _RECIPES),
)
_ABOVE_0 = (
    *("detector.anchor_sizes", "detector.canonical_size", "search.confidence", "search.budgets"),
    *(f"{recipe}.{name}" for recipe in _RECIPES for name in ("epochs", "rate_per_image")),
)
_AT_LEAST_0 = (
    "budget",
    *("search.max_flops", "search.max_params", "search.max_latency"),
    "pretrain.label_smoothing",
    *(f"{recipe}.momentum" for recipe in _RECIPES),
    *(f"{recipe}.{name}" for recipe in _RECIPES for name in ("weight_decay", "clip")),
    *(f"{recipe}.checkpoint_seconds" for recipe in _RECIPES),
)
_BELOW_1 = (
    *("pretrain.label_smoothing", "search.confidence"),
    *(f"{recipe}.{name}" for recipe in _RECIPES for name in ("momentum", "drops")),
)
_LENGTHS = {
    "detector.anchor_sizes": 5,
    "detector.pre_nms": 2,
    "detector.post_nms": 2,
}
_INTEGER_LIMIT = 2**31


def check_values(config, choices: dict[str, tuple]) -> None:
    """Raises UserError for the first value out of its range.

    Args:
      config: a ConfigDict with the fields of `configs/base.py`.
      choices: by field, the values it may have (each of them, where it is a tuple).
    """
    get = functools.partial(_value, config)
    for field, allowed in choices.items():
        value = get(field)
        for one in value if isinstance(value, tuple | list) else (value,):
            if one not in allowed:
                raise _error(field, f"{one!r} is unknown", f"use {_either(allowed)}")
    check_lengths(config, _LENGTHS)
    for fields, kind, fits in (
        (_COUNTS, "whole number of at least 1", lambda v: _whole(v) and v >= 1),
        (_COUNTS_OR_0, "whole number of at least 0", lambda v: _whole(v) and v >= 0),
        (_ABOVE_0, "number above 0", lambda v: _real(v) and v > 0),
        (_AT_LEAST_0, "number of at least 0", lambda v: _real(v) and v >= 0),
        (_BELOW_1, "number below 1", lambda v: _real(v) and v < 1),
    ):
        for field in fields:
            if not all(map(fits, _entries(get(field)))):
                raise _error(field, f"{get(field)!r}", f"give a {kind}")
    for stage, grid in enumerate(get("supernet.grids")):
        if not isinstance(grid, tuple | list):
            raise _error(f"supernet.grids[{stage}]", f"{grid!r}", "give depths, as (1, 2, 3)")
    for recipe in _RECIPES:
        drops = get(f"{recipe}.drops")
        if list(drops) != sorted(set(drops)) or any(drop <= 0 for drop in drops):
            raise _error(f"{recipe}.drops", f"{drops}", "give ascending fractions of the run")
    if get("data.long") < get("data.short"):
        raise _error("data.long", "less than data.short", "give the longer side's bound")


def check_lengths(config, lengths: dict[str, int], or_none: bool = False) -> None:
    """Raises UserError for the first tuple that has not so many entries, or with `or_none` none."""
    for field, length in lengths.items():
        value = _value(config, field)
        allowed = (0, length) if or_none else (length,)
        if not isinstance(value, tuple | list) or len(value) not in allowed:
            raise _error(field, f"{value!r}", f"give {length} entries")


def _entries(value):
    """The numbers in a value, however deep in tuples."""
    if isinstance(value, tuple | list):
        return [number for entry in value for number in _entries(entry)]
    return [value]


def _whole(value):
    return type(value) is int and abs(value) < _INTEGER_LIMIT


def _real(value):
    return type(value) in (int, float) and math.isfinite(value)


def _value(config, field):
    """The value of a field by its dotted name."""
    for name in field.split("."):
        if name not in config:
            raise _error(field, "missing", "start from the config of configs/base.py")
        config = config[name]
    return config


def _error(field, problem, remedy):
    return UserError("config", field, problem, remedy)


def _either(values):
    return " or ".join(repr(value) for value in values)


@contextlib.contextmanager
def naming(part: str):
    """Puts the part of the config before the field of a UserError about the config."""
    try:
        yield
    except UserError as error:
        if error.where != "config":
            raise
        raise UserError("config", f"{part}.{error.field}", error.problem, error.remedy) from error
