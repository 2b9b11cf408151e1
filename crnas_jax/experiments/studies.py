"""Studies of the searches themselves: does the supernet rank well, which strategy finds most?"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from crnas_jax.analysis import plots, ranking
from crnas_jax.errors import UserError
from crnas_jax.experiments import crnas, steps
from crnas_jax.experiments.keys import key_of
from crnas_jax.experiments.run import Run, journal_file
from crnas_jax.runtime.files import read_json, write_json
from crnas_jax.runtime.step_key import StepKey
from crnas_jax.runtime.workdir import FORMAT, repeats_error
from crnas_jax.search.journal import Journal
from crnas_jax.search.strategies.build import STRATEGIES, strategy
from crnas_jax.search.trained import TrainedScoreOptions, TrainedScores
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings.step_keys import TRAINED_SCORES
from crnas_jax.spaces.space import Code, Space
from crnas_jax.training.job import TrainingJob

LEVELS = tuple(STRATEGIES)
# Stream of the random sample of codes, beside those of the strategies.
_SAMPLE = 5


def ranking_study(run: Run, num_subnets: int, num_seeds: int, num_repeats: int = 2) -> dict:
    """Compare how the supernet ranks subnets with how training them alone does.

    A sample of allocations of the budget is scored in the stage supernet and trained alone, each
    with several seeds. Trained subnets are scored on the test split. Everything resumes.

    Args:
      run: the run; its stage supernet is trained if need be.
      num_subnets: allocations, drawn without replacement (all of the budget where it has fewer).
      num_seeds: trainings of each.
      num_repeats: scorings of each in the supernet; with other calibration images, if statistics
        are recalibrated.

    Returns:
      `rows` (code, `score` of each scoring, test `AP` of each training) and the statistics of
      `analysis.ranking`; also in `<workdir>/ranking/result.json`, with `scatter.png` beside it.
    """
    run_settings.require_search(run.config)
    if num_subnets < 3 or num_seeds < 1 or num_repeats < 1:
        problem = f"{num_subnets} subnets, {num_seeds} seeds, {num_repeats} repeats"
        raise UserError("command line", "study", problem, "use at least 3, 1 and 1")
    budget = search_settings.budget(run.config)
    space = search_settings.stage_spaces(run.config)[budget]
    codes = sample_codes(space, num_subnets, run.options.seed)
    if len(codes) < 3:
        problem = f"{len(codes)} allocations cost {budget:g} blocks"
        raise UserError("config", "supernet.grids", problem, "a ranking needs three or more")
    supernet = crnas.train_supernet(run, "stage")
    scores = [
        supernet.stage_scores(repeat, "ranking").score(codes) for repeat in range(num_repeats)
    ]
    reached = [trained_scores(run, seed).score(codes) for seed in range(num_seeds)]
    scores, reached = np.transpose(scores).tolist(), np.transpose(reached).tolist()
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
    tau = result["agreement"]["tau"]
    plots.scatter(
        folder / "scatter.png",
        first,
        reached,
        "AP on val with inherited weights",
        "AP on test, trained alone",
        ["-".join(map(str, code)) for code in codes],
        f"Kendall tau {tau:.2f}" if tau is not None else "",
    )
    return result


def trained_scores(run: Run, seed: int) -> TrainedScores:
    """Return the scores of allocations trained alone with a seed, on the test split."""
    scoring = search_settings.score_options(run.config, "running")
    options = TrainedScoreOptions(
        scoring.batch_size,
        scoring.size,
        scoring.bootstrap_samples,
        run.options.seed,
        run.options.num_devices,
    )
    is_pretrained = "baseline" in run_settings.pretrained_networks(run.config)
    inputs = {"pretrained": str(is_pretrained)}
    if "baseline" in run.init_digests:
        inputs["init_from"] = run.init_digests["baseline"]
    step_key = key_of(run, TRAINED_SCORES, inputs)
    key, folder = step_key.digest, run.path / "ranking" / step_key.digest
    _require_no_repeats(run, folder, step_key)
    return TrainedScores(
        f"trained, seed {seed}",
        functools.partial(_jobs_of, run, folder, seed),
        run.sources["test"],
        options,
        Journal(journal_file(run), key),
        folder,
    )


def _require_no_repeats(run, folder, key):
    """Ask before networks are trained again that were trained with other fields."""
    others = [path for path in folder.parent.glob("*/key.json") if path.parent != folder]
    if not folder.exists():
        if others and not run.workdir.redo:
            latest = max(others, key=lambda path: path.stat().st_mtime)
            changes = key.changes(StepKey.from_json(read_json(latest)))
            raise repeats_error(run.path, f"the study's trainings ({', '.join(changes)})")
        write_json(folder / "key.json", {"format": FORMAT, **key.to_json()})


def _jobs_of(run: Run, folder: pathlib.Path, seed: int, code: Code) -> list[TrainingJob]:
    """List the trainings of an allocation, which starts and is trained as the baseline is."""
    arch = model_settings.found_arch(run.config, code)
    name = "-".join(map(str, code)) + f"-seed{seed}"
    start, jobs = run_settings.init_from(run.config)["baseline"], []
    if "baseline" in run_settings.pretrained_networks(run.config):
        jobs.append(steps.classification_job(run, f"{name}/pretrain", arch, start))
        start = folder / name / "pretrain"
    jobs.append(steps.detection_job(run, name, "baseline", arch, start))
    return [_with_seed(job, seed) for job in jobs]


def _with_seed(job, seed):
    return dataclasses.replace(job, options=dataclasses.replace(job.options, seed=seed))


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
      in `<workdir>/strategies/`, a file for each level.
    """
    run_settings.require_search(run.config)
    compare = {"stage": compare_stage_strategies, "operation": compare_operation_strategies}
    result = {}
    for level in levels:
        supernet = crnas.train_supernet(run, level)
        result[level] = [compare[level](run.config, supernet, seed) for seed in range(num_seeds)]
        content = {"format": FORMAT, level: result[level]}
        write_json(run.path / "strategies" / f"{level}.json", content)
    return result


def compare_stage_strategies(config, supernet, seed: int) -> dict:
    """Run every stage strategy once; `supernet` gives `stage_scores(repeat, name)`."""
    space = search_settings.stage_spaces(config)[search_settings.budget(config)]

    def search(name, **options):
        scores = supernet.stage_scores(seed, f"stage, {name}")
        return _search(config, "stage", name, seed, space, scores, **options)

    exhaustive, race = search("exhaustive"), search("halving")
    values = dict(exhaustive["ranked"])
    num_images = exhaustive["image_passes"] // len(values)
    # As many subnets as have halving's image passes.
    evaluations = max(race["image_passes"] // num_images, 1)
    rows = {"exhaustive": exhaustive, "halving": race}
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
    """Run every operation strategy once; `supernet` gives `operation_scores` and `depths`."""
    space = search_settings.operation_space(config, supernet.depths)
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
