"""What is kept of trained networks beside their metrics, for the report and for TensorBoard."""

import pathlib

import numpy as np
from jaxtyping import PyTree

from crnas_jax.analysis import erf
from crnas_jax.analysis.html.fields import FIELDS
from crnas_jax.data.source import DetectionSource
from crnas_jax.evaluation import draw, errors
from crnas_jax.experiments.run import Run
from crnas_jax.models.build import Detector
from crnas_jax.runtime import team
from crnas_jax.runtime.events import Events
from crnas_jax.runtime.files import read_json, replacing, write_json
from crnas_jax.runtime.workdir import FORMAT
from crnas_jax.settings import data as data_settings

# Files in the folder of an evaluation.
DETECTIONS, ERRORS, DRAWS = "detections.json", "errors.json", "draws.npz"
# What TensorBoard shows of an evaluation: images, their longer side in pixels, and detections from
# a score on.
_SHOWN_IMAGES, _SHOWN_SIDE, _SHOWN_SCORE = 4, 480, 0.3


def detections_file(run: Run, step: str, split: str) -> pathlib.Path:
    """Return the path of a trained network's detections on a split."""
    return run.path / step / split / DETECTIONS


def diagnosis(run: Run, step: str, split: str) -> dict | None:
    """Return a trained network's AP on resampled images of a split, after its evaluation.

    With it what it gets wrong goes to `errors.json`, and the draws to `draws.npz` beside it.

    Returns:
      The arrays of `errors.Diagnosis.draws`; of several hosts on the primary, None on the others.
    """
    team.decide(_diagnose, run, step, split)
    if not team.is_primary():
        return None
    file = detections_file(run, step, split).with_name(DRAWS)
    with np.load(file, allow_pickle=False) as draws:
        return dict(draws)


def _diagnose(run, step, split):
    folder = detections_file(run, step, split).parent
    drawn = {"samples": run.options.bootstrap, "seed": run.options.seed}
    before = read_json(folder / ERRORS) if (folder / ERRORS).exists() else {}
    # Draws of all networks are on the same resampled images.
    if before.get("draws") != drawn or not (folder / DRAWS).exists():
        results = read_json(folder / DETECTIONS)
        found = errors.diagnose(run.sources[split], results, *drawn.values())
        with replacing(folder / DRAWS) as file:
            np.savez(file, **{n: leaf.astype(np.float32) for n, leaf in found.draws.items()})
        content = {"format": FORMAT, "draws": drawn, **found.to_json()}
        write_json(folder / ERRORS, content, indent=None)


def lacks_fields(run: Run, step: str) -> bool:
    """Tell whether a trained network's receptive fields are wanted and not there yet."""
    return bool(run.options.erf_images) and not team.decide((run.path / step / FIELDS).exists)


def write_fields(run: Run, step: str, detector: Detector, variables: PyTree) -> None:
    """Measure a trained network's receptive fields, and write them beside it."""
    source = run.sources.get("val") or run.sources["test"]
    size = data_settings.image_size(run.config)
    images = (source[index]["image"] for index in range(len(source)))
    plates = erf.plates(images, size, run.options.erf_images)
    # One at a time: the memory of a training step is there, shared with nothing else.
    fields = erf.receptive_fields(detector, [variables], plates, batch_size=1)
    content = {"format": FORMAT, "fields": [field.to_json() for field in fields]}
    write_json(run.path / step / FIELDS, content)


def show(
    folder: pathlib.Path, source: DetectionSource, detections: list[dict], metrics: dict
) -> None:
    """Write an evaluation's metrics, and what was detected in its first images, to TensorBoard."""
    categories = source.category_ids, source.class_names
    with Events(folder) as events:
        events.scalars(
            0, {name: metrics[name] for name in metrics if isinstance(metrics[name], float)}
        )
        for row in range(min(len(source), _SHOWN_IMAGES)):
            image_id, image = int(source.image_ids[row]), source[row]["image"]
            truth = [a for a in source.coco["annotations"] if a["image_id"] == image_id]
            found = [d for d in detections if d["image_id"] == image_id]
            found = [d for d in found if d["score"] >= _SHOWN_SCORE]
            size = image.shape[:2] if "segm" in metrics else None
            panels = [
                draw.draw(image, draw.results_on(rows, *categories, is_truth, size), _SHOWN_SIDE)
                for rows, is_truth in ((truth, True), (found, False))
            ]
            events.image(0, f"truth and detections/{image_id}", draw.beside(panels))
