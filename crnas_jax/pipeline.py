"""The whole procedure, step by step; a step finished in the working folder is not repeated.

supernet of allocations -> stage search -> supernet of dilations -> operation search -> the found
network and the baseline trained under one recipe -> both evaluated on the test split.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from functools import partial

import jax

from crnas_jax.analysis import report
from crnas_jax.arch import Arch
from crnas_jax.checkpoint import load_variables, save_variables
from crnas_jax.data.coco import category_entries
from crnas_jax.errors import UserError
from crnas_jax.evaluation.classification import accuracy
from crnas_jax.evaluation.coco import CocoEvaluator, paired_bootstrap
from crnas_jax.evaluation.detect import detect, metrics
from crnas_jax.export import (
    VARIABLES,
    load_weights,
    require_weights,
    save_detector,
    save_supernet,
)
from crnas_jax.models.banks import SupernetSpec
from crnas_jax.models.build import Detector, Model
from crnas_jax.models.transfer import fill
from crnas_jax.search.journal import Journal
from crnas_jax.search.operation_search import complete, operation_search
from crnas_jax.search.scoring import SubnetScorer
from crnas_jax.search.stage_search import stage_search
from crnas_jax.settings import COMPARED, NETWORKS, RECIPE_OF, Settings
from crnas_jax.training.loop import train
from crnas_jax.training.step import sample_choice
from crnas_jax.workdir import FORMAT, Workdir, digest, read_json, write_json


@dataclasses.dataclass
class Pipeline:
    """The procedure of one config in one working folder.

    Every step is a method that runs what it needs, writes what it found to
    `<workdir>/<step>/result.json` and, called again, returns what is written there.

    Raises:
      UserError: on creation, for a config, data or folder with which the run cannot work.
    """

    settings: Settings
    path: pathlib.Path
    check: Callable[[Settings], None] | None = None  # of what is to be done, before anything is

    def __post_init__(self):
        self.settings.validate()
        if self.check is not None:
            self.check(self.settings)
        self._sources = self.settings.sources()
        self._images = self.settings.classification_sources()
        for network, start in self.settings.config.initial.items():
            if start:
                require_weights(start, f"config.initial.{network}")
        digests = [one.digest for one in (*self._sources.values(), *self._images.values())]
        self._hash = digest(self.settings.hash, *digests)
        self._workdir = Workdir(self.path)
        self._workdir.claim(self.settings.config.to_dict(), self._hash)
        Journal(self.path / "journal.jsonl", self._hash)  # a damaged one is refused now

    @property
    def classes(self) -> int:
        """Number of object classes."""
        return len(self._sources["train"].class_names)

    def plan(self) -> str:
        """What will be done, for people."""
        return report.plan(self.settings, self._sources, self.path)

    def spec(self, network: str) -> Arch | SupernetSpec:
        """The backbone of one of `NETWORKS`; runs the searches it comes from."""
        if network == "stage_supernet":
            return self.settings.stage_supernet()
        if network == "operation_supernet":
            return self.settings.operation_supernet(self._depths())
        if network == "baseline":
            return self.settings.baseline
        if network == "searched":
            return Arch.from_json(json.dumps(self.search_operations()["arch"]))
        raise UserError(
            "command line", "network", f"{network!r} is unknown", f"use one of {NETWORKS}"
        )

    def pretrain(self, network: str) -> dict:
        """Trains one of `NETWORKS` on classification; {"top1", "top5", "seconds"}."""
        self.settings.require_pretraining(network)
        name = f"{network}/pretrain"
        sources, settings = self._images, self.settings
        model = settings.classifier(self.spec(network), len(sources["train"].class_names))

        def choice_of(index):
            return sample_choice(model, settings.config.seed, index)

        def run():
            rows, start = settings.classification_rows, settings.config.initial[network]
            variables = self._fit(model, sources["train"], rows, "pretrain", name, start)
            _save(self.path / name, model, variables)
            found = accuracy(
                model,
                variables,
                sources["val"],
                settings.config.pretrain.data.size,
                settings.config.search.batch_size,
                choice_of,
                settings.devices,
            )
            print(f"{name}: top-1 {found['top1']:.3f}, top-5 {found['top5']:.3f}", flush=True)
            return found

        return self._workdir.step(name, run)

    def train(self, network: str) -> Detector:
        """Trains one of `NETWORKS` on detection, after classification where the config says so.

        Returns its description; the weights are in `<workdir>/<network>/variables`.
        """
        settings = self.settings
        settings.require_detection(network)
        model = settings.detector(self.spec(network), self.classes)
        start = settings.config.initial[network]
        needs = None
        if network in settings.config.pretrain.networks:
            start, needs = self.path / network / "pretrain", partial(self.pretrain, network)

        def run(_=None):
            print(report.parameters(network, model.shapes["params"]), flush=True)
            source, rows = self._sources["train"], settings.detection_rows
            variables = self._fit(model, source, rows, RECIPE_OF[network], network, start)
            if model.has_banks:
                save_supernet(self.path / network, model.spec, variables)
            else:
                categories = category_entries(source.category_ids, source.class_names)
                save_detector(self.path / network, model, variables, settings.size, categories)
            return {}

        self._workdir.step(network, run, needs)
        return model

    def search_stage(self) -> dict:
        """Scores every allocation of the budget; {"arch", "score", "evaluated", "seconds"}."""
        space, budget = self.settings.stage_space, self.settings.budget
        self.settings.require_search()

        def run(detector):
            scorer = self._scorer("stage_supernet", detector, self.settings.config.search.bn)

            def choice(depths, _):
                return detector.spec.choice(depths)

            def score(codes):
                return scorer.score("stage", codes, choice, "stage search")

            depths, best = stage_search(space, budget, score)
            return _found(self._arch(depths), best, space.count(budget))

        return self._workdir.step("stage_search", run, partial(self.train, "stage_supernet"))

    def search_operations(self) -> dict:
        """Greedy search of the dilations; the same fields as `search_stage`."""
        self.settings.require_search()

        def run(detector):
            depths, seed = self._depths(), self.settings.config.seed
            keep = self.settings.config.search.keep
            space = self.settings.operation_space(depths)
            # A completion lives for one mini-batch, so statistics are the mini-batch's.
            scorer = self._scorer("operation_supernet", detector, "batch")

            def choice(code, batch):
                return detector.spec.choice(depths, complete(space, code, seed, batch))

            def score(codes):
                label = f"operation search, block {len(codes[0])} of {space.blocks}"
                return scorer.score("operation", codes, choice, label)

            code, best = operation_search(space, keep, score)
            dilations = tuple(space.dilations[operation] for operation in code)
            return _found(self._arch(depths, dilations), best, space.evaluations(keep))

        supernet = partial(self.train, "operation_supernet")
        return self._workdir.step("operation_search", run, supernet)

    def evaluate(self, network: str) -> dict:
        """Test metrics of `baseline` or `searched`; detections are kept in `detections.json`."""
        detector, test = self.train(network), self._sources["test"]

        def run():
            found = detect(
                detector,
                self._variables(network, detector),
                test,
                self.settings.size,
                self.settings.config.search.batch_size,
                self.settings.devices,
            )
            write_json(self.path / network / "detections.json", found)
            cost = self.settings.cost(detector.spec, self.classes)
            return {
                "arch": json.loads(detector.spec.to_json()),
                "flops": cost.flops,
                "params": cost.params,
                **metrics(test, found, detector.options.mask is not None),
            }

        return self._workdir.step(f"{network}/test", run)

    def run(self) -> dict:
        """All steps; writes and returns `result.json`."""
        stage, operation = self.search_stage(), self.search_operations()
        networks = {network: self.evaluate(network) for network in reversed(COMPARED)}
        result = {
            "format": FORMAT,
            "stage_search": {key: stage[key] for key in ("arch", "score", "evaluated")},
            "operation_search": {key: operation[key] for key in ("arch", "score", "evaluated")},
            **{network: _only_result(networks[network]) for network in COMPARED},
            "difference": self._difference(),
            "dataset": {split: len(source) for split, source in self._sources.items()},
            "seconds": self._seconds(),
        }
        write_json(self.path / "result.json", result)
        return result

    def _difference(self):
        evaluator = CocoEvaluator.of(self._sources["test"])
        results = [
            evaluator.evaluate(read_json(self.path / network / "detections.json"))
            for network in COMPARED
        ]
        value, interval = paired_bootstrap(
            *results, self.settings.config.bootstrap, self.settings.config.seed
        )
        return {"AP": value, "ci95": list(interval)}

    def _depths(self):
        return tuple(self.search_stage()["arch"]["depths"])

    def _arch(self, depths, dilations=()):
        return Arch(self.settings.baseline.family, depths, dilations, self.settings.baseline.widths)

    def _variables(self, network, model):
        """What `train` exported."""
        return load_variables(self.path / network / VARIABLES, model.shapes)

    def _fit(self, model, source, row, recipe, name, start):
        """`train` in the step's folder, which has its name, from the weights `start` means."""
        options, initial = self.settings.train_options(recipe), self._initial(model, start)
        return train(model, source, row, options, self.path / name, name, initial)

    def _initial(self, model: Model, start: str | pathlib.Path) -> Callable | None:
        """From fresh variables to those training starts from; None for the fresh ones."""
        if not str(start):
            return None

        def initial(fresh):
            filled, unfilled = fill(model, fresh, *load_weights(start))
            print(f"starts from {start}; not filled: {', '.join(unfilled) or 'nothing'}")
            return filled

        return initial

    def _scorer(self, network, detector, bn):
        variables = self._variables(network, detector)
        # Scores depend on the weights: a retrained supernet's are not those in the journal.
        leaves = (leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(variables)))
        journal = Journal(self.path / "journal.jsonl", f"{self._hash}-{digest(*leaves)}")
        return SubnetScorer(
            detector,
            variables,
            self._sources["train"],
            self._sources["val"],
            self.settings.score_options(bn),
            journal,
            self.path / "partial",
        )

    def _seconds(self):
        names = ["stage_search", "operation_search", *NETWORKS]
        names += [f"{network}/pretrain" for network in self.settings.config.pretrain.networks]
        names += [f"{network}/test" for network in COMPARED]
        seconds = {name: self._workdir.finished(name)["seconds"] for name in names}
        return {**seconds, "total": round(sum(seconds.values()), 1)}


def _save(folder, model, variables):
    """Weights for the next step to start from."""
    if model.has_banks:
        save_supernet(folder, model.spec, variables)
    else:
        save_variables(folder / VARIABLES, variables)


def _found(arch, score, evaluated):
    return {"arch": json.loads(arch.to_json()), "score": score, "evaluated": evaluated}


def _only_result(fields):
    return {name: value for name, value in fields.items() if name not in ("seconds", "format")}
