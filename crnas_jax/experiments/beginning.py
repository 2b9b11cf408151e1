"""What a command notes in the working folder when it begins, for status and report."""

import dataclasses
import importlib.metadata
import platform

import jax

from crnas_jax import __version__
from crnas_jax.analysis.record import Record
from crnas_jax.experiments import architecture_plan, costs
from crnas_jax.experiments.keys import step_key
from crnas_jax.experiments.run import Run
from crnas_jax.runtime import activity, team
from crnas_jax.runtime.files import write_json
from crnas_jax.runtime.step_key import row_of
from crnas_jax.runtime.workdir import FORMAT
from crnas_jax.settings.run import levels
from crnas_jax.settings.step_keys import READS

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def record(run: Run, plan: str) -> None:
    """Write `plan.json`, `data.json` and a line of `invocations.jsonl`.

    Args:
      run: the run.
      plan: the plan as text.
    """
    parts = []
    if "val" in run.sources:
        parts = costs.costs(run) if levels(run.config) else architecture_plan.parts(run)
    content = {
        "format": FORMAT,
        "begun": activity.now(),
        "text": plan,
        "parts": [dataclasses.asdict(part) for part in parts],
        "current": _current(run),
    }
    write_json(run.path / "plan.json", content)
    if run.sources:
        write_json(run.path / "data.json", {"format": FORMAT, **_data(run)})
    devices = jax.devices()
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    activity.record(
        run.path,
        versions={"crnas_jax": __version__, "python": platform.python_version(), **versions},
        platform=platform.platform(),
        devices=f"{run.workdir.num_devices} x {devices[0].device_kind}",
        hosts=team.current().count,
    )


def _current(run):
    """List the steps in the folder that have this config's keys; the others are of earlier ones."""
    names = [name for name in Record.open(run.path).steps if row_of(name) in READS]
    stored = {name: run.workdir.stored_key(name) for name in names}
    return [name for name in names if stored[name].digest == step_key(run, name).digest]


def _data(run):
    """Describe the splits as they were read."""
    splits = {}
    for split, source in run.sources.items():
        counts = dict.fromkeys(source.category_ids, 0)
        for annotation in source.coco["annotations"]:
            counts[annotation["category_id"]] += 1
        splits[split] = {
            "images": len(source),
            "objects": sum(counts.values()),
            "objects_by_class": list(counts.values()),
            "notes": source.notes(),
        }
    class_names = run.sources["train"].class_names
    return {"class_names": list(class_names), "splits": splits, "notes": list(run.notes)}
