"""What each step of a run reads: the table of `docs/design.md`, from which keys are made."""

import dataclasses
from collections.abc import Iterator

from ml_collections import ConfigDict

from crnas_jax.arch import zoo
from crnas_jax.settings.architectures import proxy_config
from crnas_jax.settings.models import neck_options
from crnas_jax.settings.run import COMPARED, has_stages, levels
from crnas_jax.settings.search import strategy_options
from crnas_jax.settings.supernets import stage_supernet
from crnas_jax.settings.training import RECIPE_OF, calibration_images

# Fields that change how a run is executed, not its results, wherever they stand. What the files
# hold is in the digests of the data.
EXECUTION = (
    *("devices", "fsdp", "remat", "checkpoint_seconds", "log_every", "max_subnets_per_call"),
    *(
        "nms_candidates",
        "all_zero",
        "strict",
        "max_pixels",
        "workers",
        "read_ahead",
        "profile",
        "kept_candidates",
        "candidate_memory",
    ),
)
_IMAGES = ("data.name", "data.class_names", "data.exif", "data.min_size", "data.max_size")
_ROWS = (*_IMAGES, "data.max_objects", "data.mask_size", "data.flip", "data.scale_jitter")
_DETECTOR = ("precision", "detector")
_NETWORK = ("baseline", "widths")
_STAGES = ("supernet.widths", "supernet.grids", "supernet.stage_sharing", "supernet.draws")
_OPERATIONS = (
    *("supernet.widths", "supernet.dilations", "supernet.tie", "supernet.draws"),
    *("supernet.stage_sharing", "supernet.kernel_sharing"),
)
# Networks that are trained alone: their recipe, and the statistics that they get after it.
_ALONE = (*_DETECTOR, *_NETWORK, *_ROWS, "detector_train", "trained_bn_images")
# The training of a candidate on the proxy task, and what it is scored with.
_CANDIDATE = (
    *(*_DETECTOR, "data.name", "data.class_names", "data.exif", "data.max_objects"),
    *("data.mask_size", "data.flip", "data.scale_jitter", "proxy", "trained_bn_images"),
    *("search.batch_size", "search.samples"),
    *("executor.candidate_devices", "executor.candidate_threads"),
)
_SCALE_SPACE = (
    *("space.phases", "space.window", "space.offsets", "space.levels", "space.fixed_parents"),
    *("space.max_flops_ratio", "space.min_flops_ratio"),
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
# Scores of candidates: the journal's key, beside the stem that they share.
CANDIDATE_SCORES = Reads(("seed", *_CANDIDATE), ("train", "val"))
_SPEC = {
    "stage_supernet": (*_NETWORK, *_STAGES),
    "operation_supernet": (*_NETWORK, *_OPERATIONS),
}
# Choices between what a search found and what was trained alone: from which steps they follow. A
# step that reads one reads the chosen network.
CHOICES = {
    "allocation": ("stage_search", "finalists/val"),
    "network": ("allocation", "operation_search", "finalists/val"),
    "architecture": ("architecture_search", "finalists/val"),
}
# The search that each choice comes after.
LEVEL_OF = {"allocation": "stage", "network": "operation", "architecture": "architecture"}
_FROM = {
    "operation_supernet": ("allocation",),
    "stage_only": ("allocation",),
    "searched": ("network",),
}


def _training(supernet):
    fields = ("seed", *_DETECTOR, *_SPEC[supernet], *_ROWS, RECIPE_OF[supernet])
    return Reads(fields, ("train",), _FROM.get(supernet, ()))


def _training_alone(network, *fields):
    return Reads(("seed", *_ALONE, *fields), ("train",), _FROM.get(network, ()))


def _detection(network, split):
    return Reads((*_DETECTOR, *_IMAGES, "search.batch_size"), (split,), (network,))


def _pretraining(network):
    spec = _SPEC.get(network, _NETWORK)
    fields = ("seed", "precision", *spec, "pretrain", "search.batch_size")
    return Reads(fields, ("pretrain/train", "pretrain/val"), _FROM.get(network, ()))


def _search(level, *fields):
    shared = ("seed", *_DETECTOR, *_NETWORK, *_IMAGES, *_SCORES, "search.bn", *_STRATEGY)
    return Reads((*shared, *fields), ("train", "val"), (f"{level}_supernet",))


# In the order of the procedure. `finalists` and `ranking` stand for every network that is trained
# with the short schedule, and in the ranking study; a row of the last rung for all its seeds.
READS = {
    "stage_supernet/pretrain": _pretraining("stage_supernet"),
    "stage_supernet": _training("stage_supernet"),
    "stage_search": _search(
        "stage",
        *("budget", "supernet.grids", "search.budgets"),
        *("search.stage_strategy", "search.confidence"),
    ),
    "architecture_search": Reads(
        (
            *("seed", *_CANDIDATE, *_SCALE_SPACE, "baseline", "controller"),
            *("search.architecture_strategy", "search.in_flight"),
            *("search.population", "search.parents", "search.max_flops", "search.max_params"),
            # Limits of the config, and what the result says of costs, are of the final images.
            *("data.min_size", "data.max_size"),
        ),
        ("train", "val"),
    ),
    "finalists": _training_alone("finalists", "refine.short"),
    "finalists/val": _detection("finalists", "val"),
    "operation_supernet/pretrain": _pretraining("operation_supernet"),
    "operation_supernet": _training("operation_supernet"),
    "operation_search": _search(
        "operation",
        *("supernet.dilations", "supernet.tie"),
        *("search.operation_strategy", "search.beam", "search.rescore"),
    ),
    **{f"{network}/pretrain": _pretraining(network) for network in COMPARED},
    **{network: _training_alone(network) for network in COMPARED},
    **{
        f"{network}/{split}": _detection(network, split)
        for split in ("val", "test")
        for network in COMPARED
    },
    "ranking/pretrain": _pretraining("ranking"),
    "ranking": _training_alone("ranking"),
    "ranking/test": _detection("ranking", "test"),
}
# Fields that came after version 0.2, by their name or its end: at these values nothing is other
# than before, and a folder of that version goes on.
_LATER = {
    **{"detector.head": "torchvision", "detector.head_convolutions": 0, "detector.p6_from": "p5"},
    **{"detector.label_smoothing": 0.0, "activation": "", "bn_momentum": 0.9, "bn_epsilon": 1e-5},
    **{"stochastic_depth": 0.0, "drop_block": 0.0, "drop_block_size": 7, "data.scale_jitter": ()},
    **{"decay_kernels_only": False, "ema_decay": 0.0, "warmup_start": 1e-3},
}
# Fields that say where data lie, or which steps there are.
_BY_CONTENT = (
    *("pretrain.networks", "pretrain.data.folder", "pretrain.data.train", "pretrain.data.val"),
    *(f"pretrain.data.synthetic.{name}" for name in ("size", "train", "val")),
)


def choices(config: ConfigDict) -> tuple[str, ...]:
    """Return the choices of `CHOICES` that a run makes: those of CR-NAS, or SpineNet's."""
    searched = levels(config) or ("architecture",)
    return tuple(choice for choice, level in LEVEL_OF.items() if level in searched)


def fields(config: ConfigDict, reads: Reads) -> dict[str, object]:
    """Return the fields that a step reads and their values, in JSON's types.

    Of a baseline in a file it is the file's content; of the neck, what "auto" stands for; of the
    grids, the depths that the supernet holds; of `trained_bn_images`, what `trained_bn` makes of
    them; of racing also how many best codes it looks for.
    """
    values = dict(flat_fields(config.to_dict()))
    if "supernet.grids" in reads.fields and has_stages(config):
        values["supernet.grids"] = stage_supernet(config).grids
    if "search.stage_strategy" in reads.fields and config.search.stage_strategy == "racing":
        num_best = strategy_options(config).num_best
        values["search.stage_strategy"] = f"racing for the {num_best} best"
    if "trained_bn_images" in reads.fields:
        is_proxy = "proxy" in reads.fields
        values["trained_bn_images"] = calibration_images(
            proxy_config(config) if is_proxy else config
        )
    if config.baseline.endswith(".json"):
        values["baseline"] = zoo.find(config.baseline).to_json()
    if values["detector.neck"] == "auto":
        values["detector.neck"] = neck_options(config).kind
    return {
        name: _jsonable(value)
        for name, value in values.items()
        if any(name == field or name.startswith(f"{field}.") for field in reads.fields)
        and name.rpartition(".")[2] not in EXECUTION
        and name not in _BY_CONTENT
        and not any(name.endswith(later) and value == default for later, default in _LATER.items())
    }


def flat_fields(section: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the fields of a config, as a dict, by dotted name."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from flat_fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _jsonable(value):
    return [_jsonable(entry) for entry in value] if isinstance(value, tuple | list) else value
