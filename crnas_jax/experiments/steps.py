"""The steps of an experiment: idempotent functions of a run, each with a folder of its own.

A finished step is not repeated. A step never starts another one: `crnas` puts them in order.
"""

import json
import math
import pathlib

import jax
from jaxtyping import PyTree

from crnas_jax.arch.staged import Arch
from crnas_jax.checkpoint import load_variables
from crnas_jax.data.coco import category_entries
from crnas_jax.evaluation.classification import accuracy
from crnas_jax.evaluation.predict_split import predict_split, split_metrics
from crnas_jax.experiments.keys import step_key
from crnas_jax.experiments.run import Run
from crnas_jax.export.detector import save_detector
from crnas_jax.export.weights import VARIABLES, initialiser, save_weights
from crnas_jax.models.build import Detector, Model
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.runtime.files import write_json
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings import training as training_settings
from crnas_jax.training.job import TrainingJob
from crnas_jax.training.loop import train
from crnas_jax.training.step import sample_choice


def pretrain(run: Run, network: str, spec: Arch | SupernetSpec) -> dict:
    """Train a network on classification; return {"top1", "top5", "seconds"}.

    Args:
      run: the run.
      network: one of `NETWORKS`.
      spec: its backbone.
    """
    run_settings.require_pretraining(run.config, network)
    job = _pretraining_job(run, network, spec)

    def work():
        variables = _fit(run, job)
        save_weights(run.path / job.name, job.model, variables)
        result = accuracy(
            job.model,
            variables,
            run.classification_sources["val"],
            data_settings.classification_data_options(run.config).size,
            search_settings.score_options(run.config, "running").batch_size,
            lambda index: sample_choice(job.model, run.options.seed, index),
            run.options.num_devices,
        )
        print(f"{job.name}: top-1 {result['top1']:.3f}, top-5 {result['top5']:.3f}", flush=True)
        return result

    return run.workdir.step(job.name, step_key(run, job.name), work)


def train_supernet(run: Run, network: str, spec: SupernetSpec) -> Detector:
    """Train a supernet on detection; return its detector, the weights are in its folder."""

    def save(job, variables):
        save_weights(run.path / job.name, job.model, variables)

    return _train_detector(run, network, spec, save)


def train_network(run: Run, network: str, arch: Arch) -> Detector:
    """Train a stand-alone network on detection; return its detector, the weights are in its folder.

    The folder is what `load_detector` reads.
    """

    def save(job, variables):
        categories = category_entries(job.source.category_ids, job.source.class_names)
        size = data_settings.image_size(run.config)
        save_detector(run.path / job.name, job.model, variables, size, categories)

    return _train_detector(run, network, arch, save)


def evaluate(run: Run, network: str, detector: Detector) -> dict:
    """Return the test metrics of a trained network; its detections go to `detections.json`."""
    test = run.sources["test"]
    size = data_settings.image_size(run.config)

    def work():
        detections = predict_split(
            detector,
            load_trained(run, network, detector),
            test,
            size,
            search_settings.score_options(run.config, "running").batch_size,
            run.options.num_devices,
        )
        write_json(detections_file(run, network), detections)
        canvas = size.canvas(portrait=False)
        cost = model_settings.detector_cost(run.config, detector.spec, canvas, run.num_classes)
        return {
            "arch": json.loads(detector.spec.to_json()),
            "flops": cost.flops,
            "params": cost.params,
            **split_metrics(test, detections, detector.options.mask is not None),
        }

    step = f"{network}/test"
    return run.workdir.step(step, step_key(run, step), work)


def detections_file(run: Run, network: str) -> pathlib.Path:
    """Return the path of a network's detections on the test split."""
    return run.path / network / "test" / "detections.json"


def load_trained(run: Run, network: str, model: Model) -> PyTree:
    """Load the weights that a finished training wrote."""
    return load_variables(run.path / network / VARIABLES, model.shapes)


def detection_job(
    run: Run, name: str, network: str, spec: Arch | SupernetSpec, init_from: str | pathlib.Path
) -> TrainingJob:
    """Describe a training on detection with the recipe of one of `NETWORKS`."""
    recipe = training_settings.RECIPE_OF[network]
    return TrainingJob(
        name,
        model_settings.detector(run.config, spec, run.num_classes),
        run.sources["train"],
        data_settings.detection_rows(run.config),
        training_settings.train_options(run.config, recipe),
        init_from,
    )


def classification_job(
    run: Run, name: str, spec: Arch | SupernetSpec, init_from: str | pathlib.Path
) -> TrainingJob:
    """Describe a training on classification."""
    source = run.classification_sources["train"]
    return TrainingJob(
        name,
        model_settings.classifier(run.config, spec, len(source.class_names)),
        source,
        data_settings.classification_rows(run.config),
        training_settings.train_options(run.config, "pretrain"),
        init_from,
    )


def detector(run: Run, spec: Arch | SupernetSpec) -> Detector:
    """Return the detector with a backbone, untrained."""
    return model_settings.detector(run.config, spec, run.num_classes)


def _pretraining_job(run, network, spec):
    start = run_settings.init_from(run.config)[network]
    return classification_job(run, f"{network}/pretrain", spec, start)


def _train_detector(run, network, spec, save):
    run_settings.require_detection(run.config, network)
    start = run_settings.init_from(run.config)[network]
    if network in run_settings.pretrained_networks(run.config):
        start = run.path / network / "pretrain"
    job = detection_job(run, network, network, spec, start)

    def work():
        shapes = jax.tree.leaves(job.model.shapes["params"])
        num_parameters = sum(math.prod(leaf.shape) for leaf in shapes)
        print(f"{network}: {num_parameters / 1e6:.2f} M parameters", flush=True)
        save(job, _fit(run, job))
        return {}

    run.workdir.step(network, step_key(run, network), work)
    return job.model


def _fit(run, job):
    return train(job, run.path / job.name, initialiser(job.model, job.init_from))
