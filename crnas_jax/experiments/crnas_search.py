"""The two searches of a config in a trained supernet."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable

import jax
from jaxtyping import PyTree

from crnas_jax.models.build import Detector
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.runtime.workdir import digest
from crnas_jax.search.journal import Journal
from crnas_jax.search.scores import Search
from crnas_jax.search.strategies.build import strategy
from crnas_jax.search.strategies.greedy import complete
from crnas_jax.search.supernet.latency import LatencyMeter
from crnas_jax.search.supernet.scorer import SubnetScorer
from crnas_jax.settings.run import Settings
from crnas_jax.spaces.stages import OperationSpace, StageSpace, limited


@dataclasses.dataclass(frozen=True)
class Searches:
    """What a search needs.

    Attributes:
      settings: of the run.
      sources: splits of the data by name.
      detector: the supernet.
      variables: its trained banks.
      path: of the working folder.
      key: of config and data.
    """

    settings: Settings
    sources: dict
    detector: Detector
    variables: PyTree
    path: pathlib.Path
    key: str

    def stage(self) -> dict:
        """The best allocation.

        Returns:
          {"arch", "score", "flops", "params", "evaluated", "image_passes"}, of the network that is
          trained in the end; with several budgets also `pareto`: for each `budget` the same of its
          best, and whether another of them is better in score or FLOPs and no worse in the other
          (`dominated`).
        """
        space, budget = self.settings.stage_space, self.settings.budget
        allowed = self._allowed(space, space.grids, (1,), self.settings.arch)
        search, budgets = self.of_stages(), self.settings.budgets
        ranked = self._run("stage", allowed, budgets, search)
        found = {**self._of(*ranked[budget][0], self.settings.arch), **self._effort(search)}
        if len(budgets) > 1:
            rows = [
                {"budget": b, **self._of(*ranked[b][0], self.settings.arch)}
                for b in sorted(budgets)
            ]
            found["pareto"] = [{**row, "dominated": _is_dominated(row, rows)} for row in rows]
        return found

    def operations(self, depths: tuple[int, ...]) -> dict:
        """The best operation code of a network with these depths; fields as `stage`."""
        space = self.settings.operation_space(depths)

        def arch_of(code):
            return self.settings.arch(
                depths, tuple(space.dilations[operation] for operation in code)
            )

        grids = tuple((depth,) for depth in depths)
        allowed = self._allowed(space, grids, space.dilations, arch_of)
        greedy = self.settings.config.search.operation_strategy == "greedy"
        search = self.of_operations(depths, greedy)
        ranked = self._run("operation", allowed, (None,), search)
        return {**self._of(*ranked[None][0], arch_of), **self._effort(search)}

    def of_stages(self, repeat: int = 0, name: str = "stage") -> Search:
        """Scores allocations; a `repeat` from 1 on does so anew, on other images for the statistics
        and other mini-batches. `name` keeps searches apart in the journal.
        """
        scorer = self._scorer(self.settings.config.search.bn, repeat)
        return Search(
            scorer, _named(name, repeat), lambda depths, _: self.detector.spec.choice(depths)
        )

    def of_operations(
        self,
        depths: tuple[int, ...],
        greedy: bool,
        repeat: int = 0,
        name: str = "operation",
    ) -> Search:
        """Scores operation codes, for the greedy strategy partial ones; else as `of_stages`."""
        config, space = self.settings.config, self.settings.operation_space(depths)
        # A completion lives for one mini-batch, so statistics are the mini-batch's.
        scorer = self._scorer("batch" if greedy else config.search.bn, repeat)
        seed = config.seed + repeat

        def choice(code, batch):
            return self.detector.spec.choice(depths, complete(space, code, seed, batch))

        def label(codes):
            return f"operation search, block {len(codes[0])} of {space.blocks}"

        return Search(scorer, _named(name, repeat), choice, label if greedy else None)

    def _run(self, level, space, budgets, search):
        config = self.settings.config
        run = strategy(config.search[f"{level}_strategy"], config.search)
        return run(space, budgets, search, config.seed)

    def _of(self, code, score, arch_of):
        arch = arch_of(code)
        cost = self._cost(arch)
        cost = {"flops": cost.flops, "params": cost.params}
        return {"arch": json.loads(arch.to_json()), "score": score, **cost}

    def _effort(self, search):
        journal = search.scorer.journal
        return {
            "evaluated": journal.evaluated(search.name),
            "image_passes": journal.image_passes(search.name),
        }

    def _cost(self, arch):
        return self.settings.cost(arch, len(self.sources["train"].class_names))

    def _allowed(self, space: StageSpace | OperationSpace, grids, dilations, arch_of: Callable):
        """The space within the config's limits on the networks that are trained in the end."""
        limits = self.settings.limits(len(self.sources["train"].class_names))
        most = self.settings.config.search.max_latency
        if most:
            meter = self._latency_meter(grids, dilations)
            limits.append((most, "milliseconds", meter.milliseconds))
        return limited(space, limits, arch_of)

    def _latency_meter(self, grids, dilations):
        arch = self.settings.baseline
        spec = SupernetSpec(arch.family, arch.widths, grids, dilations, "prefix", "shared")
        detector = dataclasses.replace(self.detector, spec=spec)
        canvas = self.settings.size.canvas(portrait=False)
        return LatencyMeter(detector, canvas, self.path / "search" / "latency.json")

    @functools.cached_property
    def _weights_digest(self):
        """Scores depend on the weights: a retrained supernet's are not those in the journal."""
        leaves = (leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(self.variables)))
        return digest(*leaves)

    def _scorer(self, bn, repeat=0):
        journal = Journal(self.path / "journal.jsonl", f"{self.key}-{self._weights_digest}")
        return SubnetScorer(
            self.detector,
            self.variables,
            self.sources["train"],
            self.sources["val"],
            self.settings.score_options(bn, repeat),
            journal,
            self.path / "search",
        )


def _named(name, repeat):
    return f"{name}, repeat {repeat}" if repeat else name


def _is_dominated(row, rows):
    """Whether another row is no worse in score and FLOPs, and better in one."""
    gains = ((o["score"] - row["score"], row["flops"] - o["flops"]) for o in rows)
    return any(min(gain) >= 0 and max(gain) > 0 for gain in gains)
