"""The plan of a run: what will be done, printed before work starts."""

from collections.abc import Iterable

import jax

from crnas_jax.arch.cost.backbones import backbone_cost
from crnas_jax.data.checks import cap_notes
from crnas_jax.experiments import architecture_plan, costs
from crnas_jax.experiments.repeats import repeats
from crnas_jax.experiments.run import Run
from crnas_jax.export.detector import DESCRIPTION
from crnas_jax.export.weights import SUPERNET, weights_folder
from crnas_jax.models.backbones.staged import FreezeOptions
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import run as run_settings
from crnas_jax.settings import search as search_settings
from crnas_jax.settings import supernets as supernet_settings


def plan(run: Run, goals: Iterable[str] = ()) -> str:
    """Return what will be done as text; `goals` are the steps of `step_keys` that are wanted."""
    config, arch = run.config, model_settings.baseline(run.config)
    precision = model_settings.detector(config, arch, num_classes=1).precision
    if run.sources:
        canvas = data_settings.image_size(config).canvas(portrait=False)
        cost = model_settings.detector_cost(config, arch, canvas, run.num_classes)
        neck = model_settings.neck_options(config).kind
        neck = "" if neck == "none" else f" on {neck}"
        network = f"in a {model_settings.detector_kind(config)}{neck}"
    else:
        side = data_settings.classification_data_options(config).size
        cost, network = backbone_cost(arch, (side, side)), "backbone of a classifier"
    size = f"{cost.flops / 1e9:.2f} G multiply-adds, {cost.params / 1e6:.2f} M parameters"
    sizes = ", ".join(
        f"{split} {len(source)} images with {len(source.coco['annotations'])} objects"
        for split, source in run.sources.items()
    )
    devices = jax.devices()[: run.options.num_devices]
    lines = []
    if run.sources:
        lines.append(f"data        {sizes}; {run.num_classes} classes")
    lines.append(f"baseline    {config.baseline} {arch.summary}, {network}: {size}")
    if "val" in run.sources:
        has_supernets = run_settings.levels(config)
        lines += _search_lines(run, arch) if has_supernets else architecture_plan.lines(run)
    elif "train" in run.sources:
        epochs, images = config.detector_train.epochs, config.detector_train.batch_size
        text = f"{costs.num_steps(run, 'detector_train')} of {images} images in {epochs:g} epochs"
        lines.append(f"steps       detector_train: {text}")
    lines += [
        f"devices     {', '.join(str(device) for device in devices)}; {precision}",
        f"workdir     {run.path}",
    ]
    lines += [f"repeats     {step}: {why}" for step, why in repeats(run, goals).items()]
    return "\n".join(lines + [f"note        {note}" for note in _notes(run, arch)])


def _search_lines(run, arch):
    options = search_settings.search_options(run.config)
    has_stages = run_settings.has_stages(run.config)
    strategy = search_settings.search_strategy(run.config, "operation")
    space = supernet_settings.operation_space(run.config, arch)
    codes = f"{space.count()} codes of dilations, {strategy.name}"
    if has_stages:
        spaces = supernet_settings.stage_spaces(run.config).items()
        sizes = " and ".join(f"{b:g} blocks: {space.count()} allocations" for b, space in spaces)
        yield f"budget      {sizes}, {options.stage_strategy}; then {codes}"
    else:
        yield f"dilations   {codes}: one of {space.dilations} for each {space.tie}"
    limits = ("max_flops", "max_params", "max_latency")
    bounds = [
        f"search.{name} {getattr(options, name):g}" for name in limits if getattr(options, name)
    ]
    if bounds:
        yield f"limits      {', '.join(bounds)}"
    parts = costs.costs(run)
    for number, part in enumerate(parts):
        yield f"{'' if number else 'steps':12}{part.text:65}{part.trainings:7.2f}"
    total = f"in trainings of the baseline, about {sum(part.trainings for part in parts):.1f}"
    yield f"{'':12}{total}"
    if has_stages:
        yield f"blocks      {costs.block_steps(run)[0]}"


def _notes(run, arch):
    config = run.config
    if model_settings.detector(config, arch, num_classes=1).freeze != FreezeOptions():
        starts = run_settings.init_from(config)
        started = {name for name, start in starts.items() if start}
        started |= set(run_settings.pretrained_networks(config))
        if run_settings.starts_from_stage_supernet(config):
            started.add("operation_supernet")  # as the stage supernet does
        fresh = sorted(set(run_settings.NETWORKS) - started)
        if fresh:
            yield (
                "without config.init_from, frozen layers keep their random weights: in "
                f"{', '.join(fresh)}"
            )
    budget = 0 if arch.has_pyramid else run.options.budget
    if budget and budget != supernet_settings.stage_cost(arch):
        yield "the budget differs from the baseline's: the two networks will differ in FLOPs"
    if "val" in run.sources:
        if run_settings.has_stages(config):
            yield from filter(None, costs.block_steps(run)[1:])
        if run_settings.levels(config):
            yield from filter(None, [costs.pretraining(run)])
        yield from _starts_note(config)
    yield from run.notes
    if run.sources:
        options = data_settings.data_options(config)
        room = "each step draws as many as a batch has room for (data.max_objects)"
        yield from _of("train", cap_notes(run.sources["train"], options.max_objects, room))
        max_detections = model_settings.detector_options(config, 1).max_detections
        for split in run.sources.keys() - {"train"}:
            room = "a detector returns no more detections than that"
            yield from _of(split, cap_notes(run.sources[split], max_detections, room))


def _starts_note(config):
    """Warn where finalists and the baseline do not start alike."""
    starts = run_settings.init_from(config)
    kinds = {name: _start_kind(starts[name]) for name in ("baseline", "searched")}
    pretrained = run_settings.pretrained_networks(config)
    for name in kinds:
        if name in pretrained:
            kinds[name] = f"{kinds[name]}, then classification"
    if run_settings.refine_options(config).finalists and len(set(kinds.values())) > 1:
        yield (
            f"the baseline starts from {kinds['baseline']}, all other networks from "
            f"{kinds['searched']}: their difference will be that of the starts too (init_from, "
            "pretrain.networks)"
        )


def _start_kind(start):
    if not start:
        return "random weights"
    folder = weights_folder(start).parent
    if (folder / SUPERNET).exists():
        return "a supernet's weights"
    return "a detector's weights" if (folder / DESCRIPTION).exists() else "a backbone's weights"


def _of(split, notes):
    return [f"{split}: {note}" for note in notes]
