"""What the values of a config must be, field by field."""

import contextlib
import math

from crnas_jax.errors import UserError

_RECIPES = ("stage_train", "operation_train", "detector_train", "pretrain")
_AT_LEAST_1 = (
    *("data.short", "data.long", "data.max_objects"),
    *("data.synthetic.size", "data.synthetic.train", "data.synthetic.val", "data.synthetic.test"),
    *("detector.pyramid_channels", "detector.head_channels", "detector.canonical_size"),
    *("detector.rpn_samples", "detector.roi_samples", "detector.nms_candidates"),
    *("detector.anchor_sizes", "detector.pre_nms", "detector.post_nms", "widths"),
    *("search.keep", "search.chunk", "search.batch_size", "search.calibration_images"),
    *("bootstrap", "pretrain.data.size", "supernet.widths", "supernet.dilations"),
)
_AT_LEAST_0 = ("seed", "devices", "budget", "search.batches", "pretrain.label_smoothing")
_LENGTHS = {
    "widths": 4,
    "supernet.widths": 4,
    "supernet.grids": 4,
    "detector.anchor_sizes": 5,
    "detector.pre_nms": 2,
    "detector.post_nms": 2,
}
_OF_RECIPE_AT_LEAST_1 = ("batch_size", "accumulate", "log_every")
_OF_RECIPE_AT_LEAST_0 = ("weight_decay", "clip", "warmup_steps", "checkpoint_seconds")


def check_values(config, choices: dict[str, tuple]) -> None:
    """Raises UserError for the first value out of its range.

    Args:
      config: a ConfigDict with the fields of `configs/base.py`.
      choices: by field, the values it may have (each of them, where it is a tuple).
    """
    get = _Fields(config)
    for field, allowed in choices.items():
        value = get(field)
        for one in value if isinstance(value, tuple | list) else (value,):
            if one not in allowed:
                raise _error(field, f"{one!r} is unknown", f"use {_either(allowed)}")
    for field, length in _LENGTHS.items():
        value = get(field)
        if not isinstance(value, tuple | list) or len(value) != length:
            raise _error(field, f"{value!r}", f"give {length} entries")
    for field in _AT_LEAST_1:
        _require_least(field, get(field), 1)
    for field in _AT_LEAST_0:
        _require_least(field, get(field), 0)
    for recipe in _RECIPES:
        _check_recipe(recipe, get)
    if get("data.long") < get("data.short"):
        raise _error("data.long", "less than data.short", "give the longer side's bound")
    if get("pretrain.label_smoothing") >= 1:
        raise _error("pretrain.label_smoothing", "not below 1", "use 0.1")


def _check_recipe(recipe, get):
    for field in _OF_RECIPE_AT_LEAST_1:
        _require_least(f"{recipe}.{field}", get(f"{recipe}.{field}"), 1)
    for field in _OF_RECIPE_AT_LEAST_0:
        _require_least(f"{recipe}.{field}", get(f"{recipe}.{field}"), 0)
    for field in ("epochs", "rate_per_image"):
        value = get(f"{recipe}.{field}")
        if not 0 < value < math.inf:
            raise _error(f"{recipe}.{field}", f"{value}", "use a number above 0")
    if not 0 <= get(f"{recipe}.momentum") < 1:
        raise _error(f"{recipe}.momentum", "not in 0..1", "use 0.9")
    drops = tuple(get(f"{recipe}.drops"))
    if list(drops) != sorted(set(drops)) or any(not 0 < drop < 1 for drop in drops):
        raise _error(
            f"{recipe}.drops", f"{drops}", "give ascending fractions of the run, between 0 and 1"
        )


def _require_least(field, value, least):
    for one in value if isinstance(value, tuple | list) else (value,):
        # A comparison that NaN fails.
        if not (isinstance(one, int | float) and least <= one < math.inf):
            raise _error(field, f"{value!r}", f"use at least {least}")


class _Fields:
    """Values of a config by their dotted names."""

    def __init__(self, config):
        self._config = config

    def __call__(self, field):
        value = self._config
        for name in field.split("."):
            if name not in value:
                raise _error(field, "missing", "start from the config of configs/base.py")
            value = value[name]
        return value


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
