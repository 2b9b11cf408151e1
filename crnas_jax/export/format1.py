"""Names that exports of format 1 used, and their present names.

Format 1 was written before the fields of the options took the field's standard names. The table is
the only place that knows the old ones.
"""

# By the dotted place of an options object in the file, old field names to new ones.
_RENAMED = {
    "size": {"short": "min_size", "long": "max_size"},
    "options": {"classes": "num_classes"},
    "options.rpn": {"samples": "num_samples"},
    "options.box": {
        "bins": "pool_size",
        "samples": "num_samples",
        "detections": "max_detections",
    },
    "options.mask": {"convolutions": "num_convolutions", "bins": "pool_size"},
}


def upgrade(fields: dict) -> dict:
    """Return the content of a `detector.json` of format 1 with the names of format 2."""
    return _rename(fields, "") | {"format": 2}


def _rename(value, place):
    if not isinstance(value, dict):
        return value
    names = _RENAMED.get(place, {})
    return {
        names.get(name, name): _rename(entry, f"{place}.{name}".lstrip("."))
        for name, entry in value.items()
    }
