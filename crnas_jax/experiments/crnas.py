"""The whole procedure, step by step; a step finished in the working folder is not repeated.

supernet of allocations -> stage search -> supernet of dilations -> operation search -> the found
network and the baseline trained under one recipe -> both evaluated on the test split.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from functools import partial

from crnas_jax.analysis import report
from crnas_jax.arch.staged import Arch
from crnas_jax.checkpoint import load_variables, save_variables
from crnas_jax.data.coco import category_entries
from crnas_jax.errors import UserError
from crnas_jax.evaluation.average_precision import match_tables, of_results, paired_bootstrap
from crnas_jax.evaluation.classification import accuracy
from crnas_jax.evaluation.detect import detect, metrics
from crnas_jax.evaluation.matching import GroundTruth
from crnas_jax.experiments.crnas_search import Searches
from crnas_jax.experiments.search_cost import search_cost
from crnas_jax.export.detector import (
    VARIABLES,
    load_weights,
    require_weights,
    save_detector,
    save_supernet,
)
from crnas_jax.models.build import Detector, Model
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.models.transfer import fill
from crnas_jax.runtime.workdir import FORMAT, Workdir, digest, read_json, write_json
from crnas_jax.search.journal import Journal
from crnas_jax.settings.run import COMPARED, NETWORKS, RECIPE_OF, Settings
from crnas_jax.training.loop import train
from crnas_jax.training.step import sample_choice


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
    dry: bool = False  # only to look: nothing is written, and no step may be run

    def __post_init__(self):
        self.settings.validate()
        if self.check is not None:
            self.check(self.settings)
        self._sources = self.settings.sources()
        self._images = self.settings.classification_sources()
        if "val" in self._sources:
            _ = self.settings.allowed_stages(self.classes)
            val = self._sources["val"]
            self.settings.score_options("batch").require_objects(val, GroundTruth.of(val))
        for network, start in self.settings.config.initial.items():
            if start:
                require_weights(start, f"config.initial.{network}")
        digests = [one.digest for one in (*self._sources.values(), *self._images.values())]
        self._hash = digest(self.settings.hash, *digests)
        self._workdir = Workdir(self.path)
        if self.dry:
            return
        self._workdir.claim(self.settings.config.to_dict(), self._hash)
        Journal(self.path / "journal.jsonl", self._hash)  # a damaged one is refused now

    @property
    def classes(self) -> int:
        """Number of object classes."""
        return len(self._sources["train"].class_names)

    def plan(self) -> str:
        """What will be done, for people."""
        return report.plan(self.settings, self._sources, self.path)

    def search_cost(self, level: str) -> dict:
        """What a search would cost; see `estimate.search_cost`."""
        found = None
        if self._workdir.belongs_to(self._hash):
            found = self._workdir.finished("stage_search")
        depths = tuple(found["arch"]["depths"]) if found else None
        return search_cost(self.settings, self._sources, level, depths)

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
        """Finds the allocation; see `Searches.stage` for what is returned, `seconds` beside it."""
        self.settings.require_search()

        def run(detector):
            return self._searches("stage_supernet", detector).stage()

        return self._workdir.step("stage_search", run, partial(self.train, "stage_supernet"))

    def search_operations(self) -> dict:
        """Finds the dilations; the same fields as `search_stage`."""
        self.settings.require_search()

        def run(detector):
            return self._searches("operation_supernet", detector).operations(self._depths())

        supernet = partial(self.train, "operation_supernet")
        return self._workdir.step("operation_search", run, supernet)

    def searches(self, network: str) -> Searches:
        """What can be searched and scored in one of the supernets, which is trained if need be."""
        self.settings.require_search()
        return self._searches(network, self.train(network))

    def _searches(self, network, detector):
        variables = self._variables(network, detector)
        key, settings = self._hash, self.settings
        return Searches(settings, self._sources, detector, variables, self.path, key)

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

    def release(self) -> None:
        """Lets other processes, and other runs of this one, work in the folder."""
        self._workdir.release()

    def _difference(self):
        test = self._sources["test"]
        truth = GroundTruth.of(test)
        tables = []
        for network in COMPARED:
            results = read_json(self.path / network / "detections.json")
            found = of_results(results, test.category_ids, test.image_ids)
            tables += match_tables(truth, found, test.image_ids)
        config = self.settings.config
        value, interval = paired_bootstrap(*tables, config.bootstrap, config.seed)
        return {"AP": value, "ci95": list(interval)}

    def _depths(self):
        return tuple(self.search_stage()["arch"]["depths"])

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


def _only_result(fields):
    return {name: value for name, value in fields.items() if name not in ("seconds", "format")}
