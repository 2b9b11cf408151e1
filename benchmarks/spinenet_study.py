"""SpineNet against a ResNet-FPN at equal multiply-adds, both in RetinaNet, on a small data set.

    python benchmarks/spinenet_study.py --data=DATA --folder=runs/spinenet_study

Both are trained with `configs/spinenet.py:small`: a quarter of SpineNet-49's widths, and a
ResNet-50 that is as narrow, with FPN. Every training is a run in the folder: the same command goes
on where it was interrupted. AP on the test split; intervals (95 %) are over images and seeds.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import json

import common
import numpy as np
from absl import app, flags

from configs import spinenet
from crnas_jax.arch.staged import Arch
from crnas_jax.experiments import crnas
from crnas_jax.experiments.run import open_run
from crnas_jax.search.journal import Journal
from crnas_jax.search.refine import difference
from crnas_jax.search.trained import TrainedScores

_DATA = flags.DEFINE_string("data", None, "Folder of the data.")
_FOLDER = flags.DEFINE_string("folder", "runs/spinenet_study", "Folder of the trainings.")
_SEEDS = flags.DEFINE_integer("seeds", 2, "Trainings of each network.")
_EPOCHS = flags.DEFINE_float("epochs", 50.0, "Epochs of a training.")
_SAMPLES = flags.DEFINE_integer("samples", 500, "Resamplings of the images.")
# Baseline first. The ResNet's multiply-adds with FPN and head are 0.3 % below SpineNet's.
NETWORKS = ("resnet", "spinenet")
RESNET = Arch("resnet_bottleneck", (3, 4, 6, 3), widths=(15, 30, 60, 120))


def main(_):
    folder = pathlib.Path(_FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {(name, seed): [] for seed in range(_SEEDS.value) for name in NETWORKS}
    for name, seed in rows:
        rows[name, seed] = trained(folder, name, seed)
    ap = np.zeros((len(NETWORKS), _SEEDS.value))
    draws = np.zeros((len(NETWORKS), _SEEDS.value, _SAMPLES.value))
    for (name, seed), (run, metrics) in rows.items():
        detections = json.loads((run.path / "baseline/test/detections.json").read_text())
        scores = TrainedScores(
            "study",
            lambda code, found=detections: found,
            run.sources["test"],
            Journal(folder / f"{name}-{seed}.jsonl", f"{metrics['AP']}"),
            _SAMPLES.value,
        )
        row = NETWORKS.index(name)
        ap[row, seed] = scores.score([(0,)])[0]
        draws[row, seed] = scores.draws([(0,)])[0]
    result = difference(ap, draws.mean(1), 1)
    low, high = np.percentile(draws.mean(1), (2.5, 97.5), axis=1)
    by_network = dict(zip(NETWORKS, zip(ap, low, high, strict=True), strict=True))
    first = {name: rows[name, 0][1] for name in NETWORKS}
    common.report(
        "spinenet_study",
        {
            "AP": {name: values.tolist() for name, (values, *_) in by_network.items()},
            "ci95 over images": {n: [float(a), float(b)] for n, (_, a, b) in by_network.items()},
            "AP50": {
                n: [rows[n, seed][1]["AP50"] for seed in range(_SEEDS.value)] for n in NETWORKS
            },
            "flops": {name: metrics["flops"] for name, metrics in first.items()},
            "params": {name: metrics["params"] for name, metrics in first.items()},
            "difference": result.value,
            "difference ci95": list(result.interval),
            "probability": result.probability,
            "epochs": _EPOCHS.value,
        },
    )


def trained(folder, name, seed):
    """Return the run of a network with a seed, and its metrics; train it unless it is there."""
    config = spinenet.get_config("small")
    config.data.folder, config.seed, config.devices = _DATA.value, seed, 1
    config.detector_train.epochs = _EPOCHS.value
    if name == "resnet":
        file = folder / "resnet.json"
        file.write_text(RESNET.to_json())
        config.baseline = str(file)
    run = open_run(config, folder / f"{name}-{seed}")
    try:
        metrics = crnas.evaluate(run, "baseline")
    finally:
        run.workdir.release()
    print(f"{name}, seed {seed}: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}", flush=True)
    return run, metrics


if __name__ == "__main__":
    flags.mark_flag_as_required("data")
    app.run(main)
