"""Options of the supernets and of the spaces that they hold: budgets, depths, dilations."""

import dataclasses

from ml_collections import ConfigDict

from crnas_jax.arch import Architecture
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.models.supernet.scale_operations import ScaleSupernetSpec
from crnas_jax.runtime.options import check_choice, check_counts, check_positive
from crnas_jax.settings.fields import build, read
from crnas_jax.settings.models import baseline
from crnas_jax.settings.run import run_options
from crnas_jax.spaces.operations import PAPER_DILATIONS, OperationSpace
from crnas_jax.spaces.stages import BudgetSpace, StageSpace

# Which depths a stage supernet holds: those of some allocation of a budget, or the whole grids.
DEPTHS = ("reachable", "all")


@dataclasses.dataclass(frozen=True)
class SupernetOptions:
    """What the supernets of a run hold, and how their training draws paths.

    Attributes:
      widths: width of every stage; () for the paper's.
      grids: candidate depths of every searched stage; () for the paper's.
      depths: one of `DEPTHS`.
      dilations: candidate dilations of every block.
      tie: see `OperationSpace` and `PermutedOperationSpace`.
      stage_sharing: see `SupernetSpec`.
      kernel_sharing: see `SupernetSpec`.
      draws: see `SupernetSpec`.
    """

    widths: tuple[int, ...] = ()
    grids: tuple[tuple[int, ...], ...] = ()
    depths: str = "reachable"
    dilations: tuple[int, ...] = PAPER_DILATIONS
    tie: str = "stage"
    stage_sharing: str = "prefix"
    kernel_sharing: str = "own"
    draws: str = "balanced"

    def __post_init__(self):
        check_counts(self, "widths", "grids", "dilations")
        check_choice(self, "depths", DEPTHS)
        for stage, grid in enumerate(self.grids):
            if not isinstance(grid, tuple | list):
                raise UserError(
                    "SupernetOptions", f"grids[{stage}]", f"{grid!r}", "give depths, as (1, 2, 3)"
                )


@dataclasses.dataclass(frozen=True)
class BudgetOptions:
    """Budgets of the stage search beside the run's.

    Attributes:
      budgets: budgets in blocks.
    """

    budgets: tuple[float, ...] = ()

    def __post_init__(self):
        check_positive(self, "budgets")


def supernet_options(config: ConfigDict) -> SupernetOptions:
    """Read what the supernets hold."""
    options = read(SupernetOptions, config, "supernet")
    arch, lengths = baseline(config), {"widths": 0, "grids": 0}
    if isinstance(arch, Arch):
        lengths = {"widths": len(arch.traits.widths), "grids": len(arch.traits.searched_stages)}
    for field, length in lengths.items():
        value = getattr(options, field)
        if not isinstance(value, tuple) or len(value) not in (0, length):
            remedy = f"give {length} entries" if length else "set it to (): there are no stages"
            raise UserError("config", f"supernet.{field}", f"{value!r}", remedy)
    return options


def stage_cost(arch: Arch) -> float:
    """Return the cost of an architecture, in blocks."""
    return StageSpace.for_family(arch.family).cost(arch.depths)


def budget(config: ConfigDict) -> float:
    """Return the budget of the run, in blocks."""
    return run_options(config).budget or stage_cost(baseline(config))


def stage_spaces(config: ConfigDict) -> dict[float, BudgetSpace]:
    """Return the allocations of each budget, the run's budget first.

    Raises:
      UserError: no allocation costs a budget.
    """
    space = StageSpace.for_family(baseline(config).family, supernet_options(config).grids)
    budgets = (budget(config), *map(float, read(BudgetOptions, config, "search").budgets))
    return {amount: space.within(amount) for amount in dict.fromkeys(budgets)}


def operation_space(config: ConfigDict, arch: Architecture) -> OperationSpace:
    """Return the operation codes of a network, whatever its own dilations."""
    if isinstance(arch, ScalePermuted):
        return operation_supernet(config, arch).space
    options = supernet_options(config)
    values = {"depths": arch.stage_depths, "dilations": options.dilations, "tie": options.tie}
    return build(OperationSpace, values, {"tie": "supernet.tie"})


def stage_supernet(config: ConfigDict) -> SupernetSpec:
    """Return the supernet with the depths of the allocations, and one dilation.

    Raises:
      UserError: no allocation costs a budget, and the depths are the reachable ones.
    """
    options = supernet_options(config)
    grids = StageSpace.for_family(baseline(config).family, options.grids).grids
    if options.depths == "reachable":
        # Paths that no allocation can have would be trained for nothing.
        codes = [code for space in stage_spaces(config).values() for code in space.enumerate()]
        grids = tuple(tuple(sorted(set(depths))) for depths in zip(*codes, strict=True))
    return _supernet(config, grids, (1,))


def operation_supernet(config: ConfigDict, arch: Architecture) -> SupernetSpec | ScaleSupernetSpec:
    """Return the supernet over the dilations of an allocation, or of a scale-permuted network.

    The latter has its own widths there.
    """
    options = supernet_options(config)
    if not isinstance(arch, ScalePermuted):
        return _supernet(config, tuple((depth,) for depth in arch.depths), options.dilations)
    names = ("dilations", "kernel_sharing", "tie", "draws")
    values = {"arch": arch, **{name: getattr(options, name) for name in names}}
    return build(ScaleSupernetSpec, values, {name: f"supernet.{name}" for name in names})


def _supernet(config, grids, dilations):
    options, arch = supernet_options(config), baseline(config)
    divisor = arch.traits.supernet_divisor
    names = ("stage_sharing", "kernel_sharing", "tie", "draws")
    values = {
        "family": arch.family,
        "widths": options.widths or tuple(width // divisor for width in arch.widths),
        "grids": grids,
        "dilations": dilations,
        **{name: getattr(options, name) for name in names},
    }
    return build(SupernetSpec, values, {name: f"supernet.{name}" for name in names})
