"""The search of scale-permuted networks: proposals, each trained on the proxy task."""

import dataclasses
import json
import time
from collections.abc import Callable

from crnas_jax.analysis.record import JOURNAL_KEY
from crnas_jax.arch.graphs import canonical, graph_code
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.errors import UserError
from crnas_jax.experiments import workers
from crnas_jax.experiments.keys import key_of, step_key
from crnas_jax.experiments.run import Run, journal_file
from crnas_jax.runtime import activity
from crnas_jax.runtime.files import digest, write_json
from crnas_jax.runtime.step_key import ARCHITECTURE_SEARCH, CANDIDATES
from crnas_jax.search.candidates import ByGraph, Candidates, FailureLimit, ProposalFile
from crnas_jax.search.executors.jobs import Jobs
from crnas_jax.search.journal import Journal
from crnas_jax.search.scores import best
from crnas_jax.search.strategies.proposing import (
    RandomProposals,
    RegularizedEvolution,
    run_proposer,
)
from crnas_jax.search.strategies.reinforce import Reinforce
from crnas_jax.search.strategies.successive_halving import successive_halving
from crnas_jax.settings import architectures as settings
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings.step_keys import CANDIDATE_SCORES
from crnas_jax.spaces.constrained import Constrained, limited
from crnas_jax.spaces.scale_permuted import ScalePermutedSpace
from crnas_jax.spaces.space import Code, Space

STEP, SEARCH = ARCHITECTURE_SEARCH, CANDIDATES
# What the seed network took on the proxy task.
CALIBRATION = f"{STEP}/calibration.json"
# Candidates have seeds of their own, beside those of finalists and last rung (`keys`).
_CANDIDATES_SEED, _SEED_STRIDE = 250, 1000
# Rows of the ranking in the result.
_RANKED = 100


class CountedLimits:
    """The networks within limits, and how many codes they have rejected.

    Attributes:
      space: the space within the limits, whose rejections are counted.
    """

    def __init__(self, space: ScalePermutedSpace, limits: list):
        """Put limits around a space."""
        self._count = 0
        within = limited(space, limits, space.decode)
        self._allows = within.allows if isinstance(within, Constrained) else None
        self.space: Space = space
        if self._allows is not None:
            self.space = Constrained(space, self.allows, within.description)

    def allows(self, code: Code) -> bool:
        """Return whether a code is within the limits, and count it if it is not."""
        is_allowed = self._allows is None or self._allows(tuple(code))
        self._count += not is_allowed
        return is_allowed

    def take_count(self) -> int:
        """Return the number of rejected codes since the last call."""
        count, self._count = self._count, 0
        return count


def search_architecture(run: Run) -> dict:
    """Search the space around the baseline; go on where more proposals are asked for than before.

    Returns:
      {"arch", "score", "flops", "params", "evaluated", "rejected", "failed", "proposals",
      "ranking"}: the best network at the baseline's widths, its score on the proxy task, its cost;
      numbers of trained candidates, of codes that limits have rejected, of candidates that scored 0
      for a failure, of proposals; graphs and scores, best first.
    """
    key, wanted = step_key(run, STEP), settings.proposal_options(run.config).evaluations
    finished = run.workdir.resume(STEP, key)
    if finished is not None:
        if finished["proposals"] == wanted:
            return finished
        run.workdir.reopen(STEP)
    return run.workdir.step(STEP, key, lambda: _search(run))


def graph_of(space: ScalePermutedSpace, code: Code) -> Code:
    """Return the graph of a code's network."""
    return graph_code(canonical(space.decode(code)))


def candidates(
    run: Run, jobs: Jobs, show_waiting: Callable[[str], None] = lambda job: None
) -> Candidates:
    """Return the candidates of a run, which run on `jobs`; see `Candidates`."""
    config, options = run.config, settings.proxy_options(run.config)
    base, proxy = model_settings.baseline(config), settings.proxy_config(config)

    def task_of(graph, seed, share):
        arch = settings.proxy_arch(config, settings.found_graph(config, graph))
        number = run.options.seed + _CANDIDATES_SEED + _SEED_STRIDE * seed
        memory = options.max_memory
        return workers.task(run, proxy, arch, number, "val", until=share, max_memory=memory)

    canvas = data_settings.image_size(config).canvas(portrait=False)

    def about(graph):
        arch = settings.found_graph(config, graph)
        return {"flops": model_settings.detector_cost(config, arch, canvas, run.num_classes).flops}

    stem = digest(base.family, repr(base.stem))
    key = key_of(run, CANDIDATE_SCORES, {"stem": stem})
    fields = {name: value for name, value in key.fields.items() if name != "proxy.seeds"}
    journal = Journal(journal_file(run), dataclasses.replace(key, fields=fields).digest)
    folder = run.path / SEARCH
    numbers = options.seeds, options.kept_candidates
    return Candidates(SEARCH, task_of, folder, journal, jobs, about, show_waiting, *numbers)


def _search(run):
    with workers.jobs(run) as jobs:
        progress = Progress(jobs, settings.proposal_options(run.config).evaluations)
        scores = candidates(run, jobs, progress)
        keys = dict.fromkeys(scores.searches, scores.journal.key)
        write_json(run.path / STEP / JOURNAL_KEY, keys)
        _calibrate(run, scores)
        base, phases, found = model_settings.baseline(run.config), [], {}
        for number, parts in enumerate(settings.space_options(run.config).phases):
            phase = _Phase(run, number, parts, base, scores, progress)
            phases.append(phase.run())
            found |= phases[-1]["scores"]
            if not found:
                problem = "no candidate was scored"
                raise UserError("search", "candidates", problem, "ask for more proposals")
            ((graph, _),) = best(list(found), list(found.values()), 1)
            base = settings.found_graph(run.config, graph)
    return _result(run, scores, found, phases)


def _calibrate(run, scores):
    """Train the seed network on the proxy task: how long a candidate takes, and what it reaches."""
    graph = graph_code(canonical(model_settings.baseline(run.config)))
    scores.finish(graph)
    details = scores.details(graph)
    if details and not (run.path / CALIBRATION).exists():
        write_json(run.path / CALIBRATION, details)


def _result(run, scores, found, phases):
    ranked = best(list(found), list(found.values()), _RANKED)
    arch = settings.found_network(run.config, ranked[0][0])
    canvas = data_settings.image_size(run.config).canvas(portrait=False)
    cost = model_settings.detector_cost(run.config, arch, canvas, run.num_classes)
    return {
        "arch": json.loads(arch.to_json()),
        "score": ranked[0][1],
        "flops": cost.flops,
        "params": cost.params,
        "evaluated": len(found),
        "rejected": sum(phase["rejected"] for phase in phases),
        "failed": sum(bool(scores.failure(graph)) for graph in found),
        "proposals": settings.proposal_options(run.config).evaluations,
        "ranking": [{"code": list(graph), "score": score} for graph, score in ranked],
    }


class Progress:
    """Says how far a search is, and which candidate it waits for."""

    def __init__(self, jobs: Jobs, total: int):
        """Take the jobs, and the number of proposals of each phase."""
        self._jobs, self._total = jobs, total
        self.begin()

    def begin(self) -> None:
        """Begin a phase."""
        self._done, self._known, self._start = 0, None, time.monotonic()

    def take_in(self, index: int) -> None:
        """Show that the results up to `index` are taken in."""
        self._done = index + 1
        if self._known is None:  # what was there before takes no time
            self._known, self._start = self._done, time.monotonic()
        self._show()

    def __call__(self, waiting_for: str) -> None:
        """Show which candidate the search waits for: results are taken in in order."""
        self._show(f", waits for {waiting_for}")

    def _show(self, about=""):
        left, new = None, self._done - (self._known or 0)
        if new:
            left = (time.monotonic() - self._start) / new * (self._total - self._done)
        states = list(self._jobs.states().values())
        note = f"{states.count('running')} running, {states.count('waiting')} not begun{about}"
        activity.show(
            self._done == self._total,
            name=STEP,
            unit="candidate",
            done=self._done,
            total=self._total,
            seconds_left=left,
            note=note,
        )


@dataclasses.dataclass(frozen=True)
class _Phase:
    """The search of some parts of the space.

    Attributes:
      run_: the run.
      number: number of the phase.
      parts: what is searched.
      base: the network whose blocks are changed.
      candidates: the scores.
      progress: shows how far it is.
    """

    run_: Run
    number: int
    parts: tuple[str, ...]
    base: ScalePermuted
    candidates: Candidates
    progress: Progress

    def run(self) -> dict:
        """Return the `scores` of this phase's graphs, and how many codes were `rejected`."""
        self.progress.begin()
        config, seed = self.run_.config, self.run_.options.seed
        options = settings.proposal_options(config)
        space = settings.space(config, self.parts, self.base)
        limits = CountedLimits(space, settings.architecture_limits(config, self.run_.num_classes))
        key = digest(step_key(self.run_, STEP).digest, json.dumps(self.parts), self.base.to_json())
        file = self.run_.path / STEP / f"proposals{self.number or ''}.jsonl"
        record = ProposalFile(file, key, lambda code: graph_of(space, code), limits.take_count)
        failures = FailureLimit()
        scores = ByGraph(self.candidates, record.graph, failures)
        seed_of_phase = seed + self.number
        if options.architecture_strategy == "halving":
            ranked = successive_halving(limits.space, scores, seed_of_phase, options.evaluations)
            graphs = [record.graph(code) for code, _ in ranked]
            return {
                "scores": {g: v for g in graphs if (v := self.candidates.score(g)) is not None},
                "rejected": limits.take_count(),
            }

        def after(index):
            for known in range(len(failures), index + 1):  # also those before a resumption
                failures.add(self.candidates.failure(record.graph(record.code(known))))
            self.progress.take_in(index)

        results = run_proposer(
            self._proposer(options, space, limits),
            scores,
            options.evaluations,
            options.in_flight,
            seed_of_phase,
            record,
            after,
        )
        values = {record.graph(code): score for code, score in results}
        return {"scores": values, "rejected": record.num_rejected}

    def _proposer(self, options, space, limits):
        if options.architecture_strategy == "random":
            return RandomProposals(limits.space)
        if options.architecture_strategy == "evolution":
            return RegularizedEvolution(limits.space, options.population, options.parents)
        controller = settings.controller_options(self.run_.config)
        return Reinforce(space, limits.allows, controller, self.run_.options.seed + self.number)
