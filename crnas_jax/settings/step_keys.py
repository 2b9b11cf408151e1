"""What each step of a run reads: the table of `docs/design.md`, from which keys are made."""

import dataclasses

from ml_collections import ConfigDict

from crnas_jax.arch import zoo
from crnas_jax.settings.run import COMPARED
from crnas_jax.settings.training import RECIPE_OF

# Fields that change how a run is executed, not its results, wherever they stand. What the files
# hold is in the digests of the data.
EXECUTION = (
    *("devices", "remat", "checkpoint_seconds", "log_every", "max_subnets_per_call"),
    *("nms_candidates", "all_zero", "strict", "max_pixels"),
)
_IMAGES = ("data.name", "data.class_names", "data.exif", "data.min_size", "data.max_size")
_ROWS = (*_IMAGES, "data.max_objects", "data.mask_size", "data.flip")
_DETECTOR = ("precision", "detector")
_NETWORK = ("baseline", "widths")
_STAGES = ("supernet.widths", "supernet.grids", "supernet.stage_sharing")
_OPERATIONS = (
    *("supernet.widths", "supernet.dilations"),
    *("supernet.stage_sharing", "supernet.kernel_sharing"),
)
_SCORES = (
    *("search.batch_size", "search.batches"),
    *("search.calibration_images", "search.samples"),
)
_STRATEGY = (
    *("search.evaluations", "search.population", "search.parents"),
    *("search.max_flops", "search.max_params", "search.max_latency"),
)


@dataclasses.dataclass(frozen=True)
class Reads:
    """What a step reads.

    Attributes:
      fields: fields of the config by dotted name; a section stands for all its fields.
      splits: splits of the data; `pretrain/train` and `pretrain/val` are those for classification.
      steps: earlier steps whose results it reads: of a training the weights, of a search the
        network that it found.
    """

    fields: tuple[str, ...]
    splits: tuple[str, ...]
    steps: tuple[str, ...] = ()


# Scores of subnets, in whichever search: the journal's key, beside the digest of the weights, the
# statistics that they are scored with, and what the entries of a code mean.
SCORES = Reads(("seed", *_DETECTOR, *_IMAGES, *_SCORES), ("train", "val"))
# Scores of networks that a study trains.
TRAINED_SCORES = Reads(
    (
        *("seed", *_DETECTOR, *_NETWORK, *_ROWS, "detector_train"),
        *("pretrain", "search.batch_size", "search.samples"),
    ),
    ("train", "test", "pretrain/train"),
)
_SPEC = {
    "stage_supernet": (*_NETWORK, *_STAGES),
    "operation_supernet": (*_NETWORK, *_OPERATIONS),
    "baseline": _NETWORK,
    "searched": _NETWORK,
}
_FROM = {"operation_supernet": ("stage_search",), "searched": ("operation_search",)}


def _training(network):
    fields = ("seed", *_DETECTOR, *_SPEC[network], *_ROWS, RECIPE_OF[network])
    return Reads(fields, ("train",), _FROM.get(network, ()))


def _pretraining(network):
    fields = ("seed", "precision", *_SPEC[network], "pretrain", "search.batch_size")
    return Reads(fields, ("pretrain/train", "pretrain/val"), _FROM.get(network, ()))


def _search(level, *fields):
    shared = ("seed", *_DETECTOR, *_NETWORK, *_IMAGES, *_SCORES, "search.bn", *_STRATEGY)
    return Reads((*shared, *fields), ("train", "val"), (f"{level}_supernet",))


# In the order of the procedure.
READS = {
    "stage_supernet/pretrain": _pretraining("stage_supernet"),
    "stage_supernet": _training("stage_supernet"),
    "stage_search": _search(
        "stage",
        *("budget", "supernet.grids", "search.budgets"),
        *("search.stage_strategy", "search.confidence"),
    ),
    "operation_supernet/pretrain": _pretraining("operation_supernet"),
    "operation_supernet": _training("operation_supernet"),
    "operation_search": _search(
        "operation", "supernet.dilations", "search.operation_strategy", "search.beam"
    ),
    "searched/pretrain": _pretraining("searched"),
    "searched": _training("searched"),
    "baseline/pretrain": _pretraining("baseline"),
    "baseline": _training("baseline"),
    **{
        f"{network}/test": Reads((*_DETECTOR, *_IMAGES, "search.batch_size"), ("test",), (network,))
        for network in COMPARED
    },
}
# Fields that say where data lie, or which steps there are.
_BY_CONTENT = (
    *("pretrain.networks", "pretrain.data.folder", "pretrain.data.train", "pretrain.data.val"),
    *(f"pretrain.data.synthetic.{name}" for name in ("size", "train", "val")),
)


def fields(config: ConfigDict, reads: Reads) -> dict[str, object]:
    """Return the fields that a step reads and their values, in JSON's types.

    Of a baseline in a file it is the file's content.
    """
    values = dict(_flat(config.to_dict()))
    if config.baseline.endswith(".json"):
        values["baseline"] = zoo.find(config.baseline).to_json()
    return {
        name: _jsonable(value)
        for name, value in values.items()
        if any(name == field or name.startswith(f"{field}.") for field in reads.fields)
        and name.rpartition(".")[2] not in EXECUTION
        and name not in _BY_CONTENT
    }


def _flat(section, prefix=""):
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _jsonable(value):
    return [_jsonable(entry) for entry in value] if isinstance(value, tuple | list) else value
