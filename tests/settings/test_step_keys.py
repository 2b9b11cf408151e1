"""The table of what steps read: it is that of docs/design.md, and names all that is read."""

import re

import pytest
from helpers import ROOT

from configs import quickstart
from crnas_jax.arch.staged import Arch
from crnas_jax.settings import (
    architectures,
    data,
    models,
    search,
    step_keys,
    supernets,
    training,
)
from crnas_jax.settings.run import COMPARED

ARCH = Arch("resnet_basic", (1, 1, 2, 2))


class Recorder:
    """A config that notes which fields are read."""

    def __init__(self, config, names, place=""):
        self.__dict__.update(_config=config, _names=names, _place=place)

    def __contains__(self, name):
        return name in self._config

    def __getitem__(self, name):
        value = self._config[name]
        place = f"{self._place}{name}"
        if hasattr(value, "items"):
            return Recorder(value, self._names, f"{place}.")
        self._names.add(place)
        return value

    __getattr__ = __getitem__


def _spec(config, network):
    if network == "stage_supernet":
        return supernets.stage_supernet(config)
    if network == "operation_supernet":
        return supernets.operation_supernet(config, ARCH)
    return models.baseline(config) if network == "baseline" else models.found_arch(config, (1,) * 4)


def _train(network):
    def read(config):
        models.detector(config, _spec(config, network), 3)
        data.detection_rows(config)
        training.train_options(config, training.RECIPE_OF[network])

    return read


def _train_alone(network):
    def read(config):
        models.detector(config, _spec(config, network), 3)
        data.detection_rows(config)
        training.train_options(config, "detector_train")
        training.calibration_images(config)
        if network == "finalists":
            assert config["refine"]["short"]

    return read


def _pretrain(network):
    def read(config):
        models.classifier(config, _spec(config, network), 3)
        data.classification_rows(config)
        training.train_options(config, "pretrain")
        _batch_size(config)

    return read


def _batch_size(config):
    # The field alone: evaluation takes nothing else of the options of scores.
    assert config["search"]["batch_size"]


def _search_stage(config):
    search.limited_stages(config, search.limits(config, 3))
    search.search_strategy(config, "stage")
    search.score_options(config, search.search_options(config).bn)
    models.found_arch(config, (1, 1, 2, 2))


def _search_operations(config):
    supernets.operation_space(config, ARCH)
    search.limits(config, 3)
    search.search_strategy(config, "operation")
    search.score_options(config, search.search_options(config).bn)


def _test(config):
    models.detector(config, Arch("resnet_basic", (1, 1, 1, 1)), 3)
    data.image_size(config)
    _batch_size(config)


def _search_architecture(config):
    architectures.space_options(config)
    architectures.proxy_options(config)
    architectures.proposal_options(config)
    architectures.controller_options(config)
    architectures.worker_options(config)
    search.limits(config, 3)
    data.detection_rows(config)
    training.train_options(config, "proxy")
    training.calibration_images(config)
    _batch_size(config)


SUPERNETS = ("stage_supernet", "operation_supernet")
READERS = {
    **{network: _train(network) for network in SUPERNETS},
    **{network: _train_alone(network) for network in (*COMPARED, "finalists", "ranking")},
    **{f"{network}/pretrain": _pretrain(network) for network in (*SUPERNETS, *COMPARED, "ranking")},
    "stage_search": _search_stage,
    "operation_search": _search_operations,
    "architecture_search": _search_architecture,
    **{f"{network}/test": _test for network in (*COMPARED, "ranking")},
    **{f"{network}/val": _test for network in (*COMPARED, "finalists")},
}
# Fields of CR-NAS's searches.
SEARCH_FIELDS = (
    *("stage_strategy", "operation_strategy", "bn", "max_latency", "rescore", "all_zero"),
    "confidence",
)
# Options classes are read whole; these fields of them are not used by the step. Those of data say
# where it lies: the files are in the digest.
UNUSED = {
    *(f"data.{split}" for split in ("train", "val", "test", "images", "folder")),
    *(f"data.{split}_images" for split in ("train", "val", "test")),
    *(f"pretrain.data.{name}" for name in ("folder", "train", "val")),
    *(
        f"{place}.synthetic.{n}"
        for place in ("data", "pretrain.data")
        for n in ("size", "train", "val", "test")
    ),
    *("network", "bootstrap", "erf_images"),
    *("detector.stochastic_depth", "pretrain.stochastic_depth"),
    # In the values of the grids, and of the images that statistics come from; racing's is named
    # with the number of finalists.
    *("supernet.depths", "trained_bn"),
    *(f"refine.{name}" for name in ("finalists", "operation_finalists", "seeds", "confidence")),
}
UNUSED_BY = {
    "architecture_search": {
        "search.evaluations",  # raising it goes on
        *(f"executor.{name}" for name in ("platform", "per_device")),
        *("widths", "budget"),  # the proxy's are others
        *(f"search.{name}" for name in SEARCH_FIELDS),
        *(f"detector_train.{name}" for name in quickstart.get_config().detector_train),
    },
    "stage_supernet": {
        *("supernet.dilations", "supernet.kernel_sharing", "supernet.tie"),
        *("budget", "search.budgets"),  # as `supernet.depths`
    },
    "stage_search": {
        "refine.short",
        *("search.operation_strategy", "search.beam", "search.rescore"),
        *("supernet.dilations", "supernet.tie", "supernet.draws"),
        *("supernet.kernel_sharing", "supernet.widths", "supernet.stage_sharing"),
    },
    "operation_supernet": {"supernet.grids", "budget"},
    "operation_search": {
        "refine.short",
        *("search.stage_strategy", "search.confidence", "search.budgets", "budget"),
        *("supernet.grids", "supernet.widths", "supernet.stage_sharing"),
        *("supernet.kernel_sharing", "supernet.draws"),
    },
    **{network: {"budget"} for network in (*COMPARED, "finalists", "ranking")},
    # Which kind the neck has, and what divides the canvas: in the values of the neck.
    **{
        f"{network}/{split}": {"baseline", "widths"}
        for network in (*COMPARED, "finalists", "ranking")
        for split in ("val", "test")
    },
}


# Values of fields that came after version 0.2, which keys leave out at their defaults; what is left
# out of a network's depth needs one without stages.
LATER = {
    **{"detector.head": "spinenet", "detector.head_convolutions": 2, "detector.p6_from": "c5"},
    **{"label_smoothing": 0.1, "activation": "swish", "bn_momentum": 0.8, "bn_epsilon": 1e-3},
    **{"drop_block": 0.1, "drop_block_size": 5, "data.scale_jitter": (0.5, 2.0)},
    **{"decay_kernels_only": True, "ema_decay": 0.5, "warmup_start": 0.5},
}


def _config(later=False):
    config = quickstart.get_config("pretrain")
    for name, _ in list(step_keys.flat_fields(config.to_dict())) if later else ():
        for end, value in LATER.items():
            if name == end or name.endswith(f".{end}"):
                config.update_from_flattened_dict({name: value})
    return config


def test_fields_that_came_later_change_no_key_at_their_defaults():
    for reads in step_keys.READS.values():
        values = step_keys.fields(_config(), reads)
        assert values.get("detector.neck", "fpn") == "fpn"  # it was the default's name
        ends = (*(end for end in LATER if end != "label_smoothing"), "stochastic_depth")
        assert not [name for name in values if name.endswith(ends)]


@pytest.mark.parametrize("step", step_keys.READS)
def test_a_key_holds_every_field_that_its_step_reads(step):
    names, config = set(), _config(later=True)
    READERS[step](Recorder(config, names))
    unused = UNUSED | UNUSED_BY.get(step.removesuffix("/pretrain"), set())
    read = {n for n in names if n.rpartition(".")[2] not in step_keys.EXECUTION} - unused
    assert read <= set(step_keys.fields(config, step_keys.READS[step]))


def test_the_table_is_that_of_the_documentation():
    text = (ROOT / "docs" / "design.md").read_text()
    rows = re.findall(r"^\| `([\w/]+)` \| (.*?) \| (.*?) \| (.*?) \|$", text, re.M)
    table = {step: [re.findall(r"`(.*?)`", cell) for cell in cells] for step, *cells in rows}
    assert list(table) == list(step_keys.READS)
    for step, reads in step_keys.READS.items():
        assert table[step] == [list(reads.fields), list(reads.splits), list(reads.steps)], step
