"""Studies of the searches themselves: does the supernet rank well, which strategy finds most?"""

import copy
import json
from collections.abc import Sequence

import numpy as np

from crnas_jax.analysis import plots, ranking
from crnas_jax.errors import UserError
from crnas_jax.experiments.crnas import Pipeline
from crnas_jax.runtime.workdir import FORMAT, write_json
from crnas_jax.search.strategies.build import strategy
from crnas_jax.settings.run import Settings

LEVELS = ("stage", "operation")


def ranking_study(pipeline: Pipeline, subnets: int, seeds: int, repeats: int = 2) -> dict:
    """Does the supernet rank subnets as training them alone does?

    A sample of allocations of the budget is scored in the stage supernet and trained alone, each
    with several seeds. Every training is a folder of its own and is resumed like any other run.

    Args:
      pipeline: of the config; its stage supernet is trained if need be.
      subnets: how many, drawn without replacement (all of the budget when there are not so many).
      seeds: trainings of each.
      repeats: scorings of each; with other calibration images, if statistics are recalibrated.

    Returns:
      `rows` (code, `score` of each scoring, test `AP` of each training) and the statistics of
      `analysis.ranking`; also in `<workdir>/ranking/result.json`, with `scatter.png` beside it.
    """
    if subnets < 3 or seeds < 1 or repeats < 1:
        problem = f"{subnets} subnets, {seeds} seeds, {repeats} repeats"
        raise UserError("command line", "study", problem, "use at least 3, 1 and 1")
    settings, folder = pipeline.settings, pipeline.path / "ranking"
    codes = _sample(settings, subnets)
    if len(codes) < 3:
        problem = f"{len(codes)} allocations cost {settings.budget:g} blocks"
        raise UserError("config", "supernet.grids", problem, "a ranking needs three or more")
    searches = pipeline.searches("stage_supernet")
    scores = [searches.of_stages(repeat, "ranking").score(codes) for repeat in range(repeats)]
    reached = [[_train(pipeline, code, seed) for seed in range(seeds)] for code in codes]
    scores = np.transpose(scores).tolist()
    first = [row[0] for row in scores]
    found = {
        "format": FORMAT,
        "rows": [
            {"code": list(code), "score": score, "AP": ap}
            for code, score, ap in zip(codes, scores, reached, strict=True)
        ],
        "agreement": ranking.agreement(first, reached, seed=settings.config.seed),
        "spread": ranking.spread(reached),
        "repeats": ranking.repeats(scores),
    }
    found = ranking.without_nan(found)
    write_json(folder / "result.json", found)
    agreement = found["agreement"]
    plots.scatter(
        folder / "scatter.png",
        first,
        reached,
        "AP on val with inherited weights",
        "AP on test, trained alone",
        ["-".join(map(str, code)) for code in codes],
        f"Kendall tau {agreement['tau']:.2f}" if agreement["tau"] is not None else "",
    )
    return found


def strategy_study(pipeline: Pipeline, seeds: int, levels: Sequence[str] = LEVELS) -> dict:
    """The strategies beside each other on the supernets of one config.

    A seed is that of the order of the validation images, of the statistics' images, and of all that
    a strategy draws; the supernets are the same.

    Args:
      pipeline: of the config; what it needs is trained and searched if need be.
      seeds: how many.
      levels: of `LEVELS`.

    Returns:
      `stage`: for each seed and strategy the code found, its regret (AP of the best of all
      allocations minus its own, both scored on all images) and its share of the image passes of the
      exhaustive search. `operation`: for each seed and strategy the code found at as many image
      passes as greedy search takes, and its AP as a full code. Image passes are those to score:
      with `search.bn` "recalibrate" every code but greedy search's has its statistics first. Also
      in `<workdir>/strategies/`, a file for each level.
    """
    found = {}
    if "stage" in levels:
        searches = pipeline.searches("stage_supernet")
        found["stage"] = [_stage_strategies(searches, seed) for seed in range(seeds)]
    if "operation" in levels:
        depths = tuple(pipeline.search_stage()["arch"]["depths"])
        searches = pipeline.searches("operation_supernet")
        found["operation"] = [_operation_strategies(searches, depths, s) for s in range(seeds)]
    for level, rows in found.items():
        content = {"format": FORMAT, level: rows}
        write_json(pipeline.path / "strategies" / f"{level}.json", content)
    return found


def _stage_strategies(searches, seed):
    settings, found = searches.settings, {}
    whole = _run(searches.of_stages(seed, "stage, exhaustive"), settings, "exhaustive", seed)
    worth = dict(whole["ranked"])
    race = _run(searches.of_stages(seed, "stage, halving"), settings, "halving", seed)
    images = whole["image_passes"] // len(worth)
    # As many subnets as have the image passes of halving.
    number = max(race["image_passes"] // images, 1)
    rows = {"exhaustive": whole, "halving": race}
    for name in ("random", "evolution"):
        search = searches.of_stages(seed, f"stage, {name}")
        rows[name] = _run(search, settings, name, seed, evaluations=number)
    for name, row in rows.items():
        code = row["ranked"][0][0]
        found[name] = {
            "code": list(code),
            "AP": worth[code],
            "regret": max(worth.values()) - worth[code],
            "image_passes": row["image_passes"],
            "share": row["image_passes"] / whole["image_passes"],
        }
    return found


def _operation_strategies(searches, depths, seed):
    settings, found = searches.settings, {}
    space = settings.operation_space(depths)
    number = space.evaluations(settings.config.search.keep)
    full = searches.of_operations(depths, False, seed, "operation, full codes")
    for name in ("greedy", "random", "evolution"):
        search = searches.of_operations(depths, name == "greedy", seed, f"operation, {name}")
        options = {} if name == "greedy" else {"evaluations": number}
        row = _run(search, settings, name, seed, space, (None,), **options)
        code = row["ranked"][0][0]
        found[name] = {
            "code": list(code),
            "AP": full.score([code])[0],
            "image_passes": row["image_passes"],
        }
    return found


def _run(search, settings, name, seed, space=None, budgets=None, **options):
    """A strategy's ranking and image passes."""
    run = strategy(name, settings.config.search)
    space, budgets = space or settings.stage_space, budgets or (settings.budget,)
    ranked = run(space, budgets, search, settings.config.seed + seed, **options)
    passes = search.scorer.journal.image_passes(search.name)
    return {"ranked": ranked[budgets[0]], "image_passes": passes}


def _sample(settings, number):
    codes = list(settings.stage_space.enumerate(settings.budget))
    rng = np.random.default_rng([settings.config.seed, 5])
    chosen = rng.permutation(len(codes))[:number]
    return [codes[index] for index in sorted(chosen)]


def _train(pipeline, code, seed):
    """Test AP of one allocation, trained alone."""
    name = "-".join(map(str, code)) + f"-seed{seed}"
    arch = pipeline.settings.arch(code)
    folder = pipeline.path / "ranking" / name
    file = pipeline.path / "ranking" / f"{name}.json"
    write_json(file, json.loads(arch.to_json()))
    config = copy.deepcopy(pipeline.settings.config)
    with config.unlocked():
        config.baseline, config.seed = str(file), seed
        config.data.val = ""  # nothing is searched
    alone = Pipeline(Settings(config), folder)
    try:
        return alone.evaluate("baseline")["AP"] or 0.0
    finally:
        alone.release()
