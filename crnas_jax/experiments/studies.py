"""Studies of the searches themselves: does the supernet rank well, which strategy finds most?"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from crnas_jax.analysis import plots, ranking
from crnas_jax.errors import UserError
from crnas_jax.experiments import crnas, keys, steps
from crnas_jax.experiments.run import Run, journal_file
from crnas_jax.runtime import team
from crnas_jax.runtime.files import read_json, write_json
from crnas_jax.runtime.step_key import RANKING, seed_step
from crnas_jax.runtime.workdir import FORMAT
from crnas_jax.search.journal import Journal
from crnas_jax.search.strategies.build import STRATEGIES, strategy
from crnas_jax.search.trained import TrainedScores
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings import supernets as supernet_settings
from crnas_jax.spaces.space import Code, Space

LEVELS = tuple(STRATEGIES)
# Stream of the random sample of codes, beside those of the strategies.
_SAMPLE = 5


def ranking_study(
    run: Run,
    num_subnets: int,
    num_seeds: int,
    num_repeats: int = 2,
    against: str | pathlib.Path | None = None,
) -> dict:
    """Compare how the supernet ranks subnets with how training them alone does.

    A sample of allocations of the budget is scored in the stage supernet and trained alone, each
    with several seeds. Trained subnets are scored on the test split. Everything resumes.

    Args:
      run: the run; its stage supernet is trained if need be.
      num_subnets: allocations, drawn without replacement (all of the budget where it has fewer).
      num_seeds: trainings of each.
      num_repeats: scorings of each in the supernet; with other calibration images, if statistics
        are recalibrated.
      against: result of another study, with the allocations and the AP of their trainings; nothing
        is trained alone again.

    Returns:
      `rows` (code, `score` of each scoring, test `AP` of each training) and the statistics of
      `analysis.ranking`; also in `<workdir>/ranking/result.json`, with `scatter.png` and
      `scatter.svg` beside it.
    """
    run_settings.require_search(run.config, "stage")
    if num_subnets < 3 or num_seeds < 1 or num_repeats < 1:
        problem = f"{num_subnets} subnets, {num_seeds} seeds, {num_repeats} repeats"
        raise UserError("command line", "study", problem, "use at least 3, 1 and 1")
    budget = supernet_settings.budget(run.config)
    space = supernet_settings.stage_spaces(run.config)[budget]
    if against is None:
        codes, reached = sample_codes(space, num_subnets, run.options.seed), None
    else:
        codes, reached = team.decide(_recorded, against, space)
    if len(codes) < 3:
        problem = f"{len(codes)} allocations cost {budget:g} blocks"
        raise UserError("config", "supernet.grids", problem, "a ranking needs three or more")
    supernet = crnas.train_supernet(run, "stage")
    scores = [
        supernet.stage_scores(repeat, "ranking").score(codes) for repeat in range(num_repeats)
    ]
    if reached is None:
        alone = [trained_scores(run, seed).score(codes) for seed in range(num_seeds)]
        reached = np.transpose(alone).tolist()
    scores = np.transpose(scores).tolist()
    first = [row[0] for row in scores]
    result = {
        "format": FORMAT,
        "rows": [
            {"code": list(code), "score": score, "AP": ap}
            for code, score, ap in zip(codes, scores, reached, strict=True)
        ],
        "agreement": ranking.agreement(first, reached, seed=run.options.seed),
        "spread": ranking.spread(reached),
        "repeats": ranking.repeats(scores),
    }
    result = ranking.nan_to_none(result)
    folder = run.path / "ranking"
    write_json(folder / "result.json", result)
    team.decide(_draw, plots.ranking(result), folder / "scatter")
    return result


def _draw(chart, path):
    """Write a figure as PNG and SVG."""
    for suffix in (".png", ".svg"):
        plots.save(chart, path.with_suffix(suffix))


def trained_scores(run: Run, seed_index: int) -> TrainedScores:
    """Return the scores of allocations trained alone as the baseline is, on the test split.

    Args:
      run: the run.
      seed_index: number of the seed, 0 for the run's.
    """

    def detections_of(code):
        arch = model_settings.found_arch(run.config, code)
        network = keys.network_step(RANKING, arch)
        step = seed_step(network, seed_index)
        if "baseline" in run_settings.pretrained_networks(run.config):
            steps.pretrain(run, network, arch)
        detector = steps.train_network(run, step, arch)
        return steps.detections(run, step, detector, "test")

    return TrainedScores(
        f"trained, seed {seed_index}",
        detections_of,
        run.sources["test"],
        Journal(journal_file(run), keys.scores_key(run, RANKING, "test")),
        search_settings.score_options(run.config, "running").bootstrap_samples,
        run.options.seed,
    )


def _recorded(file, space):
    """Read the allocations of a study and the AP of their trainings."""
    content = read_json(file, "give the result of a ranking study")
    try:
        rows = {tuple(row["code"]): [float(ap) for ap in row["AP"]] for row in content["rows"]}
    except (KeyError, TypeError, ValueError) as error:
        remedy = "give the result of a ranking study"
        raise UserError(file, "rows", f"{type(error).__name__}: {error}", remedy) from error
    strangers = set(rows) - set(space.enumerate())
    if strangers:
        problem = f"{min(strangers)} is no {space.noun} on the grids"
        raise UserError(file, "rows", problem, "give the config of that study")
    if len({len(aps) for aps in rows.values()}) > 1:
        raise UserError(file, "rows", "not as many trainings of each", "complete that study")
    return list(rows), list(rows.values())


def strategy_study(run: Run, num_seeds: int, levels: Sequence[str] = LEVELS) -> dict:
    """Compare the strategies on the supernets of one config.

    A seed sets the order of the validation images, the statistics' images, and all that a strategy
    draws; the supernets are the same.

    Args:
      run: the run; what it needs is trained and searched if need be.
      num_seeds: number of seeds.
      levels: some of `LEVELS`.

    Returns:
      `stage`: for each seed and strategy the code found, its regret (AP of the best of all
      allocations minus its AP, both scored on all images) and its share of the image passes of the
      exhaustive search. `operation`: for each seed and strategy the code found at as many image
      passes as greedy search takes, and its AP as a full code. Image passes are those to score:
      with `search.bn` "recalibrate" every code but greedy search's has its statistics first. Also
      in `<workdir>/strategies/`, a file and a figure for each level.
    """
    for level in levels:
        run_settings.require_search(run.config, level)
    compare = {"stage": compare_stage_strategies, "operation": compare_operation_strategies}
    result = {}
    for level in levels:
        supernet = crnas.train_supernet(run, level)
        result[level] = [compare[level](run.config, supernet, seed) for seed in range(num_seeds)]
        content = {"format": FORMAT, level: result[level]}
        file = run.path / "strategies" / f"{level}.json"
        write_json(file, content)
        team.decide(_draw, plots.strategies(result[level]), file)
    return result


def compare_stage_strategies(config, supernet, seed: int) -> dict:
    """Run every stage strategy once; `supernet` gives `stage_scores(repeat, name)`."""
    space = supernet_settings.stage_spaces(config)[supernet_settings.budget(config)]

    def search(name, **options):
        scores = supernet.stage_scores(seed, f"stage, {name}")
        return _search(config, "stage", name, seed, space, scores, **options)

    exhaustive, race = search("exhaustive"), search("racing")
    values = dict(exhaustive["ranked"])
    num_images = exhaustive["image_passes"] // len(values)
    # As many subnets as have the race's image passes.
    evaluations = max(race["image_passes"] // num_images, 1)
    rows = {"exhaustive": exhaustive, "racing": race}
    for name in ("random", "evolution"):
        rows[name] = search(name, evaluations=evaluations)
    result = {}
    for name, row in rows.items():
        code = row["ranked"][0][0]
        result[name] = {
            "code": list(code),
            "AP": values[code],
            "regret": max(values.values()) - values[code],
            "image_passes": row["image_passes"],
            "share": row["image_passes"] / exhaustive["image_passes"],
        }
    return result


def compare_operation_strategies(config, supernet, seed: int) -> dict:
    """Run every operation strategy once; `supernet` gives `operation_scores` and `arch`."""
    space = supernet_settings.operation_space(config, supernet.arch)
    strategy_options = search_settings.strategy_options(config)
    evaluations = strategy("greedy", "operation", strategy_options).max_evaluations(space)
    full = supernet.operation_scores(False, seed, "operation, full codes")
    result = {}
    for name in STRATEGIES["operation"]:
        partial = strategy(name, "operation", strategy_options).scores_partial_codes
        scores = supernet.operation_scores(partial, seed, f"operation, {name}")
        options = {} if partial else {"evaluations": evaluations}
        row = _search(config, "operation", name, seed, space, scores, **options)
        code = row["ranked"][0][0]
        result[name] = {
            "code": list(code),
            "AP": full.score([code])[0],
            "image_passes": row["image_passes"],
        }
    return result


def _search(config, level, name, seed, space, scores, **changes):
    """Return a strategy's ranking and image passes."""
    options = search_settings.strategy_options(config, seed)
    options = dataclasses.replace(options, **changes)
    (ranked,) = strategy(name, level, options).run([space], scores)
    return {"ranked": ranked, "image_passes": scores.effort()["image_passes"]}


def sample_codes(space: Space, count: int, seed: int) -> list[Code]:
    """Draw codes without replacement, all where there are fewer; in the space's order."""
    codes = list(space.enumerate())
    rng = np.random.default_rng([seed, _SAMPLE])
    chosen = rng.permutation(len(codes))[:count]
    return [codes[index] for index in sorted(chosen)]
