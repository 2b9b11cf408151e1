"""Options of a run as a whole, and which networks it trains."""

import dataclasses

from ml_collections import ConfigDict

from crnas_jax.arch import zoo
from crnas_jax.errors import UserError
from crnas_jax.runtime.options import check_choice, check_counts, check_not_negative
from crnas_jax.search.refine import RefineOptions
from crnas_jax.settings.fields import read, section
from crnas_jax.spaces.operations import PERMUTED_TIES, TIES

# The networks with a start and a training of their own in the config.
NETWORKS = ("stage_supernet", "operation_supernet", "baseline", "searched")
# The networks of the last rung; the stage-only one starts and is trained as the searched one.
COMPARED = ("baseline", "stage_only", "searched")
# What may be asked for: one of them, or the one that the decision returns.
RETURNED = "returned"
# The search that a network comes out of, or is searched in; the baseline needs none.
LEVEL_OF_NETWORK = {
    **{"stage_supernet": "stage", "stage_only": "stage"},
    **{"operation_supernet": "operation", "searched": "operation", RETURNED: "operation"},
}
# In `init_from.operation_supernet`: start from this run's stage supernet.
FROM_STAGE_SUPERNET = "stage_supernet"


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of a run that belong to no part of it.

    Attributes:
      seed: seed of everything drawn: weights, paths, samples, order.
      devices: number of devices; 0 for all.
      fsdp: devices that the state of a training is split over.
      network: network that `train_detector` and `evaluate` mean: one of `COMPARED`, or `RETURNED`.
      budget: total cost in blocks; 0 for the baseline's.
      bootstrap: resamplings behind the interval of the difference.
      erf_images: images behind the receptive fields of the report; 0 for none.
      profile: steps of each training that the profiler traces; 0 for none.
    """

    seed: int = 0
    devices: int = 0
    fsdp: int = 1
    network: str = RETURNED
    budget: float = 0.0
    bootstrap: int = 500
    erf_images: int = 8
    profile: int = 0

    def __post_init__(self):
        check_counts(self, "seed", "devices", "erf_images", "profile", least=0)
        check_counts(self, "fsdp")
        check_counts(self, "bootstrap", least=2)
        check_not_negative(self, "budget")
        check_choice(self, "network", (*COMPARED, RETURNED))

    @property
    def num_devices(self) -> int | None:
        """Number of devices; None for all."""
        return self.devices or None


@dataclasses.dataclass(frozen=True)
class TieOptions:
    """What has a dilation of its own in the operation search.

    Attributes:
      tie: one of `TIES`, or of `PERMUTED_TIES` where the baseline is scale-permuted; "stage" means
        there that no dilations are searched, since it has no stages.
    """

    tie: str = "stage"

    def __post_init__(self):
        check_choice(self, "tie", tuple(dict.fromkeys((*TIES, *PERMUTED_TIES))))


@dataclasses.dataclass(frozen=True)
class PretrainOptions:
    """Which networks are trained on classification first.

    Attributes:
      networks: some of `NETWORKS`.
    """

    networks: tuple[str, ...] = ()

    def __post_init__(self):
        check_choice(self, "networks", NETWORKS)


def run_options(config: ConfigDict) -> RunOptions:
    """Read the options of the run as a whole."""
    return read(RunOptions, config, "")


def pretrained_networks(config: ConfigDict) -> tuple[str, ...]:
    """Read which networks are trained on classification first."""
    networks = read(PretrainOptions, config, "pretrain").networks
    has_stage_only = "searched" in networks and has_stages(config)
    return (*networks, *(["stage_only"] if has_stage_only else []))


def compared_networks(config: ConfigDict) -> tuple[str, ...]:
    """Return the networks of the last rung; the paper compares the found one with the baseline.

    A scale-permuted network has no stage-only one.
    """
    if refine_options(config).finalists and has_stages(config):
        return COMPARED
    return tuple(network for network in COMPARED if network != "stage_only")


def refine_options(config: ConfigDict) -> RefineOptions:
    """Read how what the searches found is trained and compared."""
    return read(RefineOptions, config, "refine")


def init_from(config: ConfigDict) -> dict[str, str]:
    """Read the folders that networks start from; "" for none.

    `FROM_STAGE_SUPERNET` is no folder, see `starts_from_stage_supernet`.
    """
    starts = dict(section(config, "init_from").items())
    if starts["operation_supernet"] == FROM_STAGE_SUPERNET:
        starts["operation_supernet"] = ""
    return starts | {"stage_only": starts["searched"]}


def starts_from_stage_supernet(config: ConfigDict) -> bool:
    """Return whether the operation supernet starts from this run's stage supernet.

    Where it is trained on classification first, or the baseline has no stages, it does not.
    """
    start = section(config, "init_from").operation_supernet
    is_pretrained = "operation_supernet" in pretrained_networks(config)
    return start == FROM_STAGE_SUPERNET and has_stages(config) and not is_pretrained


def has_stages(config: ConfigDict) -> bool:
    """Return whether the baseline has stages, whose blocks a search can reallocate."""
    return not zoo.find(config.baseline).has_pyramid


def levels(config: ConfigDict) -> tuple[str, ...]:
    """Return the searches in supernets that a config asks for, in their order.

    A baseline with stages has two, `stage` and `operation`; a scale-permuted one the latter, where
    `supernet.tie` says what has a dilation of its own in it. () where there is none: the
    architecture of the baseline can be searched instead, by training candidates.
    """
    tie = read(TieOptions, config, "supernet").tie
    if has_stages(config):
        return ("stage", "operation")
    return ("operation",) if tie in PERMUTED_TIES else ()


def searches_architecture(config: ConfigDict) -> bool:
    """Return whether a config asks for the search of the baseline's architecture itself."""
    return not levels(config) and bool(config.data.val)


def require_level(config: ConfigDict, level: str, field: str = "baseline") -> None:
    """Raise UserError about a field unless the config asks for the search of a level."""
    asked = levels(config)
    if level not in asked:
        problem = f"{config.baseline!r} has no stages whose blocks could be reallocated"
        remedy = "search its dilations alone (--level=operation)"
        if not asked:
            ties = " or ".join(map(repr, PERMUTED_TIES))
            remedy = f"set supernet.tie to {ties} to search its dilations"
            remedy += ", take crnas-jax run-spinenet to search its blocks"
        remedy = f"{remedy}, or train it alone: --network=baseline"
        raise UserError("config", field, problem, remedy)


def require_detection(config: ConfigDict, network: str) -> None:
    """Raise UserError unless the config has the data to train a network, and what it comes from."""
    if config.data.name == "none":
        problem = '"none", and detection needs images with boxes'
        raise UserError("config", "data.name", problem, "name a data set")
    is_found = network in ("searched", RETURNED) and searches_architecture(config)
    if network in LEVEL_OF_NETWORK and not is_found:
        require_level(config, LEVEL_OF_NETWORK[network])
    if network not in ("baseline", "stage_supernet"):
        _require_val(config)


def require_search(config: ConfigDict, level: str = "operation") -> None:
    """Raise UserError unless the config asks for the search of a level, and has the data for it."""
    require_detection(config, f"{level}_supernet")
    _require_val(config)


def _require_val(config):
    if not config.data.val:
        problem = "empty, and a search scores on that split"
        raise UserError("config", "data.val", problem, "name one, or train a network alone")


def require_pretraining(config: ConfigDict, network: str) -> None:
    """Raise UserError unless the config trains a network on classification first."""
    if network in LEVEL_OF_NETWORK:
        require_level(config, LEVEL_OF_NETWORK[network])
    if network not in pretrained_networks(config):
        raise UserError(
            "config",
            "pretrain.networks",
            f"{network} is not in it",
            f"set --config.pretrain.networks=\"('{network}',)\" for this and all later steps",
        )
