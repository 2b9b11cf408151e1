"""Does a supernet over connections rank networks as their own trainings do?

    python benchmarks/connections_ranking.py --data=DATA --workdir=runs/connections

The blocks of `configs/search_spinenet.py:laptop`'s seed network in their own order, on its proxy
task; the codes are connections drawn uniformly. Each is trained alone with two seeds, and scored
with the weights of one supernet, which is trained `--factor` times as long, with recalibrated
statistics. Stated: Kendall's tau, the regret of the first, and the best of the first four against
the best of four drawn at random, each with 95 % intervals over the codes; beside them the agreement
of the two seeds. The same command goes on where it was stopped.
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
from absl import app, flags
from common import finish_jobs, report

from configs import search_spinenet
from crnas_jax.analysis.ranking import agreement, spread
from crnas_jax.arch.graphs import canonical, graph_code
from crnas_jax.data.loader import read_with
from crnas_jax.experiments import workers
from crnas_jax.experiments.run import Run, open_run
from crnas_jax.models.supernet.connection_spec import ConnectionSupernetSpec
from crnas_jax.search.journal import Journal
from crnas_jax.search.supernet.scorer import SubnetScorer
from crnas_jax.settings import architectures as settings
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings import training as training_settings
from crnas_jax.training.job import TrainingJob
from crnas_jax.training.loop import train

_DATA = flags.DEFINE_string("data", None, "Folder of the blood cells.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study.", required=True)
_CODES = flags.DEFINE_integer("codes", 20, "Networks.")
_FACTOR = flags.DEFINE_float("factor", 5.0, "Length of the supernet's training over a network's.")

_SEEDS, _FIRST_SEED, _FEW = 2, 9000, 4


def draw_codes(spec: ConnectionSupernetSpec) -> list:
    """Draw the parents of networks that differ."""
    codes, graphs, step = [], set(), 0
    while len(codes) < _CODES.value:
        parents = spec.parents_of(spec.sample(1, step))
        graph = graph_code(canonical(spec.network(parents)))
        step += 1
        if graph not in graphs:
            graphs.add(graph)
            codes.append(parents)
    return codes


def train_alone(run: Run, config, networks: list) -> np.ndarray:
    """Return AP on `val` of networks that are trained alone, [networks, seeds]."""
    tasks = {
        f"{number}-{seed}": workers.task(run, config, arch, _FIRST_SEED + 1000 * seed, "val")
        for number, arch in enumerate(networks)
        for seed in range(_SEEDS)
    }
    ends = finish_jobs(run, tasks, run.path / "alone")
    values = [ends[name]["value"]["AP"] for name in tasks]
    return np.array(values).reshape(len(networks), _SEEDS)


def score_in_supernet(run: Run, config, spec: ConnectionSupernetSpec, codes: list) -> list[float]:
    """Train the supernet and return AP on `val` of its paths."""
    read_with(data_settings.read_options(config))
    options = training_settings.train_options(config, "detector_train")
    epochs = _FACTOR.value * options.epochs
    options = dataclasses.replace(options, epochs=epochs, num_devices=1)
    detector = model_settings.detector(config, spec, run.num_classes)
    rows, source = data_settings.detection_rows(config), run.sources["train"]
    job = TrainingJob("connections_supernet", detector, source, rows, options)
    folder = run.path / "supernet"
    variables = train(job, folder)
    scoring = search_settings.score_options(config, "recalibrate")
    journal = Journal(folder / "journal.jsonl", f"factor {_FACTOR.value:g}")
    sources = (source, run.sources["val"])
    scorer = SubnetScorer(detector, variables, *sources, scoring, journal, folder)

    def choice_of(code, batch):
        del batch
        pairs = zip(code[::2], code[1::2], strict=True)
        return spec.choice(tuple(pairs))

    flat = [tuple(parent for pair in code for parent in pair) for code in codes]
    return [score.value for score in scorer.score("connections", flat, choice_of)]


def few_against_random(scores, results, num_samples: int = 2000) -> dict:
    """Return the best mean result of the first four minus that of four drawn at random."""
    rng = np.random.default_rng(0)
    scores, results = np.asarray(scores), np.asarray(results).mean(1)

    def gain(rows):
        ranked = rows[np.argsort(-scores[rows], kind="stable")]
        drawn = rng.permuted(np.tile(rows, (200, 1)), axis=1)[:, :_FEW]
        return results[ranked[:_FEW]].max() - results[drawn].max(1).mean()

    rows = np.arange(len(scores))
    gains = [gain(rng.choice(rows, len(rows))) for _ in range(num_samples)]
    ends = np.percentile(gains, [2.5, 97.5])
    return {"gain": round(float(gain(rows)), 4), "ci95": ends.round(4).tolist()}


def main(argv):
    """Train and score the networks, and report how they agree."""
    del argv
    config = search_spinenet.get_config("laptop")
    with config.unlocked():
        config.data.folder = _DATA.value
    run = open_run(config, pathlib.Path(_WORKDIR.value))
    run.record()
    proxy = settings.proxy_config(config)
    arch = settings.proxy_arch(config, model_settings.baseline(config))
    spec = ConnectionSupernetSpec(arch, settings.space_options(config).window, draws="uniform")
    codes = draw_codes(spec)
    scores = score_in_supernet(run, proxy, spec, codes)
    results = train_alone(run, proxy, [spec.network(code) for code in codes])
    report(
        "connections_ranking",
        {
            "codes": len(codes),
            "factor": _FACTOR.value,
            "supernet": [round(score, 4) for score in scores],
            "alone": results.round(4).tolist(),
            "agreement": agreement(scores, results),
            "best of four minus random four": few_against_random(scores, results),
            "seeds": spread(results),
            "first seed ranks second": agreement(results[:, 0], results[:, 1]),
        },
    )


if __name__ == "__main__":
    app.run(main)
