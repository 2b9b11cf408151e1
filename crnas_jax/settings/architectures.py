"""Options of the search of scale-permuted networks: space, proxy task, controller, workers."""

import dataclasses

from ml_collections import ConfigDict

from crnas_jax.arch import graphs
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.errors import UserError
from crnas_jax.runtime.options import (
    check_choice,
    check_counts,
    check_not_negative,
    check_positive,
)
from crnas_jax.search.executors.local import WorkerOptions
from crnas_jax.search.strategies.reinforce import ControllerOptions
from crnas_jax.settings.data import image_size
from crnas_jax.settings.fields import build, read
from crnas_jax.settings.models import baseline, detector, detector_cost
from crnas_jax.settings.search import limits
from crnas_jax.settings.training import train_options
from crnas_jax.spaces.constrained import Limit
from crnas_jax.spaces.scale_permuted import FIXED_PARENTS, PARTS, ScalePermutedSpace
from crnas_jax.spaces.space import Code

# Where candidates are trained.
EXECUTORS = ("auto", "local", "ray")
ARCHITECTURE_STRATEGIES = ("evolution", "random", "reinforce", "halving")


@dataclasses.dataclass(frozen=True)
class SpaceOptions:
    """The space around the baseline.

    Attributes:
      phases: parts of the space (`scale_permuted.PARTS`) that are searched together, one group
        after another, each from the best network of the one before.
      window: see `ScalePermutedSpace`, as the next three.
      offsets: see above.
      levels: see above.
      fixed_parents: see above.
      max_flops_ratio: most multiply-adds of a detector at the proxy's size over the baseline's; 0
        for no limit.
      min_flops_ratio: least.
    """

    phases: tuple[tuple[str, ...], ...] = (PARTS,)
    window: int = 5
    offsets: tuple[int, ...] = (-1, 0, 1, 2)
    levels: tuple[int, int] = (2, 7)
    fixed_parents: str = "nearest"
    max_flops_ratio: float = 1.05
    min_flops_ratio: float = 0.0

    def __post_init__(self):
        check_choice(self, "fixed_parents", FIXED_PARENTS)
        check_not_negative(self, "max_flops_ratio", "min_flops_ratio")
        if not self.phases or not all(isinstance(parts, tuple) for parts in self.phases):
            problem, remedy = f"{self.phases!r}", f"give groups of {PARTS}, as (('connections',),)"
            raise UserError("SpaceOptions", "phases", problem, remedy)


@dataclasses.dataclass(frozen=True)
class ProxyOptions:
    """The proxy task on which candidates are trained, beside its recipe.

    Attributes:
      width_scale: see `ScalePermuted`, as the next three.
      alpha: see above.
      endpoint_channels: see above; the head has as many.
      repeats: see above.
      min_size: shorter side of the images, pixels.
      max_size: bound of the longer side.
      seeds: trainings of each candidate, whose scores are averaged.
      kept_candidates: candidates whose checkpoints and detections stay.
      max_memory: gigabytes that a training step may take; a candidate that takes more scores 0. 0
        for no limit.
    """

    width_scale: float = 0.25
    alpha: float = 0.25
    endpoint_channels: int = 64
    repeats: int = 1
    min_size: int = 512
    max_size: int = 512
    seeds: int = 1
    kept_candidates: int = 20
    max_memory: float = 0.0

    def __post_init__(self):
        check_positive(self, "width_scale", "alpha")
        check_counts(self, "endpoint_channels", "repeats", "min_size", "max_size", "seeds")
        check_counts(self, "kept_candidates", least=0)
        check_not_negative(self, "max_memory")


@dataclasses.dataclass(frozen=True)
class ExecutorOptions:
    """Where candidates and finalists are trained.

    Attributes:
      kind: one of `EXECUTORS`; "auto": candidates in local processes, the networks of CR-NAS in the
        process of the run.
      address: cluster to join ("ray"), host:port or "auto"; "" to start one on this machine.
    """

    kind: str = "auto"
    address: str = ""

    def __post_init__(self):
        check_choice(self, "kind", EXECUTORS)
        if self.address and self.kind != "ray":
            problem = f"{self.address!r}, a cluster, and executor.kind is {self.kind!r}"
            raise UserError("ExecutorOptions", "address", problem, "set executor.kind to 'ray'")


@dataclasses.dataclass(frozen=True)
class ProposalOptions:
    """How candidates are proposed.

    Attributes:
      architecture_strategy: one of `ARCHITECTURE_STRATEGIES`.
      evaluations: number of proposals; of successive halving what it may cost, in candidates.
      in_flight: proposals at once (`proposing.run_proposer`).
      population: candidates in evolution's population.
      parents: candidates that evolution chooses a parent from.
    """

    architecture_strategy: str = "evolution"
    evaluations: int = 100
    in_flight: int = 1
    population: int = 20
    parents: int = 5

    def __post_init__(self):
        check_choice(self, "architecture_strategy", ARCHITECTURE_STRATEGIES)
        check_counts(self, "evaluations", "in_flight", "population", "parents")


def space_options(config: ConfigDict) -> SpaceOptions:
    """Read the space around the baseline."""
    return read(SpaceOptions, config, "space")


def proxy_options(config: ConfigDict) -> ProxyOptions:
    """Read the proxy task."""
    return read(ProxyOptions, config, "proxy")


def executor_options(config: ConfigDict) -> ExecutorOptions:
    """Read where candidates are trained."""
    return read(ExecutorOptions, config, "executor")


def worker_options(config: ConfigDict) -> WorkerOptions:
    """Read what an attempt runs on."""
    names = {name: f"candidate_{name}" for name in ("devices", "threads", "memory")}
    return read(WorkerOptions, config, "executor", names)


def proposal_options(config: ConfigDict) -> ProposalOptions:
    """Read how candidates are proposed."""
    return read(ProposalOptions, config, "search")


def controller_options(config: ConfigDict) -> ControllerOptions:
    """Read the settings of REINFORCE's controller."""
    return read(ControllerOptions, config, "controller")


def space(config: ConfigDict, parts: tuple[str, ...], base: ScalePermuted) -> ScalePermutedSpace:
    """Return the space of a phase around the best network of the one before, or the baseline."""
    options = space_options(config)
    names = ("window", "offsets", "levels", "fixed_parents")
    values = {"base": base, "parts": parts} | {name: getattr(options, name) for name in names}
    places = {name: f"space.{name}" for name in names}
    return build(ScalePermutedSpace, values, places | {"parts": "space.phases", "base": "baseline"})


def proxy_arch(config: ConfigDict, arch: ScalePermuted) -> ScalePermuted:
    """Return a network at the proxy's widths."""
    options = proxy_options(config)
    names = ("width_scale", "alpha", "endpoint_channels", "repeats")
    return dataclasses.replace(arch, **{name: getattr(options, name) for name in names})


def found_graph(config: ConfigDict, graph: Code) -> ScalePermuted:
    """Return the network of a graph at the baseline's widths, blocks in the graph's order."""
    return graphs.with_graph(baseline(config), graph)


def found_network(config: ConfigDict, graph: Code) -> ScalePermuted:
    """Return the network of a graph at the baseline's widths; of its own graph the baseline."""
    arch = baseline(config)
    if graph == graphs.graph_code(graphs.canonical(arch)):
        return arch
    return found_graph(config, graph)


def proxy_config(config: ConfigDict) -> ConfigDict:
    """Return the config with the proxy's images and recipe in place of the final ones."""
    proxy = ConfigDict(config.to_dict())
    options = proxy_options(config)
    proxy.data.min_size, proxy.data.max_size = options.min_size, options.max_size
    for name in proxy.detector_train:
        proxy.detector_train[name] = proxy.proxy[name]
    return proxy.lock()


def architecture_limits(config: ConfigDict, num_classes: int) -> list[Limit]:
    """Return the limits on networks: those relative to the baseline, and the config's."""
    options, proxy = space_options(config), proxy_config(config)
    canvas = image_size(proxy).canvas(portrait=False)

    def at_proxy(arch):
        return detector_cost(proxy, proxy_arch(config, arch), canvas, num_classes).flops

    reference = at_proxy(baseline(config))
    unit = "multiply-adds in the proxy"
    relative = []
    if options.max_flops_ratio:
        relative.append(Limit(options.max_flops_ratio * reference, unit, at_proxy))
    if options.min_flops_ratio:
        relative.append(Limit(options.min_flops_ratio * reference, unit, at_proxy, is_least=True))
    return [*relative, *limits(config, num_classes)]


def check_architectures(config: ConfigDict) -> None:
    """Raise UserError for options with which no scale-permuted network can be searched."""
    proposal_options(config)
    controller_options(config)
    arch, proxy = baseline(config), proxy_config(config)
    for parts in space_options(config).phases:
        space(config, parts, arch)
    detector(proxy, proxy_arch(config, arch), num_classes=1)
    train_options(config, "proxy")
