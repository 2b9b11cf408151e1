"""The steps of an experiment: idempotent functions of a run, each with a folder of its own.

A finished step is not repeated. A step never starts another one: `crnas` puts them in order.
"""

import dataclasses
import functools
import json
import math
import pathlib

import jax
from jaxtyping import PyTree

from crnas_jax.arch import Architecture
from crnas_jax.checkpoint import load_variables
from crnas_jax.evaluation.classification import accuracy
from crnas_jax.evaluation.predict_split import predict_split, split_metrics
from crnas_jax.experiments import evidence, workers
from crnas_jax.experiments.evidence import detections_file
from crnas_jax.experiments.keys import init_name, step_key, training_seed
from crnas_jax.experiments.run import Run
from crnas_jax.experiments.trained import categories, save_trained
from crnas_jax.export.detector import describe
from crnas_jax.export.weights import VARIABLES, initialiser, save_weights
from crnas_jax.models.backbones.build import AnySupernet
from crnas_jax.models.build import Detector, Model
from crnas_jax.runtime import team
from crnas_jax.runtime.files import read_json, write_json
from crnas_jax.runtime.step_key import FINALISTS, row_of, split_seed
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings import training as training_settings
from crnas_jax.training.job import TrainingJob
from crnas_jax.training.loop import train


def pretrain(run: Run, step: str, spec: Architecture | AnySupernet) -> dict:
    """Train a network on classification; return {"top1", "top5", "seconds"}.

    Args:
      run: the run.
      step: name of the step that trains it on detection.
      spec: its backbone.
    """
    run_settings.require_pretraining(run.config, init_name(run, step))
    job = _pretraining_job(run, step, spec)

    def work():
        variables = _fit(run, job)
        save_weights(run.path / job.name, job.model, variables)
        result = accuracy(
            job.model,
            variables,
            run.classification_sources["val"],
            data_settings.classification_data_options(run.config).size,
            search_settings.score_options(run.config, "running").batch_size,
            functools.partial(job.model.sample, run.options.seed),
            run.options.num_devices,
        )
        print(f"{job.name}: top-1 {result['top1']:.3f}, top-5 {result['top5']:.3f}", flush=True)
        return result

    return run.workdir.step(job.name, step_key(run, job.name), work)


def pretrain_first(run: Run, step: str, spec: Architecture | AnySupernet) -> None:
    """Train a network on classification where the config asks for it and `step` is to come.

    Args:
      run: the run.
      step: name of the step that trains it on detection, with any seed.
      spec: its backbone.
    """
    network = split_seed(step)[0]
    wanted = network in run_settings.pretrained_networks(run.config)
    if wanted and run.workdir.resume(step, step_key(run, step)) is None:
        pretrain(run, network, spec)


def train_supernet(run: Run, network: str, spec: AnySupernet) -> Detector:
    """Train a supernet on detection; return its detector, the weights are in its folder."""
    start = _start(run, network)
    if network == "operation_supernet" and run_settings.starts_from_stage_supernet(run.config):
        start = run.path / "stage_supernet"
    job = detection_job(run, network, network, spec, start)

    def save(variables):
        description = describe(job.model, data_settings.image_size(run.config), categories(job))
        save_weights(run.path / job.name, job.model, variables, description)

    return _train(run, job, save)


def train_network(run: Run, step: str, arch: Architecture) -> Detector:
    """Train a stand-alone network on detection; return its detector, the weights are in its folder.

    The folder is what `load_detector` reads.

    Args:
      run: the run.
      step: name of the step, and of its folder; a finalist's schedule is the short one.
      arch: its backbone.
    """
    job = network_job(run, step, arch)

    def save(variables):
        save_trained(run.config, job, run.path / job.name, variables)

    return _train(run, job, save)


def network_job(run: Run, step: str, arch: Architecture) -> TrainingJob:
    """Describe the training of a stand-alone network; arguments as `train_network`."""
    job = detection_job(run, step, "baseline", arch, _start(run, step))
    epochs = job.options.epochs
    if row_of(step) == FINALISTS:
        epochs *= run_settings.refine_options(run.config).short
    options = dataclasses.replace(job.options, epochs=epochs, seed=training_seed(run, step))
    return dataclasses.replace(job, options=options)


def evaluate(run: Run, step: str, detector: Detector, split: str) -> dict:
    """Return a trained network's metrics on a split; its detections go to `detections.json`.

    Args:
      run: the run.
      step: name of the step that trained it.
      detector: its detector.
      split: `val` or `test`.
    """
    source, size = run.sources[split], data_settings.image_size(run.config)
    name = f"{step}/{split}"

    def work():
        detections = workers.detections_ahead(run, step, split)
        if detections is not None:
            return team.decide(measure, detections)
        detections = predict_split(
            detector,
            load_trained(run, step, detector),
            source,
            size,
            search_settings.score_options(run.config, "running").batch_size,
            run.options.num_devices,
            name,
        )
        return team.decide(measure, detections)

    def measure(detections):
        write_json(detections_file(run, step, split), detections)
        canvas = size.canvas(portrait=False)
        cost = model_settings.detector_cost(run.config, detector.spec, canvas, run.num_classes)
        metrics = split_metrics(source, detections, detector.options.has_masks)
        ap = "none" if metrics["AP"] is None else f"{100 * metrics['AP']:.1f} %"
        print(f"{name}: AP {ap}", flush=True)
        evidence.show(detections_file(run, step, split).parent, source, detections, metrics)
        return {
            "arch": json.loads(detector.spec.to_json()),
            "flops": cost.flops,
            "params": cost.params,
            **metrics,
        }

    return run.workdir.step(name, step_key(run, name), work)


def detections(run: Run, step: str, detector: Detector, split: str) -> list[dict]:
    """Return a trained network's detections on a split, in COCO's result format.

    Of several hosts the primary gets them, the others none.
    """
    evaluate(run, step, detector, split)
    return read_json(detections_file(run, step, split)) if team.is_primary() else []


def diagnosis(run: Run, step: str, detector: Detector, split: str) -> dict | None:
    """Return a trained network's AP on resampled images of a split, see `evidence.diagnosis`."""
    evaluate(run, step, detector, split)
    return evidence.diagnosis(run, step, split)


def receptive_fields(run: Run, step: str, detector: Detector) -> None:
    """Write a trained network's effective receptive fields, for the report, unless they are there.

    On the first images of `val`, or of `test` where there is no `val`.
    """
    if evidence.lacks_fields(run, step):
        variables = load_trained(run, step, detector)
        team.decide(evidence.write_fields, run, step, detector, variables)


def load_trained(run: Run, step: str, model: Model) -> PyTree:
    """Load the weights that a finished training wrote."""
    return load_variables(run.path / step / VARIABLES, model.shapes)


def detection_job(
    run: Run,
    name: str,
    network: str,
    spec: Architecture | AnySupernet,
    init_from: str | pathlib.Path,
) -> TrainingJob:
    """Describe a training on detection with the recipe of one of `training.RECIPE_OF`."""
    recipe = training_settings.RECIPE_OF[network]
    return TrainingJob(
        name,
        model_settings.detector(run.config, spec, run.num_classes),
        run.sources["train"],
        data_settings.detection_rows(run.config),
        training_settings.train_options(run.config, recipe),
        init_from,
    )


def detector(run: Run, spec: Architecture | AnySupernet) -> Detector:
    """Return the detector with a backbone, untrained."""
    return model_settings.detector(run.config, spec, run.num_classes)


def _pretraining_job(run, step, spec):
    source = run.classification_sources["train"]
    return TrainingJob(
        f"{step}/pretrain",
        model_settings.classifier(run.config, spec, len(source.class_names)),
        source,
        data_settings.classification_rows(run.config),
        training_settings.train_options(run.config, "pretrain"),
        run_settings.init_from(run.config)[init_name(run, step)],
    )


def _start(run, step):
    """Return the folder that a training on detection starts from."""
    network = init_name(run, step)
    # Finalists are not trained on classification first: that would cost more than they do.
    is_pretrained = network in run_settings.pretrained_networks(run.config)
    if row_of(step) == FINALISTS or not is_pretrained:
        return run_settings.init_from(run.config)[network]
    return run.path / split_seed(step)[0] / "pretrain"


def _train(run, job, save):
    """Train on detection unless that is finished, and save; return the detector."""

    def work():
        if not team.decide(workers.adopt, run, job.name):
            save(_fit(run, job))
        return {}

    run.workdir.step(job.name, step_key(run, job.name), work)
    return job.model


def _fit(run, job):
    shapes = jax.tree.leaves(job.model.shapes["params"])
    num_parameters = sum(math.prod(leaf.shape) for leaf in shapes)
    print(f"{job.name}: {num_parameters / 1e6:.2f} M parameters", flush=True)
    return train(job, run.path / job.name, initialiser(job.model, job.init_from))
