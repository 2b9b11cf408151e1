"""Options of the searches: spaces, limits, strategies, how subnets are scored."""

import dataclasses
from collections.abc import Iterable

from ml_collections import ConfigDict

from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.runtime.options import check_choice, check_not_negative
from crnas_jax.search.strategies.build import Strategy, StrategyOptions, strategy
from crnas_jax.search.supernet.scorer import ScoreOptions
from crnas_jax.settings.data import image_size
from crnas_jax.settings.fields import read
from crnas_jax.settings.models import baseline, detector_cost, dilated
from crnas_jax.settings.run import has_stages, refine_options, run_options
from crnas_jax.settings.supernets import operation_space, stage_spaces
from crnas_jax.spaces.constrained import Limit, limited, require_any
from crnas_jax.spaces.space import Space

# Arrays of each stage's size that greedy search may hold on the devices.
_MAX_SLOTS = 8
# What a search does when every candidate scores 0: the first of them is no better than any other.
ALL_ZERO = ("stop", "continue")


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """What is searched for.

    Attributes:
      stage_strategy: strategy of the stage search.
      operation_strategy: strategy of the operation search.
      bn: statistics of subnets, see `ScoreOptions`.
      max_flops: most multiply-adds of a network; 0 for no limit.
      max_params: most parameters of a network; 0 for no limit.
      max_latency: most milliseconds of a network on this device; 0 for no limit.
      rescore: whether the last codes of the operation search, and the code of ones, are scored
        again as full codes with the statistics of `bn`.
      all_zero: what to do when every candidate scores 0, one of `ALL_ZERO`.
    """

    stage_strategy: str = "exhaustive"
    operation_strategy: str = "greedy"
    bn: str = "recalibrate"
    max_flops: float = 0.0
    max_params: float = 0.0
    max_latency: float = 0.0
    rescore: bool = True
    all_zero: str = "stop"

    def __post_init__(self):
        check_choice(self, "rescore", (True, False))
        check_choice(self, "all_zero", ALL_ZERO)
        check_not_negative(self, "max_flops", "max_params", "max_latency")


def search_options(config: ConfigDict) -> SearchOptions:
    """Read what is searched for."""
    return read(SearchOptions, config, "search")


def strategy_options(config: ConfigDict, repeat: int = 0) -> StrategyOptions:
    """Read the options of all strategies; a `repeat` draws anew."""
    arch = baseline(config)
    return read(
        StrategyOptions,
        config,
        "search",
        seed=run_options(config).seed + repeat,
        keep=() if arch.has_pyramid else (arch.depths,),
        num_best=max(refine_options(config).num_finalists("stage"), 1),
    )


def search_strategy(config: ConfigDict, level: str) -> Strategy:
    """Return the strategy of a level, `stage` or `operation`."""
    name = getattr(search_options(config), f"{level}_strategy")
    return strategy(name, level, strategy_options(config))


def limits(config: ConfigDict, num_classes: int) -> list[Limit]:
    """Return the config's limits that need no measurement."""
    options, canvas = search_options(config), image_size(config).canvas(portrait=False)

    def cost(arch):
        return detector_cost(config, arch, canvas, num_classes)

    all_limits = [
        Limit(options.max_flops, "multiply-adds", lambda arch: cost(arch).flops),
        Limit(options.max_params, "parameters", lambda arch: cost(arch).params),
    ]
    return [limit for limit in all_limits if limit.bound]


def limited_stages(config: ConfigDict, all_limits: list[Limit]) -> dict[float, Space]:
    """Return the allocations of each budget within limits.

    Raises:
      UserError: a budget has no allocation within them.
    """
    arch, spaces = baseline(config), stage_spaces(config)

    def arch_of(depths):
        return Arch(arch.family, depths, (), arch.widths)

    within = {amount: limited(space, all_limits, arch_of) for amount, space in spaces.items()}
    if all_limits:
        for amount, space in within.items():
            require_any(space, all_limits, spaces[amount], arch_of)
    return within


def require_reachable(config: ConfigDict, all_limits: list[Limit]) -> None:
    """Raise UserError unless the first search has a network within limits, for every budget.

    The smallest dilations stand for all: they run fastest, and none costs more multiply-adds.
    """
    if has_stages(config):
        limited_stages(config, all_limits)
        return
    arch = baseline(config)
    space = operation_space(config, arch)
    code = space.quickest_completion(())
    for limit in all_limits:
        value = limit.measure(dilated(arch, space.dilations_of(code)))
        if value > limit.bound:
            problem = f"no {space.noun} has at most {limit.bound:g} {limit.unit}; "
            problem += f"the least: {value:,.4g} {limit.unit} {code}"
            raise UserError("config", "search", problem, "relax it, or take another baseline")


def require_any_score(
    config: ConfigDict, scores: Iterable[float], search: str, remedy: str
) -> None:
    """Stop a search in which every candidate scored 0, or say so.

    Args:
      config: the config, which says what to do.
      scores: the scores.
      search: name of the search, for messages.
      remedy: how to train longer.

    Raises:
      UserError: none is above 0, and `search.all_zero` is "stop".
    """
    if any(score > 0 for score in scores):
        return
    problem = f"every candidate of the {search} search has an AP of 0: none is better than another"
    if search_options(config).all_zero == "stop":
        remedy = f"{remedy}, or set it to 'continue' for the first"
        raise UserError("config", "search.all_zero", problem, remedy)
    print(f"WARNING: {problem}; the first is taken", flush=True)


def score_options(config: ConfigDict, bn: str, repeat: int = 0) -> ScoreOptions:
    """Read how subnets are scored; a `repeat` draws other images for the statistics."""
    run = run_options(config)
    # Greedy candidates part at the block in question and where the surviving codes part; with
    # fewer slots than that a stage is run again, with many they fill the memory.
    num_slots = min(strategy_options(config).beam, _MAX_SLOTS) if bn == "batch" else 0
    return read(
        ScoreOptions,
        config,
        "search",
        {"num_batches": "batches", "bootstrap_samples": "samples"},
        size=image_size(config),
        bn=bn,
        num_slots=num_slots,
        seed=run.seed + repeat,
        num_devices=run.num_devices,
    )
