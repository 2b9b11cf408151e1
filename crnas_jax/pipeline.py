"""The whole procedure, step by step; a step finished in the working folder is not repeated.

supernet of allocations -> stage search -> supernet of dilations -> operation search -> the found
network and the baseline trained under one recipe -> both evaluated on the test split.
"""

import collections
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import time

import jax

from crnas_jax.arch import Arch
from crnas_jax.checkpoint import load_variables, save_variables
from crnas_jax.errors import UserError
from crnas_jax.evaluation.coco import CocoEvaluator, paired_bootstrap
from crnas_jax.evaluation.detect import detect
from crnas_jax.models.build import Detector
from crnas_jax.search.journal import Journal
from crnas_jax.search.operation_search import complete, operation_search
from crnas_jax.search.scoring import SubnetScorer
from crnas_jax.search.stage_search import stage_search
from crnas_jax.settings import Settings
from crnas_jax.training.loop import train

FORMAT = 1
NETWORKS = ("baseline", "searched")


@dataclasses.dataclass
class Pipeline:
    """The procedure of one config in one working folder.

    Every step is a method that runs what it needs, writes what it found to
    `<workdir>/<step>/result.json` and, called again, returns what is written there.
    """

    settings: Settings
    workdir: pathlib.Path

    def __post_init__(self):
        self.settings.validate()
        self._sources = self.settings.sources()
        path = self.workdir / "config.json"
        digests = [source.digest for source in self._sources.values()]
        self._hash = _digest(self.settings.hash, *digests)
        config = {"format": FORMAT, "hash": self._hash, "config": self.settings.config.to_dict()}
        if not path.exists():
            write_json(path, config)
        elif json.loads(path.read_text()).get("hash") != self._hash:
            raise UserError(
                path,
                "config",
                "this folder belongs to another config or to other data",
                "choose another --workdir",
            )

    def source(self, split: str):
        """One of `train`, `val` and `test`."""
        return self._sources[split]

    @property
    def classes(self) -> int:
        """Number of object classes."""
        return len(self.source("train").class_names)

    def plan(self) -> str:
        """What will be done, for people."""
        settings, cost = self.settings, self.settings.cost(self.settings.baseline, self.classes)
        space = settings.stage_space
        operations = settings.operation_space(settings.baseline.depths).evaluations(
            settings.config.search.keep
        )
        sizes = ", ".join(
            f"{split} {len(self.source(split))}" for split in ("train", "val", "test")
        )
        rows = [
            f"data        {sizes} images; {self.classes} classes",
            f"baseline    {settings.config.baseline} {settings.baseline.depths}: "
            f"{cost.flops / 1e9:.2f} G multiply-adds, {cost.params / 1e6:.2f} M parameters",
            f"budget      {settings.budget} blocks: {space.count(settings.budget)} allocations, "
            f"then {operations} partial operation codes",
            "steps       stage supernet, stage search, operation supernet, operation search, "
            "searched network, baseline, test",
            f"devices     {', '.join(str(device) for device in jax.devices()[: settings.devices])}",
            f"workdir     {self.workdir}",
        ]
        if settings.budget != sum(settings.baseline.depths):
            rows.append(
                "note        the budget is not the baseline's: the two will differ in FLOPs"
            )
        skipped = sum(source.skipped for source in self._sources.values())
        if skipped:
            rows.append(f"note        {skipped} boxes lie outside their image and are left out")
        crowded = self._crowded()
        if crowded:
            rows.append(
                f"note        {crowded} training images have more boxes than data.max_objects; "
                "each step draws among them"
            )
        return "\n".join(rows)

    def _crowded(self):
        """Training images with more boxes than a batch has room for."""
        annotations = self.source("train").coco["annotations"]
        boxes = collections.Counter(annotation["image_id"] for annotation in annotations)
        return sum(number > self.settings.config.data.max_objects for number in boxes.values())

    def train_stage_supernet(self) -> Detector:
        """Trains the supernet of allocations; returns its description."""
        detector = self.settings.stage_supernet(self.classes)
        self._train("stage_supernet", detector, "stage_train")
        return detector

    def search_stage(self) -> dict:
        """Scores every allocation of the budget; {"arch", "score", "evaluated", "seconds"}."""
        finished = self._finished("stage_search")
        if finished is not None:
            return finished
        detector = self.train_stage_supernet()

        def run():
            space, budget = self.settings.stage_space, self.settings.budget
            scorer = self._scorer(detector, "stage_supernet", self.settings.config.search.bn)

            def choice(depths, _):
                return detector.spec.choice(depths)

            def score(codes):
                return scorer.score("stage", codes, choice, "stage search")

            depths, best = stage_search(space, budget, score)
            return self._found(self._arch(depths), best, space.count(budget))

        return self._step("stage_search", run)

    def train_operation_supernet(self) -> Detector:
        """Trains the supernet of dilations of the found allocation; returns its description."""
        depths = self._depths()
        detector = self.settings.operation_supernet(depths, self.classes)
        self._train("operation_supernet", detector, "operation_train")
        return detector

    def search_operations(self) -> dict:
        """Greedy search of the dilations; the same fields as `search_stage`."""
        finished = self._finished("operation_search")
        if finished is not None:
            return finished
        detector = self.train_operation_supernet()

        def run():
            depths, seed = self._depths(), self.settings.config.seed
            space, keep = self.settings.operation_space(depths), self.settings.config.search.keep
            # A completion lives for one mini-batch, so statistics are the mini-batch's.
            scorer = self._scorer(detector, "operation_supernet", "batch")

            def choice(code, batch):
                return detector.spec.choice(depths, complete(space, code, seed, batch))

            def score(codes):
                label = f"operation search, block {len(codes[0])} of {space.blocks}"
                return scorer.score("operation", codes, choice, label)

            code, best = operation_search(space, keep, score)
            dilations = tuple(space.dilations[operation] for operation in code)
            return self._found(self._arch(depths, dilations), best, space.evaluations(keep))

        return self._step("operation_search", run)

    def arch(self, network: str) -> Arch:
        """Of `baseline` or `searched`."""
        if network == "baseline":
            return self.settings.baseline
        if network == "searched":
            return Arch.from_json(json.dumps(self.search_operations()["arch"]))
        raise UserError(
            "command line", "network", f"{network!r} is unknown", f"use one of {NETWORKS}"
        )

    def train_detector(self, network: str) -> Detector:
        """Trains `baseline` or `searched` under the same recipe; returns its description."""
        detector = Detector(self.arch(network), self.settings.detector_options(self.classes))
        self._train(network, detector, "detector_train")
        return detector

    def evaluate(self, network: str) -> dict:
        """Test metrics of `baseline` or `searched`; detections are kept in `detections.json`."""
        detector = self.train_detector(network)

        def run():
            variables = self._variables(network, detector)
            batch_size = self.settings.config.search.batch_size
            found = detect(
                detector,
                variables,
                self.source("test"),
                self.settings.size,
                batch_size,
                self.settings.devices,
            )
            write_json(self.workdir / network / "detections.json", found)
            result = CocoEvaluator(self.source("test").coco).evaluate(found)
            cost = self.settings.cost(detector.spec, self.classes)
            return {
                "arch": json.loads(detector.spec.to_json()),
                "flops": cost.flops,
                "params": cost.params,
                **{name: _or_none(value) for name, value in result.metrics.items()},
                "per_class": {name: _or_none(value) for name, value in result.per_class.items()},
            }

        return self._step(f"{network}/test", run)

    def run(self) -> dict:
        """All steps; writes and returns `result.json`."""
        stage, operation = self.search_stage(), self.search_operations()
        networks = {network: self.evaluate(network) for network in reversed(NETWORKS)}
        result = {
            "format": FORMAT,
            "stage_search": {key: stage[key] for key in ("arch", "score", "evaluated")},
            "operation_search": {key: operation[key] for key in ("arch", "score", "evaluated")},
            **{network: _without(networks[network], "seconds") for network in NETWORKS},
            "difference": self._difference(),
            "dataset": {split: len(self.source(split)) for split in ("train", "val", "test")},
            "seconds": self._seconds(),
        }
        write_json(self.workdir / "result.json", result)
        return result

    def _difference(self):
        evaluator = CocoEvaluator(self.source("test").coco)
        results = [
            evaluator.evaluate(json.loads((self.workdir / network / "detections.json").read_text()))
            for network in NETWORKS
        ]
        value, interval = paired_bootstrap(
            *results, self.settings.config.bootstrap, self.settings.config.seed
        )
        return {"AP": value, "ci95": list(interval)}

    def _depths(self):
        return tuple(self.search_stage()["arch"]["depths"])

    def _arch(self, depths, dilations=()):
        return Arch(self.settings.baseline.family, depths, dilations, self.settings.baseline.widths)

    def _found(self, arch, score, evaluated):
        return {"arch": json.loads(arch.to_json()), "score": score, "evaluated": evaluated}

    def _train(self, name, detector, recipe):
        """Trains into `<workdir>/<name>` and exports the variables; nothing where that is done."""

        def run():
            options = self.settings.train_options(recipe)
            if jax.process_index() == 0:
                _explain(name, detector)
            variables = train(detector, self.source("train"), options, self.workdir / name, name)
            save_variables(self.workdir / name / "variables", variables)
            return {}

        self._step(name, run)

    def _variables(self, name, detector):
        """What `_train` exported."""
        like = jax.eval_shape(detector.init, jax.random.key(0))
        return load_variables(self.workdir / name / "variables", like)

    def _scorer(self, detector, supernet, bn):
        variables = self._variables(supernet, detector)
        # Scores depend on the weights: a retrained supernet's are not those in the journal.
        journal = Journal(self.workdir / "journal.jsonl", f"{self._hash}-{_fingerprint(variables)}")
        options = self.settings.score_options(bn)
        return SubnetScorer(
            detector, variables, self.source("train"), self.source("val"), options, journal
        )

    def _finished(self, name):
        """What a step wrote when it finished, None before that."""
        path = self.workdir / name / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _step(self, name, run):
        finished = self._finished(name)
        if finished is not None:
            return finished
        began = time.monotonic()
        result = {**run(), "seconds": round(time.monotonic() - began, 1)}
        write_json(self.workdir / name / "result.json", result)
        return result

    def _seconds(self):
        names = ("stage_supernet", "stage_search", "operation_supernet", "operation_search")
        names += tuple(f"{network}{part}" for network in NETWORKS for part in ("", "/test"))
        seconds = {name: self._finished(name)["seconds"] for name in names}
        return {**seconds, "total": round(sum(seconds.values()), 1)}


def table(result: dict) -> str:
    """`result.json` as a table for people."""
    lines = [f"{'':10}{'depths':>16}{'GMACs':>8}{'params M':>10}{'AP':>8}{'AP50':>8}{'AP75':>8}"]
    for network in NETWORKS:
        row = result[network]
        metrics = "".join(f"{100 * (row[name] or 0):8.1f}" for name in ("AP", "AP50", "AP75"))
        depths = str(row["arch"]["depths"])
        lines.append(
            f"{network:10}{depths:>16}{row['flops'] / 1e9:8.3f}{row['params'] / 1e6:10.3f}{metrics}"
        )
    difference, (low, high) = result["difference"]["AP"], result["difference"]["ci95"]
    verdict = (
        "not distinguishable" if low <= 0 <= high else ("better" if difference > 0 else "worse")
    )
    lines.append(f"dilations of searched: {result['searched']['arch']['dilations']}")
    lines.append(
        f"difference in AP {100 * difference:+.1f}, 95 % interval over test images "
        f"[{100 * low:+.1f}, {100 * high:+.1f}]: {verdict}"
    )
    return "\n".join(lines)


def write_json(path: pathlib.Path, value) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _explain(name, detector):
    shapes = jax.eval_shape(detector.init, jax.random.key(0))
    number = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    print(f"{name}: {number / 1e6:.2f} M parameters", flush=True)


def _fingerprint(variables):
    return _digest(*(leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(variables))))


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


def _or_none(value):
    return value if math.isfinite(value) else None


def _without(fields, key):
    return {name: value for name, value in fields.items() if name != key}
