"""What a worker does for a run: train a network in a folder of its own, or evaluate it.

The functions are called in fresh processes (`search.executors`), perhaps on other machines, with
values of JSON. They write in the folder that they are given alone, and read those of earlier
attempts.
"""

import dataclasses
import json
import pathlib
import shutil
import time

import jax
import numpy as np

from crnas_jax import __version__
from crnas_jax import arch as archs
from crnas_jax.checkpoint import load_variables
from crnas_jax.data import loader
from crnas_jax.data.build import detection_source
from crnas_jax.data.source import DetectionSource
from crnas_jax.errors import NotFinite, UserError
from crnas_jax.evaluation.predict_split import predict_split
from crnas_jax.experiments.evidence import DETECTIONS
from crnas_jax.experiments.run import split_digests
from crnas_jax.experiments.trained import save_trained
from crnas_jax.export.weights import VARIABLES, initialiser
from crnas_jax.parallel.mesh import make_mesh, put_parts
from crnas_jax.runtime.files import write_json
from crnas_jax.search.trained import score_detections
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings import training as training_settings
from crnas_jax.settings.fields import config_of
from crnas_jax.training.job import TrainingJob
from crnas_jax.training.loop import train
from crnas_jax.training.optimizer import make_optimizer
from crnas_jax.training.step import Trainer

# Points of a loss curve that are reported.
_CURVE = 40


def train_network(
    config: dict,
    arch: dict,
    seed: int,
    epochs: float,
    until: float,
    init_from: str,
    split: str,
    digests: dict,
    version: str,
    folder: str,
    earlier: list[str],
    max_memory: float = 0.0,
    records: str = "",
) -> dict:
    """Train a network, and score it on a split.

    Args:
      config: the config.
      arch: JSON form of the backbone.
      seed: seed of the training.
      epochs: share of the recipe's epochs.
      until: share of the schedule after which it ends.
      init_from: folder of the weights to start from; "" for fresh ones.
      split: split to be scored on.
      digests: digests of the splits' parts, as the controller has them.
      version: version of the package that the controller has.
      folder: folder of this attempt.
      earlier: folders of earlier attempts, newest first.
      max_memory: see `ProxyOptions`.
      records: folder in which indices of records lie; "" for none.

    Returns:
      `AP`, `ci95`, `images`; `curve`, [step, loss] of some steps; `seconds_of`, parts of the time;
      or `failure`, a reason for a score of 0. The folder holds what `load_detector` reads, and the
      detections.

    Raises:
      UserError: this machine has another version or other data.
    """
    started, clock = time.monotonic(), _CompileClock()
    _require_version(version)
    config = config_of(config)
    sources = _sources(config, ("train", split), digests, records)
    job = _job(config, archs.read(json.dumps(arch)), seed, epochs, init_from, sources["train"])
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)  # on a machine that does not share the controller's
    take_over(folder, [pathlib.Path(path) for path in earlier])
    bound = max_memory * 1e9
    if bound and step_memory(config, job) > bound:
        return {"failure": f"memory: a step takes more than {max_memory:g} GB"}
    try:
        variables = train(job, folder, initialiser(job.model, init_from), until)
    except NotFinite as error:
        return {"failure": f"not finite: {error.field}: {error.problem}"[:300]}
    trained = time.monotonic()
    variables = save_trained(config, job, folder, variables)
    size, options = data_settings.image_size(config), job.options
    scoring = search_settings.score_options(config, "running")
    detections = predict_split(
        job.model, variables, sources[split], size, scoring.batch_size, options.num_devices
    )
    write_json(folder / DETECTIONS, detections, indent=None)
    score = score_detections(sources[split], detections, scoring.bootstrap_samples, options.seed)
    seconds = {"all": time.monotonic() - started, "training": trained - started}
    seconds |= {"compilation": clock.seconds}
    return {
        "AP": score.value,
        "ci95": list(score.interval),
        "images": score.num_images,
        "curve": _curve(folder),
        "seconds_of": {name: round(value, 1) for name, value in seconds.items()},
    }


def detect(
    config: dict,
    arch: dict,
    weights: str,
    split: str,
    digests: dict,
    version: str,
    folder: str,
    earlier: list[str],
    records: str = "",
) -> dict:
    """Write the detections of a trained network on a split to the folder.

    Args:
      config: the config.
      arch: JSON form of the backbone.
      weights: folder of the trained detector.
      split: the split.
      digests: see `train_network`, as the others.
      version: see above.
      folder: see above.
      earlier: see above; not used.
      records: see above.

    Returns:
      Nothing, as {}.
    """
    del earlier
    _require_version(version)
    config = config_of(config)
    source = _sources(config, (split,), digests, records)[split]
    network = archs.read(json.dumps(arch))
    detector = model_settings.detector(config, network, len(source.class_names))
    variables = load_variables(pathlib.Path(weights) / VARIABLES, detector.shapes)
    size = data_settings.image_size(config)
    batch_size = search_settings.score_options(config, "running").batch_size
    detections = predict_split(detector, variables, source, size, batch_size)
    write_json(pathlib.Path(folder) / DETECTIONS, detections, indent=None)
    return {}


class _CompileClock:
    """Seconds that this process has spent on compiling since it was made; tracing is left out."""

    def __init__(self):
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            self.seconds += duration


def _require_version(version):
    if version != __version__:
        problem = f"{__version__}, and the controller has {version}"
        raise UserError("worker", "crnas_jax", problem, "install the same version on all machines")


def _sources(config, splits, digests, records) -> dict[str, DetectionSource]:
    loader.read_with(data_settings.read_options(config))
    options, has_masks = data_settings.data_options(config), model_settings.has_masks(config)
    keep_in = pathlib.Path(records) if records else None
    sources = {
        split: detection_source(options, split, has_masks, keep_in)
        for split in dict.fromkeys(splits)
    }
    for split, source in sources.items():
        if split_digests(source) != digests[split]:
            problem = "other content than the controller has"
            raise UserError("worker", f"data.{split}", problem, "give all machines the same data")
    return sources


def _job(config, arch, seed, epochs, init_from, source) -> TrainingJob:
    options = training_settings.train_options(config, "detector_train")
    options = dataclasses.replace(options, seed=seed, epochs=epochs * options.epochs)
    detector = model_settings.detector(config, arch, len(source.class_names))
    rows = data_settings.detection_rows(config)
    return TrainingJob("training", detector, source, rows, options, init_from)


def take_over(folder: pathlib.Path, earlier: list[pathlib.Path]) -> None:
    """Copy the newest checkpoints of earlier attempts, and what belongs to them."""
    newest = max(
        ((step, -place) for place, path in enumerate(earlier) for step in _steps(path)),
        default=None,
    )
    if newest is None or (folder / "checkpoints").exists():
        return
    source = earlier[-newest[1]]
    for name in ("options.json", "metrics.jsonl"):
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    partial = folder / "checkpoints.tmp"
    for step in _steps(source):
        copied = partial / str(step)
        try:
            shutil.copytree(source / "checkpoints" / copied.name, copied)
            digest = f"{step}.sha256"
            if (source / "checkpoints" / digest).exists():
                shutil.copy(source / "checkpoints" / digest, partial / digest)
        except (FileNotFoundError, shutil.Error):  # an attempt that still runs has removed it
            shutil.rmtree(copied, ignore_errors=True)
    if partial.exists():
        partial.rename(folder / "checkpoints")


def _steps(attempt):
    names = (path.name for path in (attempt / "checkpoints").glob("*"))
    return [int(name) for name in names if name.isdigit()]


def step_memory(config, job: TrainingJob) -> int:
    """Return the bytes that a training step takes, from its compiled program.

    Those of its arguments, results and temporary arrays on one device.
    """
    options = job.options
    mesh = make_mesh(options.batch_size, options.num_devices, options.accumulate, options.fsdp)
    plan = loader.Plan(job.source.sizes, options.batch_size, options.seed)
    num_steps = plan.num_steps(options.epochs)
    optimizer = make_optimizer(options.optimizer, options.batch_size, num_steps)
    trainer = Trainer(job.model, optimizer, mesh, options.seed, options.ema_decay)
    batch = next(iter(loader.batches(job.source, plan, job.to_row, options.seed, 0, 1)))
    batch["progress"] = np.zeros(len(batch["weight"]), np.float32)
    part = put_parts(mesh, batch, options.accumulate)[-1]
    total = 0
    for program, arguments in trainer.programs(part):
        analysis = program.lower(*arguments).compile().memory_analysis()
        size = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
        size += analysis.temp_size_in_bytes - analysis.alias_size_in_bytes
        total = max(total, size)
    return total


def _curve(folder):
    """Return [step, loss] of evenly spaced log entries."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    picked = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _CURVE)).astype(int))
    return [[rows[place]["step"], round(rows[place]["loss"], 4)] for place in picked]
