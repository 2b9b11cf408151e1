"""CR-NAS from start to end: labelled images and a budget in, a reallocated detector out.

1. Train the supernet of allocations.
2. Search the allocation in it.
3. Train the supernet of dilations for that allocation.
4. Search the dilations in it.
5. Train the searched network and the baseline under one recipe.
6. Evaluate both on the test split and compare them.
"""

import json

from crnas_jax import arch
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.evaluation.average_precision import (
    detections_from_results,
    match_tables,
    paired_bootstrap,
)
from crnas_jax.evaluation.matching import GroundTruth
from crnas_jax.experiments import crnas_search, steps
from crnas_jax.experiments.crnas_search import TrainedSupernet
from crnas_jax.experiments.keys import step_key
from crnas_jax.experiments.run import Run
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.runtime.files import read_json, write_json
from crnas_jax.runtime.workdir import FORMAT
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings.run import COMPARED, NETWORKS


def run_crnas(run: Run) -> dict:
    """Run all steps; write and return `result.json`."""
    stage = search_stage(run)
    operation = search_operations(run)
    tests = {network: evaluate(run, network) for network in ("searched", "baseline")}
    result = {
        "format": FORMAT,
        "stage_search": {name: stage[name] for name in ("arch", "score", "evaluated")},
        "operation_search": {name: operation[name] for name in ("arch", "score", "evaluated")},
        **{network: _without_bookkeeping(tests[network]) for network in COMPARED},
        "difference": _difference(run),
        "dataset": {split: len(source) for split, source in run.sources.items()},
        "seconds": _seconds(run),
    }
    write_json(run.path / "result.json", result)
    return result


def train_supernet(run: Run, level: str) -> TrainedSupernet:
    """Train the supernet of a level, `stage` or `operation`, after everything it depends on."""
    network = f"{level}_supernet"
    run_settings.require_detection(run.config, network)
    spec = _supernet(run, network)
    if level == "stage":
        crnas_search.require_reachable(run, steps.detector(run, spec))
    _pretrain_first(run, network, spec)
    return TrainedSupernet(run, network, steps.train_supernet(run, network, spec))


def search_stage(run: Run) -> dict:
    """Search the allocation, after the stage supernet is trained.

    Returns:
      See `crnas_search.search_allocation`; `seconds` are added.
    """
    return _search(run, "stage", crnas_search.search_allocation)


def search_operations(run: Run) -> dict:
    """Search the dilations, after the operation supernet is trained; fields as `search_stage`."""
    return _search(run, "operation", crnas_search.search_dilations)


def _search(run, level, search):
    run_settings.require_search(run.config)
    step = f"{level}_search"
    if level == "operation":
        search_stage(run)  # the allocation is a part of the key
    key = step_key(run, step)
    finished = run.workdir.resume(step, key)
    if finished is not None:  # nor is the supernet trained for it
        network = f"{level}_supernet"
        key = step_key(run, network)
        if run.workdir.is_set_aside(network, key):
            run.workdir.resume(network, key)
        return finished
    supernet = train_supernet(run, level)
    return run.workdir.step(step, key, lambda: search(supernet))


def train_network(run: Run, network: str):
    """Train `baseline` or `searched` on detection, after the searches it comes from.

    Returns:
      Its `Detector`; the weights are in `<workdir>/<network>/variables`.
    """
    run_settings.require_detection(run.config, network)
    architecture = _search_architecture(run, network)
    _pretrain_first(run, network, architecture)
    return steps.train_network(run, network, architecture)


def evaluate(run: Run, network: str) -> dict:
    """Evaluate `baseline` or `searched` on the test split, after it is trained."""
    return steps.evaluate(run, network, train_network(run, network))


def pretrain(run: Run, network: str) -> dict:
    """Train one of `NETWORKS` on classification, after the searches it comes from."""
    run_settings.require_pretraining(run.config, network)
    spec_of = _search_architecture if network in COMPARED else _supernet
    return steps.pretrain(run, network, spec_of(run, network))


def _supernet(run, network) -> SupernetSpec:
    """Return what a supernet holds; for the operation supernet search the allocation if need be."""
    if network == "stage_supernet":
        return model_settings.stage_supernet(run.config)
    depths = tuple(search_stage(run)["arch"]["depths"])
    return model_settings.operation_supernet(run.config, depths)


def _search_architecture(run, network) -> Arch:
    """Return the architecture of a compared network; search it if need be."""
    if network == "baseline":
        return model_settings.baseline(run.config)
    if network == "searched":
        return arch.read(json.dumps(search_operations(run)["arch"]))
    raise UserError("command line", "network", f"{network!r} is unknown", f"use one of {COMPARED}")


def _pretrain_first(run, network, spec):
    """Train on classification where the config asks for it and detection is not trained yet."""
    wanted = network in run_settings.pretrained_networks(run.config)
    if wanted and run.workdir.resume(network, step_key(run, network)) is None:
        steps.pretrain(run, network, spec)


def _difference(run):
    """Compare the detections of both networks on the test split."""
    test, options = run.sources["test"], run.options
    ground_truth, tables = GroundTruth.from_source(test), []
    for network in COMPARED:
        results = read_json(steps.detections_file(run, network))
        detections = detections_from_results(results, test.category_ids, test.image_ids)
        tables += match_tables(ground_truth, detections, test.image_ids)
    value, interval = paired_bootstrap(*tables, options.bootstrap, options.seed)
    return {"AP": value, "ci95": list(interval)}


def _seconds(run):
    names = ["stage_search", "operation_search", *NETWORKS]
    names += [f"{name}/pretrain" for name in run_settings.pretrained_networks(run.config)]
    names += [f"{network}/test" for network in COMPARED]
    results = {name: run.workdir.finished(name, step_key(run, name)) for name in names}
    # A finished search needs its supernet no more: its folder may be gone.
    seconds = {name: result["seconds"] if result else 0.0 for name, result in results.items()}
    return {**seconds, "total": round(sum(seconds.values()), 1)}


def _without_bookkeeping(fields):
    return {name: value for name, value in fields.items() if name not in ("seconds", "format")}
