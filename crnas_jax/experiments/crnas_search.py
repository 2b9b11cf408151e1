"""The two searches of CR-NAS in trained supernets."""

import dataclasses
import functools
import json
from collections.abc import Callable

import jax
from jaxtyping import PyTree

from crnas_jax.analysis.record import JOURNAL_KEY
from crnas_jax.arch import Architecture
from crnas_jax.experiments.keys import key_of
from crnas_jax.experiments.limits import baseline_excess, limits
from crnas_jax.experiments.run import Run, journal_file
from crnas_jax.experiments.steps import load_trained
from crnas_jax.models.backbones.build import AnySupernet
from crnas_jax.models.build import Detector
from crnas_jax.runtime import team
from crnas_jax.runtime.files import digest, write_json
from crnas_jax.search.journal import Journal
from crnas_jax.search.scores import best
from crnas_jax.search.strategies.greedy import complete
from crnas_jax.search.supernet.scorer import SubnetScorer
from crnas_jax.search.supernet.scores import SupernetScores
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings.step_keys import SCORES
from crnas_jax.settings.supernets import operation_space
from crnas_jax.spaces.constrained import limited


@dataclasses.dataclass(frozen=True)
class TrainedSupernet:
    """A supernet that is ready to be searched.

    Attributes:
      run: the run that it belongs to.
      network: its name, one of `NETWORKS`.
      detector: the supernet.
    """

    run: Run
    network: str
    detector: Detector

    @functools.cached_property
    def variables(self) -> PyTree:
        """The trained banks."""
        return load_trained(self.run, self.network, self.detector)

    @property
    def spec(self) -> AnySupernet:
        """What the supernet holds."""
        return self.detector.spec

    @property
    def arch(self) -> Architecture:
        """The deepest allocation; an operation supernet has one network, here without dilation."""
        return self.detector.backbone.arch

    def stage_scores(self, repeat: int = 0, name: str = "stage") -> SupernetScores:
        """Return scores of allocations.

        Args:
          repeat: from 1 on, score anew with other images for the statistics and other mini-batches.
          name: name of the search in the journal.
        """
        scorer = self._scorer(search_settings.search_options(self.run.config).bn, repeat, "(1,)")
        return SupernetScores(
            scorer, _repeat_name(name, repeat), lambda depths, _: self.spec.choice(depths)
        )

    def operation_scores(
        self, partial: bool, repeat: int = 0, name: str = "operation"
    ) -> SupernetScores:
        """Return scores of operation codes.

        Args:
          partial: whether codes are beginnings of codes, which are completed at random.
          repeat: see `stage_scores`.
          name: see `stage_scores`.
        """
        config, arch = self.run.config, self.arch
        space = operation_space(config, arch)
        # A completion lives for one mini-batch, so statistics are the mini-batch's.
        bn = "batch" if partial else search_settings.search_options(config).bn
        seed = self.run.options.seed + repeat

        def choice_of(code, batch):
            full = complete(space, code, seed, batch)
            return self.spec.choice_of(model_settings.dilated(arch, space.dilations_of(full)))

        def label(codes):
            return f"operation search, block {len(codes[0])} of {space.num_blocks}"

        return SupernetScores(
            self._scorer(bn, repeat, f"{space.dilations} {space.tie}"),
            _repeat_name(name, repeat),
            choice_of,
            label if partial else None,
        )

    @functools.cached_property
    def _weights_digest(self):
        """Scores depend on the weights: a retrained supernet's are not those in the journal."""
        leaves = (leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(self.variables)))
        return digest(*leaves)

    def _scorer(self, bn, repeat, dilations):
        run = self.run
        inputs = {"weights": self._weights_digest, "bn": bn, "dilations": dilations}
        journal = Journal(journal_file(run), key_of(run, SCORES, inputs).digest)
        return SubnetScorer(
            self.detector,
            self.variables,
            run.sources["train"],
            run.sources["val"],
            search_settings.score_options(run.config, bn, repeat),
            journal,
            run.path / "search",
        )


def search_allocation(supernet: TrainedSupernet) -> dict:
    """Search the allocation of every budget.

    Returns:
      {"arch", "score", "flops", "params", "evaluated", "image_passes"} for the run's budget, at the
      widths that are trained in the end, `ranking`, codes and scores, best first, and
      `baseline_excess`, what keeps the baseline out of the search (limits, cost); with several
      budgets also `pareto`: for each `budget` the same fields for its best network, and whether
      another row is better in score or FLOPs and no worse in the other (`dominated`).
    """
    run = supernet.run
    spaces = search_settings.limited_stages(run.config, limits(run, supernet.detector))
    scores = supernet.stage_scores()
    _note_scores(run, "stage", scores)
    strategy = search_settings.search_strategy(run.config, "stage")
    ranked = strategy.run(list(spaces.values()), scores)
    for ranking in ranked:
        _require_any_score(run, ranking, "stage")

    def arch_of(depths):
        return model_settings.found_arch(run.config, depths)

    found = [_describe(run, *ranking[0], arch_of) for ranking in ranked]
    result = {**found[0], **scores.effort(), "ranking": _ranking(ranked[0])}
    result["baseline_excess"] = baseline_excess(run)
    if len(spaces) > 1:
        rows = [{"budget": amount, **row} for amount, row in zip(spaces, found, strict=True)]
        rows = sorted(rows, key=lambda row: row["budget"])
        result["pareto"] = [{**row, "dominated": _is_dominated(row, rows)} for row in rows]
    return result


def search_dilations(supernet: TrainedSupernet) -> dict:
    """Search the operation code of the supernet's allocation; fields as `search_allocation`."""
    run, arch = supernet.run, supernet.arch
    if run_settings.has_stages(run.config):  # at the widths that are trained in the end
        arch = model_settings.found_arch(run.config, arch.depths)
    space = operation_space(run.config, arch)

    def arch_of(code):
        return model_settings.dilated(arch, space.dilations_of(code))

    strategy = search_settings.search_strategy(run.config, "operation")
    scores = supernet.operation_scores(strategy.scores_partial_codes)
    _note_scores(run, "operation", scores)
    within = limited(space, limits(run, supernet.detector), arch_of)
    (ranking,) = strategy.run([within], scores)
    effort = scores.effort()
    if search_settings.search_options(run.config).rescore:
        codes = [code for code, _ in ranking[: search_settings.strategy_options(run.config).beam]]
        codes = list(dict.fromkeys([*codes, *([space.ones] if space.ones else [])]))
        if strategy.scores_partial_codes:
            # Their scores are of the mini-batches' statistics and of the completions of the time.
            scores = supernet.operation_scores(partial=False, name="operation, last codes")
        else:
            effort = dict.fromkeys(effort, 0)  # in that of the same scores
        ranking = best(codes, scores.score(codes))
        effort = {name: count + effort[name] for name, count in scores.effort().items()}
    _require_any_score(run, ranking, "operation")
    return {**_describe(run, *ranking[0], arch_of), **effort, "ranking": _ranking(ranking)}


def _note_scores(run, level, scores):
    """Say in the search's folder which lines of the journal are its own."""
    team.decide(write_json, run.path / f"{level}_search" / JOURNAL_KEY, {scores.name: scores.key})


def _ranking(ranked):
    return [{"code": list(code), "score": score} for code, score in ranked]


def _describe(run: Run, code, score: float, arch_of: Callable) -> dict:
    arch = arch_of(code)
    canvas = data_settings.image_size(run.config).canvas(portrait=False)
    cost = model_settings.detector_cost(run.config, arch, canvas, run.num_classes)
    return {
        "arch": json.loads(arch.to_json()),
        "score": score,
        "flops": cost.flops,
        "params": cost.params,
    }


def require_reachable(run: Run, detector: Detector) -> None:
    """Raise UserError unless a network is within the limits that are measured.

    Call it before the supernet is trained for days. Measurements are kept.

    Args:
      run: the run.
      detector: the supernet of the first search.
    """
    if search_settings.search_options(run.config).max_latency:
        search_settings.require_reachable(run.config, limits(run, detector))


def _require_any_score(run, ranking, level):
    scores = (score for _, score in ranking)
    remedy = f"train the {level} supernet longer ({level}_train)"
    search_settings.require_any_score(run.config, scores, level, remedy)


def _repeat_name(name, repeat):
    return f"{name}, repeat {repeat}" if repeat else name


def _is_dominated(row, rows):
    """Return whether another row is no worse in score and FLOPs, and better in one."""
    gains = ((other["score"] - row["score"], row["flops"] - other["flops"]) for other in rows)
    return any(min(gain) >= 0 and max(gain) > 0 for gain in gains)
