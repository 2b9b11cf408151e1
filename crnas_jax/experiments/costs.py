"""What a run will cost, counted from its config: steps, networks, and trainings of the baseline."""

import dataclasses

from crnas_jax.data import loader
from crnas_jax.experiments.run import Run
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings import supernets as supernet_settings
from crnas_jax.settings import training as training_settings

# A training step passes over an image three times as long as inference: forward, and twice back.
_PASSES = 3
# A block of a supernet that takes fewer steps than this share of a final network's ranks badly.
_FEW_STEPS = 1 / 5


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a part of a run.

    Attributes:
      text: what is done, for people.
      trainings: cost in multiples of a training of the baseline with the full schedule; at most.
    """

    text: str
    trainings: float


def num_steps(run: Run, recipe: str, share: float = 1.0) -> int:
    """Return the steps of a training on detection; `share` is that of its epochs."""
    options = training_settings.train_options(run.config, recipe)
    plan = loader.Plan(run.sources["train"].sizes, options.batch_size, options.seed)
    return plan.num_steps(options.epochs * share)


def costs(run: Run) -> list[Cost]:
    """List what the whole procedure costs, in its order."""
    config, refine = run.config, run_settings.refine_options(run.config)
    parts = []
    for level, recipe in (("stage", "stage_train"), ("operation", "operation_train")):
        steps = num_steps(run, recipe)
        share = steps * _batch_size(run, recipe) / _full_images(run)
        parts.append(Cost(f"{level} supernet, {steps} steps", _supernet_ratio(run) * share))
        parts.append(_search(run, level))
        count = refine.num_finalists(level)
        if count:
            # The baseline's allocation, and the code of ones, which has been trained before.
            num_networks = count + (level == "stage")
            steps = num_steps(run, "detector_train", refine.short)
            text = f"up to {num_networks} finalists, {steps} steps each"
            parts.append(Cost(text, num_networks * steps / num_steps(run, "detector_train")))
    num_networks = len(run_settings.compared_networks(config))
    text = f"up to {num_networks} networks"
    if refine.num_seeds > 1:
        text = f"{text} with {refine.num_seeds} seeds"
    text = f"{text}, {num_steps(run, 'detector_train')} steps each"
    return [*parts, Cost(text, num_networks * refine.num_seeds)]


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
    options = training_settings.train_options(run.config, "pretrain")
    num_images = options.epochs * len(run.classification_sources["train"])
    return (
        "finalists are not trained on classification first; for each of them that would be "
        f"{num_images:,.0f} more image passes"
    )


def _search(run, level):
    config = run.config
    strategy = search_settings.search_strategy(config, level)
    options = search_settings.score_options(config, search_settings.search_options(config).bn)
    if level == "stage":
        spaces = list(supernet_settings.stage_spaces(config).values())
        kind = "allocations"
    else:
        depths = model_settings.baseline(config).depths
        spaces = [supernet_settings.operation_space(config, depths)]
        kind = "partial codes" if strategy.scores_partial_codes else "codes"
    plan, num_batches = options.score_plan(run.sources["val"])
    num_images = len(plan.first_indices(num_batches))
    if options.bn == "recalibrate" and not strategy.scores_partial_codes:
        num_images += options.calibration_plan(run.sources["train"])[1] * options.batch_size
    count = sum(map(strategy.max_evaluations, spaces))
    ratio = _supernet_ratio(run) / _PASSES
    text = f"{level} search, {count} {kind} of {num_images} images"
    return Cost(text, ratio * count * num_images / _full_images(run))


def _batch_size(run, recipe):
    return training_settings.train_options(run.config, recipe).batch_size


def _full_images(run):
    """Return the images that a training of the baseline passes over."""
    return num_steps(run, "detector_train") * _batch_size(run, "detector_train")


def _supernet_ratio(run):
    """Return the multiply-adds of a path, at the baseline's depths, over those of the baseline."""
    arch = model_settings.baseline(run.config)
    widths = supernet_settings.stage_supernet(run.config).widths
    canvas = data_settings.image_size(run.config).canvas(portrait=False)
    path, network = (
        model_settings.detector_cost(run.config, a, canvas, run.num_classes).flops
        for a in (dataclasses.replace(arch, widths=widths), arch)
    )
    return path / network
