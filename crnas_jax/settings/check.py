"""One look at all options of a config before anything is read or written."""

from ml_collections import ConfigDict

from crnas_jax.errors import UserError
from crnas_jax.settings.architectures import (
    check_architectures,
    executor_options,
    worker_options,
)
from crnas_jax.settings.data import (
    classification_data_options,
    data_options,
    detection_rows,
    read_options,
)
from crnas_jax.settings.fields import refuse_old_names
from crnas_jax.settings.models import baseline, classifier, detector
from crnas_jax.settings.run import (
    LEVEL_OF_NETWORK,
    has_stages,
    init_from,
    levels,
    pretrained_networks,
    refine_options,
    require_level,
    run_options,
)
from crnas_jax.settings.search import (
    score_options,
    search_options,
    search_strategy,
    strategy_options,
)
from crnas_jax.settings.supernets import (
    operation_space,
    stage_spaces,
    stage_supernet,
    supernet_options,
)
from crnas_jax.settings.training import (
    RECIPES,
    require_devices,
    require_even_batches,
    statistics_options,
    train_options,
)


def check(config: ConfigDict) -> None:
    """Raise UserError for a config that cannot run; options check themselves as they are made."""
    refuse_old_names(config)
    run_options(config)
    arch, pretrained, options = baseline(config), pretrained_networks(config), data_options(config)
    detection_rows(config)
    read_options(config)
    init_from(config)
    classification_data_options(config)
    executor_options(config)
    worker_options(config)
    detector(config, arch, num_classes=1)
    searched = levels(config)
    if options.val and not searched:
        check_architectures(config)
    for network in set(pretrained) - {"baseline"}:
        require_level(config, LEVEL_OF_NETWORK[network], "pretrain.networks")
    classifier(config, arch, num_classes=1)
    for recipe in RECIPES:
        train_options(config, recipe)
        if recipe != "pretrain" or pretrained:
            require_devices(config, recipe)
    statistics_options(config)
    scoring = score_options(config, search_options(config).bn)
    require_even_batches(config, "search", scoring.batch_size)
    for level in searched:
        search_strategy(config, level)
    if searched:
        supernet_options(config)
    refine = refine_options(config)
    beam = strategy_options(config).beam
    if refine.num_finalists("operation") > beam:
        problem = f"{refine.operation_finalists}, and the search ends with {beam} codes"
        raise UserError("config", "refine.operation_finalists", problem, "raise search.beam too")
    if searched and options.val and options.name != "none":  # it may be searched
        if has_stages(config):
            stage_spaces(config)
            stage_supernet(config)
        operation_space(config, arch)
