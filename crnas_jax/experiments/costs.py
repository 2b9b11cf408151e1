"""What a run will cost, counted from its config: steps, networks, and trainings of the baseline."""

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict

from crnas_jax.arch.cost.backbones import backbone_cost
from crnas_jax.data import loader
from crnas_jax.experiments.run import Run
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.runtime.step_key import seed_step
from crnas_jax.search.supernet.scorer import ScoreOptions
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings import supernets as supernet_settings
from crnas_jax.settings import training as training_settings
from crnas_jax.settings.run import COMPARED
from crnas_jax.spaces.space import Space

# A training step passes over an image three times as long as inference: forward, and twice back.
_PASSES = 3
# A block of a supernet that takes fewer steps than this share of a final network's ranks badly.
_FEW_STEPS = 1 / 5


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a part of a run.

    Attributes:
      text: what is done, for people.
      trainings: cost in multiples of a training of the baseline with the full schedule, from
        multiply-adds of the baseline's depths.
      steps: patterns of the folders of the steps that it is for (`fnmatch`).
      count: number of those steps, at most.
    """

    text: str
    trainings: float
    steps: tuple[str, ...]
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Subnets that a search scores in one way.

    Attributes:
      count: number of subnets, at most.
      kind: what they are, for people.
      options: how they are scored.
    """

    count: int
    kind: str
    options: ScoreOptions

    def num_images(self, run: Run) -> tuple[int, int]:
        """Return the images that each subnet passes: to be scored, and for its statistics."""
        plan, num_batches = self.options.score_plan(run.sources["val"])
        scored = len(plan.first_indices(num_batches))
        if self.options.bn != "recalibrate":
            return scored, 0
        num_batches = self.options.calibration_plan(run.sources["train"])[1]
        return scored, num_batches * self.options.batch_size


def scorings(run: Run, level: str, spaces: Sequence[Space]) -> list[Scoring]:
    """List what a search scores.

    Args:
      run: the run.
      level: `stage` or `operation`.
      spaces: the spaces that are searched.
    """
    config, options = run.config, search_settings.search_options(run.config)
    strategy = search_settings.search_strategy(config, level)
    partial = strategy.scores_partial_codes
    kind = "allocations" if level == "stage" else "partial codes" if partial else "codes"
    # Completions live for one mini-batch, and so do their statistics.
    bn = "batch" if partial else options.bn
    count = sum(map(strategy.max_evaluations, spaces))
    parts = [Scoring(count, kind, search_settings.score_options(config, bn))]
    if level == "operation" and options.rescore:
        # The code of ones is among them; full codes have their scores already.
        again = search_settings.strategy_options(config).beam + 1 if partial else 1
        again_options = search_settings.score_options(config, options.bn)
        parts.append(Scoring(again, "of its last codes again", again_options))
    return parts


def num_steps(run: Run, recipe: str, share: float = 1.0) -> int:
    """Return the steps of a training on detection; `share` is that of its epochs."""
    return num_steps_of(run, run.config, recipe, share)


def num_steps_of(
    run: Run, config: ConfigDict, recipe: str = "detector_train", share: float = 1.0
) -> int:
    """Return the steps of a training as `num_steps`, of another config than the run's."""
    options = training_settings.train_options(config, recipe)
    plan = loader.Plan(run.sources["train"].sizes, options.batch_size, options.seed)
    return plan.num_steps(options.epochs * share)


def costs(run: Run) -> list[Cost]:
    """List what the whole procedure costs, in its order."""
    config, refine = run.config, run_settings.refine_options(run.config)
    baseline, levels = model_settings.baseline(config), run_settings.levels(config)
    spaces = {"operation": [supernet_settings.operation_space(config, baseline)]}
    if "stage" in levels:
        spaces["stage"] = list(supernet_settings.stage_spaces(config).values())
    parts = _pretrainings(run)
    for level in levels:
        recipe = f"{level}_train"
        steps = num_steps(run, recipe)
        share = steps * _batch_size(run, recipe) / _full_images(run)
        text = f"{level} supernet, {steps} steps"
        parts.append(Cost(text, _supernet_ratio(run) * share, (f"{level}_supernet",)))
        parts += [_search(run, level, scoring) for scoring in scorings(run, level, spaces[level])]
        count = refine.num_finalists(level)
        if count:
            # The network that the first search begins with; a later one's is trained before.
            num_networks = count + (level == levels[0])
            steps = num_steps(run, "detector_train", refine.short)
            text = f"up to {num_networks} finalists, {steps} steps each"
            trainings = num_networks * steps / num_steps(run, "detector_train")
            # Those with dilations, whose names have them, are the operation search's.
            pattern = "finalists/*" if level == levels[0] else "finalists/*_*"
            parts.append(Cost(text, trainings, (pattern,), num_networks))
    num_networks = len(run_settings.compared_networks(config))
    text = f"up to {num_networks} networks"
    if refine.num_seeds > 1:
        text = f"{text} with {refine.num_seeds} seeds"
    text = f"{text}, {num_steps(run, 'detector_train')} steps each"
    num_trainings = num_networks * refine.num_seeds
    names = tuple(seed_step(n, s) for n in COMPARED for s in range(refine.num_seeds))
    parts.append(Cost(text, num_trainings, names, num_trainings))
    return [*parts, _detection(run, num_trainings)]


def block_steps(run: Run) -> tuple[str, str]:
    """Say how many steps train a block of the stage supernet, and warn where they are few.

    Returns:
      The text, and a warning where finalists are asked for and blocks take few steps; else "".
    """
    final = num_steps(run, "detector_train")
    steps = num_steps(run, "stage_train")
    shares = block_shares(supernet_settings.stage_supernet(run.config))
    mean = steps * sum(shares) / len(shares)
    text = f"{steps * min(shares):.0f} to {steps * max(shares):.0f} steps for a block of the "
    text += f"stage supernet, {mean:.0f} on average; {final} in the final recipe"
    if mean >= _FEW_STEPS * final or not run_settings.refine_options(run.config).finalists:
        return text, ""
    return text, (
        f"a block of the stage supernet takes {mean:.0f} steps on average, below a fifth of the "
        f"{final} of the final recipe: such supernets rank badly; lengthen stage_train, shorten "
        "supernet.grids or set supernet.stage_sharing to 'prefix'"
    )


def block_shares(spec: SupernetSpec) -> list[float]:
    """Return for every block of a supernet the share of the steps that train it."""
    shares = []
    for grid in spec.grids:
        if spec.stage_sharing == "prefix":
            shares += [sum(d > place for d in grid) / len(grid) for place in range(max(grid))]
        else:
            shares += [1 / len(grid)] * sum(grid)
    return shares


def pretraining(run: Run) -> str:
    """Say what classification before detection would cost for finalists, which do without."""
    if not run_settings.refine_options(run.config).finalists:
        return ""
    if "searched" not in run_settings.pretrained_networks(run.config):
        return ""
    return (
        "finalists are not trained on classification first; for each of them that would be "
        f"{_pretraining_images(run):,.0f} more image passes"
    )


def _pretrainings(run):
    """List what classification before detection costs, for each network that has it."""
    config = run.config
    networks = run_settings.pretrained_networks(config)
    if not networks:
        return []
    num_images = _pretraining_images(run)
    side = data_settings.classification_data_options(config).size
    arch, parts = model_settings.baseline(config), []
    for network in networks:
        backbone = _path(run) if network.endswith("supernet") else arch
        share = backbone_cost(backbone, (side, side)).flops / _detector_flops(run, arch)
        trainings = share * num_images / _full_images(run)
        text = f"classification, {network}, {num_images:,.0f} images"
        parts.append(Cost(text, trainings, (f"{network}/pretrain",)))
    return parts


def _pretraining_images(run):
    """Return the images that classification before detection passes over, for one network."""
    epochs = training_settings.train_options(run.config, "pretrain").epochs
    return epochs * len(run.classification_sources["train"])


def _search(run, level, scoring):
    num_images = sum(scoring.num_images(run))
    ratio = _supernet_ratio(run) / _PASSES
    text = f"{level} search, {scoring.count} {scoring.kind}, {num_images} images each"
    trainings = ratio * scoring.count * num_images / _full_images(run)
    return Cost(text, trainings, (f"{level}_search",))


def _detection(run, num_trainings):
    """Return the cost of what follows trainings: statistics, detection on val and on test."""
    refine = run_settings.refine_options(run.config)
    num_finalists = sum(map(refine.num_finalists, run_settings.levels(run.config)))
    num_finalists += bool(num_finalists)
    splits = ("val", "test") if refine.finalists else ("test",)
    num_images = num_finalists * len(run.sources["val"])
    num_images += num_trainings * sum(len(run.sources[split]) for split in splits)
    statistics = training_settings.calibration_images(run.config)
    num_images += (num_finalists + num_trainings) * min(statistics, len(run.sources["train"]))
    text = f"detection on {' and '.join(splits)}"
    text = f"{'statistics, ' if statistics else ''}{text}, up to {num_images} images"
    patterns = tuple(f"*/{split}" for split in splits)
    count = num_finalists + num_trainings * len(splits)
    return Cost(text, num_images / _PASSES / _full_images(run), patterns, count)


def _batch_size(run, recipe):
    return training_settings.train_options(run.config, recipe).batch_size


def _full_images(run):
    """Return the images that a training of the baseline passes over."""
    return num_steps(run, "detector_train") * _batch_size(run, "detector_train")


def _supernet_ratio(run):
    """Return the multiply-adds of a path, at the baseline's depths, over those of the baseline."""
    return _detector_flops(run, _path(run)) / _detector_flops(
        run, model_settings.baseline(run.config)
    )


def _path(run):
    """Return the baseline at the supernet's widths."""
    baseline = model_settings.baseline(run.config)
    if not run_settings.has_stages(run.config):
        return baseline
    widths = supernet_settings.stage_supernet(run.config).widths
    return dataclasses.replace(baseline, widths=widths)


def _detector_flops(run, arch):
    canvas = data_settings.image_size(run.config).canvas(portrait=False)
    return model_settings.detector_cost(run.config, arch, canvas, run.num_classes).flops
