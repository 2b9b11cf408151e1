"""What follows the searches: finalists trained alone, the last rung, and the decision.

1. The best allocations of the stage search and the baseline's are trained with a short schedule;
   the best on `val` is the allocation of the operation supernet.
2. The best codes of the operation search and the code without dilation, likewise.
3. The found network, its stage-only form and the baseline are trained with the full schedule and
   several seeds. `val` decides which is returned; `test` is read after that.
"""

import dataclasses
import functools
import shutil
from collections.abc import Sequence

import numpy as np

from crnas_jax.arch import Architecture
from crnas_jax.experiments import keys, steps, workers
from crnas_jax.experiments.run import Run, journal_file
from crnas_jax.runtime import ownership, team
from crnas_jax.runtime.step_key import FINALISTS, seed_step
from crnas_jax.search import refine
from crnas_jax.search.journal import Journal
from crnas_jax.search.trained import TrainedScores
from crnas_jax.settings import run as run_settings
from crnas_jax.settings.run import RETURNED


def choose(run: Run, choice: str) -> Architecture:
    """Train the candidates of a choice that are not trained yet; return the chosen network.

    Args:
      run: the run, in which the search before the choice is finished.
      choice: one of `step_keys.CHOICES`.
    """
    archs = keys.candidates(run, choice)
    if len(archs) > 1:
        by_code = {keys.network_code(arch): arch for arch in archs}

        def detections_of(code):
            arch = by_code[code]
            step = keys.network_step(FINALISTS, arch)
            detector = steps.train_network(run, step, arch)
            return steps.detections(run, step, detector, "val")

        def prepare(codes):
            steps_of = [(keys.network_step(FINALISTS, by_code[c]), by_code[c]) for c in codes]
            workers.train_ahead(run, steps_of, "val")

        scores = _scores(run, FINALISTS, FINALISTS, "val", detections_of, prepare)
        scores.score(list(by_code))
    return keys.chosen(run, choice)


@dataclasses.dataclass(frozen=True)
class LastRung:
    """The networks between which is decided, each trained with every seed.

    Attributes:
      run: the run, in which both choices are made.
      archs: the compared networks by name.
    """

    run: Run
    archs: dict[str, Architecture]

    @functools.cached_property
    def owners(self) -> dict[str, str]:
        """By name the compared network whose training serves it: some coincide."""
        return keys.owners(self.archs)

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of the distinct networks, the baseline first."""
        return list(dict.fromkeys(self.owners.values()))

    @property
    def num_seeds(self) -> int:
        """Trainings of each network; one where there is nothing to compare."""
        return keys.num_seeds(self.run, self.archs)

    def train(self) -> None:
        """Train what is not trained yet: every network with the first seed, then with the next."""
        split = "val" if "val" in self.run.sources else "test"
        workers.train_ahead(self.run, self._steps, split)
        for seed in range(self.num_seeds):
            for name in self.names:
                self._train(name, seed)

    @property
    def _steps(self):
        """Steps of all trainings and their networks, in the order of `train`."""
        seeds = range(self.num_seeds)
        return [(seed_step(name, seed), self.archs[name]) for seed in seeds for name in self.names]

    def metrics(self, name: str, split: str) -> list[dict]:
        """Return the metrics of a network on a split, one for each seed."""
        workers.detect_ahead(self.run, self._steps, split)
        return [self._evaluate(name, seed, split) for seed in range(self.num_seeds)]

    def ap(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return AP [networks, seeds] and mean AP on resampled images [networks, samples]."""
        if split not in self._arrays:
            self._arrays[split] = self._measure(split)
        return self._arrays[split]

    @functools.cached_property
    def _arrays(self):
        return {}

    def _measure(self, split):
        codes = [keys.network_code(self.archs[name]) for name in self.names]
        scores = [self._scores(seed, split) for seed in range(self.num_seeds)]
        ap = [seed_scores.score(codes) for seed_scores in scores]
        draws = [seed_scores.draws(codes) for seed_scores in scores]
        return np.transpose(ap), np.mean(draws, axis=0)

    @functools.cached_property
    def intervals(self) -> dict[str, dict]:
        """By network 95 % intervals of its metrics on `test`, over images and seeds.

        Those of `errors.Diagnosis.draws`, `per_class` by class name; None where nothing is to be
        detected. Of several hosts on the primary, empty on the others.
        """
        seeds = range(self.num_seeds)
        metrics = [self.metrics(name, "test") for name in self.names]
        draws = [
            [steps.diagnosis(self.run, *self._train(name, seed), "test") for seed in seeds]
            for name in self.names
        ]
        if not team.is_primary():
            return {}
        ends = {
            metric: _ends(
                [[row[metric] for row in rows] for rows in metrics],
                [[row[metric] for row in rows] for rows in draws],
            )
            for metric in draws[0][0]
            if metric != "per_class"
        }
        of_classes = {
            name: _ends(
                [[row["per_class"][name] for row in rows] for rows in metrics],
                [[row["per_class"][:, label] for row in rows] for rows in draws],
            )
            for label, name in enumerate(metrics[0][0]["per_class"])
        }
        return {
            name: {metric: pairs[row] for metric, pairs in ends.items()}
            | {"per_class": {label: pairs[row] for label, pairs in of_classes.items()}}
            for name, row in zip(self.archs, map(self._row, self.archs), strict=True)
        }

    def _row(self, name):
        return self.names.index(self.owners[name])

    def difference(self, name: str, split: str) -> refine.Difference:
        """Compare a network with the baseline on a split."""
        return refine.difference(*self.ap(split), self._row(name))

    def decide(self) -> refine.Decision:
        """Decide on `val`; without finalists the found network is returned, as in the paper."""
        options = run_settings.refine_options(self.run.config)
        if not options.finalists:
            reason = "no finalists were asked for (refine.finalists = 0), as in the paper"
            return refine.Decision("searched", "searched", None, reason)
        arrays = self.ap("val") if len(self.names) > 1 else (np.zeros((1, 1)), np.zeros((1, 1)))
        decision = refine.decide(self.names, *arrays, options.confidence)
        excess = keys.recorded_excess(self.run)
        if decision.network == refine.BASELINE and excess:
            decision = dataclasses.replace(decision, reason=f"{excess}; {decision.reason}")
        return decision

    def _scores(self, seed, split):
        by_code = {keys.network_code(self.archs[name]): name for name in self.names}

        def detections_of(code):
            name = by_code[code]
            step, detector = self._train(name, seed)
            return steps.detections(self.run, step, detector, split)

        name = f"last rung, seed {seed}, {split}"
        return _scores(self.run, name, refine.BASELINE, split, detections_of)

    def _train(self, name, seed):
        step = seed_step(name, seed)
        steps.pretrain_first(self.run, step, self.archs[name])
        return step, steps.train_network(self.run, step, self.archs[name])

    def _evaluate(self, name, seed, split):
        step, detector = self._train(self.owners[name], seed)
        return steps.evaluate(self.run, step, detector, split)


def decide(run: Run) -> tuple[LastRung, refine.Decision]:
    """Train the compared networks, once all are found, and decide; `returned` is written.

    Returns:
      The rung, in which all networks are trained, and the decision on `val`.
    """
    rung = LastRung(run, keys.compared(run))
    rung.train()
    decision = rung.decide()
    publish(run, decision.network)
    return rung, decision


def publish(run: Run, network: str) -> None:
    """Copy a compared network, trained with the run's seed, to `<workdir>/returned`."""
    team.decide(_publish, run, network)


def _publish(run, network):
    source, target = run.path / keys.owner(run, network), run.path / RETURNED
    digest_file = "variables.sha256"
    if target.exists() and all(
        (target / name).read_bytes() == (source / name).read_bytes()
        for name in (digest_file, "detector.json")
    ):
        return
    ownership.require(target)
    # Folders are whole at any moment: a kill leaves the old one, none, or the new one.
    partial, old = (run.path / f".{RETURNED}_{kind}" for kind in ("partial", "old"))
    for folder in (partial, old):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir()
    for name in ("variables", digest_file, "detector.json"):
        path = source / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, partial / name)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def mean_metrics(rows: Sequence[dict]) -> dict:
    """Return the means of metrics over seeds, whatever their nesting; None where one has none."""
    first = rows[0]
    return {name: _mean([row[name] for row in rows]) for name in first}


def _mean(values):
    if isinstance(values[0], dict):
        return mean_metrics(values)
    if any(value is None for value in values):
        return None
    return float(np.mean(values)) if isinstance(values[0], float) else values[0]


def _ends(values, draws):
    """Return the interval of a metric of each network, a list of pairs; None for NaN."""
    values = np.array(values, float)  # None becomes NaN
    pairs = refine.intervals(values, np.mean(draws, axis=1)).tolist()
    return [pair if np.isfinite(pair).all() else None for pair in pairs]


def _scores(run, name, row, split, detections_of, prepare=lambda codes: None):
    return TrainedScores(
        name,
        detections_of,
        run.sources[split],
        Journal(journal_file(run), keys.scores_key(run, row, split)),
        run.options.bootstrap,
        run.options.seed,
        prepare,
    )
