"""What do the strategies of SpineNet's search find on blood cells, and is it better than the seed?

    python benchmarks/architecture_study.py --data=DATA --workdir=runs/study

`configs/search_spinenet.py:laptop`: evolution and random search with 32 candidates each,
REINFORCE with 16, to show that it runs. Candidates of one network are trained once for all. Then
the best network of evolution and of random search and the seed network are trained with the final
recipe and three seeds that the search has not used, and evaluated on `test`. The same command goes
on where it was stopped.
"""

import json
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
from absl import app, flags
from common import finish_jobs, report

from configs import search_spinenet
from crnas_jax import arch as archs
from crnas_jax.evaluation.average_precision import bootstrap_weights, match_tables
from crnas_jax.evaluation.matching import GroundTruth
from crnas_jax.evaluation.predict_split import split_metrics
from crnas_jax.evaluation.results import detections_from_results
from crnas_jax.experiments import workers
from crnas_jax.experiments.architecture_search import search_architecture
from crnas_jax.experiments.evidence import DETECTIONS
from crnas_jax.experiments.run import open_run
from crnas_jax.runtime.files import write_json
from crnas_jax.search import refine
from crnas_jax.settings import models as model_settings

_DATA = flags.DEFINE_string("data", None, "Folder of the blood cells.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study.", required=True)
_STRATEGIES = flags.DEFINE_list("strategies", ["evolution", "random", "reinforce"], "Searches.")
_COUNT = flags.DEFINE_integer("count", 32, "Candidates of evolution and random search.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Final trainings of each network.")
_ONLY_SEARCH = flags.DEFINE_bool("only_search", False, "Leave out the final trainings.")

_FIRST_SEED = 7000


def open_study(strategy: str):
    """Return the run of a strategy; all share the scores that are there."""
    config = search_spinenet.get_config("laptop")
    with config.unlocked():
        config.data.folder = _DATA.value
        config.search.architecture_strategy = strategy
        config.search.evaluations = _COUNT.value // 2 if strategy == "reinforce" else _COUNT.value
    root = pathlib.Path(_WORKDIR.value)
    run = open_run(config, root / strategy)
    run.record()
    journals = sorted(root.glob("*/journal.jsonl"), key=lambda path: path.stat().st_size)
    if journals and not (run.path / "journal.jsonl").exists():
        shutil.copy(journals[-1], run.path / "journal.jsonl")
    return run


def search(strategy: str) -> dict:
    """Return what a strategy found, its scores in order, and what its candidates took."""
    run = open_study(strategy)
    result = search_architecture(run)
    lines = (run.path / "journal.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    scores = {tuple(row["code"]): row for row in rows if row["search"] == "candidates"}
    proposals = (run.path / "architecture_search" / "proposals.jsonl").read_text().splitlines()
    graphs = [tuple(json.loads(line)["graph"]) for line in proposals][: result["proposals"]]
    own = [scores[graph] for graph in dict.fromkeys(graphs)]
    spent = [row["seconds_of"] for row in own if "seconds_of" in row]
    run.workdir.release()
    return {
        "arch": result["arch"],
        "score": result["score"],
        "scores": [round(scores[graph]["score"], 4) for graph in graphs],
        "networks": len(own),
        "rejected": result["rejected"],
        "failed": result["failed"],
        "seconds of candidates": round(sum(row["all"] for row in spent)),
        "share of compilation": round(
            sum(row["compilation"] for row in spent) / sum(row["all"] for row in spent), 3
        ),
    }


def train(run, networks: dict) -> dict:
    """Train networks with every seed; return their detections on `test` by name and seed."""
    folder = run.path.parent / "final"
    tasks = {
        f"{name}-{seed}": workers.task(run, run.config, arch, _FIRST_SEED + 1000 * seed, "test")
        for name, arch in networks.items()
        for seed in range(_SEEDS.value)
    }
    return {
        name: json.loads((folder / name / "attempts" / end["attempt"] / DETECTIONS).read_text())
        for name, end in finish_jobs(run, tasks, folder).items()
    }


def compare(source, names: list[str], detections: dict) -> dict:
    """Return AP of the networks on `test` with every seed, and differences to the first."""
    seeds, truth, ids = range(_SEEDS.value), GroundTruth.from_source(source), source.image_ids
    weights = bootstrap_weights(len(ids), 500, 0)

    def draws(results):
        found = detections_from_results(results, source.category_ids, ids)
        (table,) = match_tables(truth, found, ids)
        return table.bootstrap_ap(weights)

    metrics = {
        name: [split_metrics(source, detections[f"{name}-{seed}"]) for seed in seeds]
        for name in names
    }
    ap = np.array([[row["AP"] for row in metrics[name]] for name in names])
    drawn = np.array(
        [np.mean([draws(detections[f"{name}-{seed}"]) for seed in seeds], 0) for name in names]
    )
    ends = refine.intervals(ap, drawn)
    result = {}
    for row, name in enumerate(names):
        difference = refine.difference(ap, drawn, row)
        result[name] = {
            "AP": ap[row].round(4).tolist(),
            "mean": round(float(ap[row].mean()), 4),
            "ci95": ends[row].round(4).tolist(),
            "AP50": [round(values["AP50"], 4) for values in metrics[name]],
            "minus the seed network": round(difference.value, 4),
            "ci95 of the difference": [round(end, 4) for end in difference.interval],
            "probability of being better": difference.probability,
        }
    return result


def main(argv):
    """Run the searches and the comparison, and report them."""
    del argv
    found = {strategy: search(strategy) for strategy in _STRATEGIES.value}
    write_json(pathlib.Path(_WORKDIR.value) / "found.json", found)
    if _ONLY_SEARCH.value:
        return
    run = open_study("evolution")
    networks = {"seed": model_settings.baseline(run.config)}
    for strategy in ("evolution", "random"):
        networks[strategy] = archs.read(json.dumps(found[strategy]["arch"]))
    detections = train(run, networks)
    result = {"found": found, "networks": compare(run.sources["test"], list(networks), detections)}
    report("architecture_study", result)


if __name__ == "__main__":
    app.run(main)
