"""What a run tells people: its plan before it starts, its result as a table."""

import collections
import math

import jax

from crnas_jax.arch.cost.detectors import backbone
from crnas_jax.settings.run import COMPARED, Settings


def plan(settings: Settings, sources: dict, workdir) -> str:
    """What will be done.

    Args:
      settings: of the run.
      sources: splits by name.
      workdir: of the run.
    """
    classes = len(sources["train"].class_names) if sources else 0
    if sources:
        cost = settings.cost(settings.baseline, classes)
        network = f"in a {settings.config.detector.kind} on {settings.config.detector.neck}"
    else:
        side = settings.config.pretrain.data.size
        cost, network = backbone(settings.baseline, (side, side)), "backbone of a classifier"
    size = f"{cost.flops / 1e9:.2f} G multiply-adds, {cost.params / 1e6:.2f} M parameters"
    baseline = settings.baseline
    sizes = ", ".join(f"{split} {len(source)}" for split, source in sources.items())
    devices = jax.devices()[: settings.devices]
    rows = [
        *([f"data        {sizes} images; {classes} classes"] if sources else []),
        f"baseline    {settings.config.baseline} {baseline.depths}, {network}: {size}",
        *(_searches(settings) if "val" in sources else ()),
        f"devices     {', '.join(str(device) for device in devices)}; {settings.config.precision}",
        f"workdir     {workdir}",
    ]
    return "\n".join(rows + [f"note        {note}" for note in _notes(settings, sources)])


def _searches(settings):
    fields, space = settings.config.search, settings.stage_space
    operations = settings.operation_space(settings.baseline.depths)
    sizes = " and ".join(f"{b:g} blocks: {space.count(b)} allocations" for b in settings.budgets)
    codes = f"{fields.evaluations} operation codes"
    if fields.operation_strategy == "greedy":
        codes = f"{operations.evaluations(fields.keep)} partial operation codes"
    yield f"budget      {sizes}, {fields.stage_strategy}; then {codes}, {fields.operation_strategy}"
    limits = [name for name in ("max_flops", "max_params", "max_latency") if fields[name]]
    if limits:
        yield f"limits      {', '.join(f'search.{name} {fields[name]:g}' for name in limits)}"
    yield (
        "steps       stage supernet, stage search, operation supernet, operation search, "
        "searched network, baseline, test"
    )


def _notes(settings, sources):
    config = settings.config
    if config.detector.freeze_at or config.detector.freeze_norm:
        started = [name for name, start in config.initial.items() if start]
        random = sorted(set(config.initial) - {*started, *config.pretrain.networks})
        if random:
            names = ", ".join(random)
            yield f"without config.initial, what is frozen stays as it is drawn: in {names}"
    budgets = settings.config.budget, settings.stage_cost(settings.baseline)
    if budgets[0] and budgets[0] != budgets[1]:
        yield "the budget is not the baseline's: the two will differ in FLOPs"
    skipped = sum(source.skipped for source in sources.values())
    if skipped:
        yield (
            f"{skipped} boxes without size or outside their image are left out, in training and "
            "in evaluation (data.strict=True refuses them)"
        )
    cut = sum(source.cut for source in sources.values())
    if cut:
        yield f"{cut} boxes reach out of their image; training uses the part inside"
    annotations = sources["train"].coco["annotations"] if sources else []
    boxes = collections.Counter(annotation["image_id"] for annotation in annotations)
    crowded = sum(number > settings.config.data.max_objects for number in boxes.values())
    if crowded:
        yield (
            f"{crowded} training images have more boxes than data.max_objects; "
            "each step draws among them"
        )


def parameters(name: str, shapes) -> str:
    """How large a network is; `shapes` is the tree of its parameters."""
    number = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    return f"{name}: {number / 1e6:.2f} M parameters"


def table(result: dict) -> str:
    """`result.json` as a table."""
    lines = [f"{'':10}{'depths':>16}{'GMACs':>8}{'params M':>10}{'AP':>8}{'AP50':>8}{'AP75':>8}"]
    for network in COMPARED:
        row = result[network]
        metrics = "".join(f"{100 * (row[name] or 0):8.1f}" for name in ("AP", "AP50", "AP75"))
        depths = str(row["arch"]["depths"])
        lines.append(
            f"{network:10}{depths:>16}{row['flops'] / 1e9:8.3f}{row['params'] / 1e6:10.3f}{metrics}"
        )
    difference, (low, high) = result["difference"]["AP"], result["difference"]["ci95"]
    verdict = (
        "not distinguishable" if low <= 0 <= high else ("better" if difference > 0 else "worse")
    )
    lines.append(f"dilations of searched: {result['searched']['arch']['dilations']}")
    lines.append(
        f"difference in AP {100 * difference:+.1f}, 95 % interval over test images "
        f"[{100 * low:+.1f}, {100 * high:+.1f}]: {verdict}"
    )
    return "\n".join(lines)
