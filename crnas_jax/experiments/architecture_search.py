"""The search of scale-permuted networks: proposals, each trained on the proxy task."""

import dataclasses
import functools
import json
import math
import statistics
import time
from collections.abc import Callable

import numpy as np

from crnas_jax.analysis.record import JOURNAL_KEY
from crnas_jax.arch.graphs import canonical, graph_code
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.errors import UserError
from crnas_jax.experiments import workers
from crnas_jax.experiments.keys import candidate_seed, key_of, step_key
from crnas_jax.experiments.run import Run, journal_file
from crnas_jax.runtime import activity
from crnas_jax.runtime.files import digest, write_json
from crnas_jax.runtime.step_key import ARCHITECTURE_SEARCH, CANDIDATES
from crnas_jax.search.candidates import ByGraph, Candidates, FailureLimit
from crnas_jax.search.executors.jobs import Jobs
from crnas_jax.search.journal import Journal
from crnas_jax.search.proposals import ProposalFile
from crnas_jax.search.scores import best
from crnas_jax.search.strategies.proposing import (
    RandomProposals,
    RegularizedEvolution,
    run_proposer,
)
from crnas_jax.search.strategies.reinforce import Reinforce
from crnas_jax.search.strategies.successive_halving import (
    num_candidates,
    rung_costs,
    rung_shares,
    successive_halving,
)
from crnas_jax.settings import architectures as settings
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings.step_keys import CANDIDATE_SCORES
from crnas_jax.spaces.constrained import Constrained, limited
from crnas_jax.spaces.scale_permuted import ScalePermutedSpace
from crnas_jax.spaces.space import Code, Space

STEP, SEARCH = ARCHITECTURE_SEARCH, CANDIDATES
# Rows of the ranking in the result, from which finalists are taken.
NUM_RANKED = 100


class CountedLimits:
    """The networks within limits, and how many of the drawn codes they have rejected.

    Attributes:
      space: the space within the limits, whose rejections are counted.
    """

    def __init__(self, space: ScalePermutedSpace, limits: list):
        """Put limits around a space."""
        self._count = 0
        self.space: Space = limited(space, limits, space.decode)
        if isinstance(self.space, Constrained):
            self.space = dataclasses.replace(self.space, on_rejection=self._add)

    def allows(self, code: Code) -> bool:
        """Return whether a code is within the limits, and count it if it is not."""
        return not isinstance(self.space, Constrained) or self.space.allows_drawn(tuple(code))

    def take_count(self) -> int:
        """Return the number of rejected codes since the last call."""
        count, self._count = self._count, 0
        return count

    def _add(self):
        self._count += 1


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
        number = candidate_seed(run, seed)
        memory = options.max_memory
        return workers.task(run, proxy, arch, number, "val", until=share, max_memory=memory)

    def about(graph):
        return {"flops": _cost(run, settings.found_graph(config, graph)).flops}

    stem = digest(base.family, repr(base.stem))
    key = key_of(run, CANDIDATE_SCORES, {"stem": stem})
    fields = {name: value for name, value in key.fields.items() if name != "proxy.seeds"}
    journal = Journal(journal_file(run), dataclasses.replace(key, fields=fields).digest)
    folder = run.path / SEARCH
    numbers = options.seeds, options.kept_candidates
    return Candidates(SEARCH, task_of, folder, journal, jobs, about, show_waiting, *numbers)


def _search(run):
    with workers.jobs(run) as jobs:
        _say_idle(run, jobs)
        phases_of_space = settings.space_options(run.config).phases
        num_seeds = settings.proxy_options(run.config).seeds
        progress = Progress(jobs, num_seeds, len(phases_of_space))
        scores = candidates(run, jobs, progress)
        keys = dict.fromkeys(scores.searches, scores.journal.key)
        write_json(run.path / STEP / JOURNAL_KEY, keys)
        base, phases, found = model_settings.baseline(run.config), [], {}
        for number, parts in enumerate(phases_of_space):
            phase = _Phase(run, number, parts, base, scores, progress)
            if number == 0:
                phase.require_any()
                # How long a candidate takes, and what the seed network reaches.
                scores.finish(graph_code(canonical(base)))
            phases.append(phase.run())
            found |= {
                graph: score
                for graph, score in phases[-1]["scores"].items()
                if not scores.failure(graph)
            }
            if not found:
                problem = "no candidate was trained to the end"
                raise UserError("search", "candidates", problem, "ask for more proposals")
            remedy = "train candidates longer (proxy.epochs)"
            search_settings.require_any_score(run.config, found.values(), "architecture", remedy)
            ((graph, _),) = best(list(found), list(found.values()), 1)
            base = settings.found_graph(run.config, graph)
    return _result(run, found, phases)


def _say_idle(run, jobs):
    options, num_workers = settings.proposal_options(run.config), jobs.num_workers
    at_once = options.in_flight * settings.proxy_options(run.config).seeds
    if options.architecture_strategy != "halving" and num_workers > at_once:
        text = f"{num_workers - at_once} of {num_workers} workers stay idle in the search"
        print(f"{STEP}: {text}: search.in_flight is {options.in_flight}", flush=True)


def _result(run, found, phases):
    ranked = best(list(found), list(found.values()), NUM_RANKED)
    arch = settings.found_network(run.config, ranked[0][0])
    cost = _cost(run, arch)
    return {
        "arch": json.loads(arch.to_json()),
        "score": ranked[0][1],
        "flops": cost.flops,
        "params": cost.params,
        "evaluated": len(set().union(*(phase["graphs"] for phase in phases))),
        "rejected": sum(phase["rejected"] for phase in phases),
        "failed": len(set().union(*(phase["failed"] for phase in phases))),
        "proposals": settings.proposal_options(run.config).evaluations,
        "ranking": [{"code": list(graph), "score": score} for graph, score in ranked],
    }


def _cost(run, arch):
    """Return the cost of the detector with a backbone, on the final images."""
    canvas = data_settings.image_size(run.config).canvas(portrait=False)
    return model_settings.detector_cost(run.config, arch, canvas, run.num_classes)


class Progress:
    """Says how far a search is, and which candidate it waits for."""

    def __init__(self, jobs: Jobs, num_seeds: int, num_phases: int):
        """Take the jobs, the number of jobs of each candidate, and that of equal phases."""
        self._jobs, self._num_seeds, self._num_phases = jobs, num_seeds, num_phases
        self.begin(0, [1.0])

    def begin(self, phase: int, costs: list[float]) -> None:
        """Begin a phase with what each of its results costs, in their order."""
        self._phase, self._costs, self._done = phase, costs, 0
        self._start, self._ended = time.monotonic(), self._jobs.num_ended

    def take_in(self, done: int) -> None:
        """Show that a number of results are taken in."""
        self._done = done
        self._show()

    def __call__(self, waiting_for: str) -> None:
        """Show which candidate the search waits for: results are taken in in order."""
        self._show(f", waits for {waiting_for}")

    def _show(self, about=""):
        left, ended = None, (self._jobs.num_ended - self._ended) / self._num_seeds
        if ended:  # what was there before took no time
            latest = self._costs[max(self._done - math.ceil(ended), 0) : self._done]
            spent = ended * statistics.mean(latest or self._costs[:1])
            later = (self._num_phases - self._phase - 1) * sum(self._costs)
            left = (time.monotonic() - self._start) / spent
            left *= sum(self._costs[self._done :]) + later
        done = self._phase * len(self._costs) + self._done
        total = self._num_phases * len(self._costs)
        states = list(self._jobs.states().values())
        note = f"{states.count('running')} running, {states.count('waiting')} not begun{about}"
        activity.show(
            done == total,
            name=STEP,
            unit="candidate",
            done=done,
            total=total,
            seconds_left=left,
            note=note,
        )


@dataclasses.dataclass(frozen=True)
class _Phase:
    """The search of some parts of the space.

    Attributes:
      owner: the run.
      number: number of the phase.
      parts: what is searched.
      base: the network whose blocks are changed.
      candidates: the scores.
      progress: shows how far it is.
    """

    owner: Run
    number: int
    parts: tuple[str, ...]
    base: ScalePermuted
    candidates: Candidates
    progress: Progress

    def run(self) -> dict:
        """Search.

        Returns:
          `scores` of the graphs that were trained to the end of the schedule; `graphs`, all that
          were trained; `failed`, those that scored 0 for a failure; `rejected`, how many codes were
          drawn outside the limits.
        """
        options = settings.proposal_options(self.owner.config)
        if options.architecture_strategy == "halving":
            return self._halve(options)
        key = digest(step_key(self.owner, STEP).digest, json.dumps(self.parts), self.base.to_json())
        file = self.owner.path / STEP / f"proposals{self.number or ''}.jsonl"
        record = ProposalFile(file, key, self._graph_of, self._limits.take_count)
        failures = FailureLimit()
        self.progress.begin(self.number, options.evaluations * [1.0])

        def after(index):
            for known in range(len(failures), index + 1):  # also those before a resumption
                failures.add(self.candidates.failure(record.graph(record.code(known))))
            self.progress.take_in(index + 1)

        results = run_proposer(
            self._proposer(options),
            ByGraph(self.candidates, record.graph),
            options.evaluations,
            options.in_flight,
            self._seed,
            record,
            after,
        )
        values = {record.graph(code): score for code, score in results}
        failed = {graph for graph in values if self.candidates.failure(graph)}
        return {
            "scores": values,
            "graphs": set(values),
            "failed": failed,
            "rejected": record.num_rejected,
        }

    def require_any(self) -> None:
        """Raise UserError where the limits allow next to nothing; nothing is counted."""
        self._limits.space.sample(np.random.default_rng(self._seed))
        self._limits.take_count()

    def _halve(self, options):
        failures, shares = FailureLimit(), rung_shares()
        space, first = self._limits.space, num_candidates(options.evaluations)
        if space.enumerable:
            first = min(first, space.count())
        self.progress.begin(self.number, rung_costs(first))

        def after(failure):
            failures.add(failure)
            self.progress.take_in(len(failures))

        scores = ByGraph(self.candidates, functools.lru_cache(self._graph_of), after)
        ranked = successive_halving(space, scores, self._seed, options.evaluations)
        graphs = {scores.graph_of(code) for code, _ in ranked}
        rungs = [dataclasses.replace(self.candidates, share=share) for share in shares]
        return {
            "scores": {g: value for g in graphs if (value := rungs[-1].score(g)) is not None},
            "graphs": graphs,
            "failed": {g for g in graphs if any(rung.failure(g) for rung in rungs)},
            "rejected": self._limits.take_count(),
        }

    @property
    def _seed(self):
        return self.owner.options.seed + self.number

    @functools.cached_property
    def _space(self):
        return settings.space(self.owner.config, self.parts, self.base)

    @functools.cached_property
    def _limits(self):
        limits = settings.architecture_limits(self.owner.config, self.owner.num_classes)
        return CountedLimits(self._space, limits)

    def _graph_of(self, code):
        return graph_of(self._space, code)

    def _proposer(self, options):
        space = self._limits.space
        if options.architecture_strategy == "random":
            return RandomProposals(space)
        if options.architecture_strategy == "evolution":
            return RegularizedEvolution(space, options.population, options.parents)
        controller = settings.controller_options(self.owner.config)
        return Reinforce(self._space, self._limits.allows, controller, self._seed)
