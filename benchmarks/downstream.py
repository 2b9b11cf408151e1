"""What an export gives a detector of another kind: AP50 from its weights and from scratch.

    python benchmarks/downstream.py --export=exports/mine --data=DATA --folder=runs/downstream

The detector is docs/examples/downstream_detector.py, on DATA's test split. Every training is kept
in the folder: the same command goes on where it was interrupted. Intervals (95 %) are over images
and seeds. Target: AP50 of at least 0.3 from an export.
"""

import importlib.util
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import common
import numpy as np
from absl import app, flags

_EXPORT = flags.DEFINE_string("export", None, "Folder of an export.", required=True)
_DATA = flags.DEFINE_string("data", None, "Folder of the data.", required=True)
_FOLDER = flags.DEFINE_string("folder", "runs/downstream", "Folder of the trainings.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings of each start.")
_STEPS = flags.DEFINE_integer("steps", 300, "Steps of a training.")
_SAMPLES = flags.DEFINE_integer("samples", 500, "Resamplings of images and seeds.")
_STARTS = ("export", "scratch")
_EXAMPLE = pathlib.Path(__file__).resolve().parents[1] / "docs/examples/downstream_detector.py"


def main(_):
    spec = importlib.util.spec_from_file_location("downstream_detector", _EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    results = {
        start: [trained(example, start, seed) for seed in range(_SEEDS.value)] for start in _STARTS
    }
    values = {
        start: [example.ap50(*result) for result in of_start] for start, of_start in results.items()
    }
    rng, num_images = np.random.default_rng(0), len(results["export"][0][1]["labels"])
    draws = []
    for _ in range(_SAMPLES.value):
        rows = rng.integers(num_images, size=num_images)
        seeds = rng.integers(_SEEDS.value, size=_SEEDS.value)
        draws.append(
            [
                np.mean([example.ap50(*results[start][seed], rows) for seed in set(seeds.tolist())])
                for start in _STARTS
            ]
        )
    draws = np.array(draws)
    low, high = np.percentile(draws, (2.5, 97.5), axis=0)
    difference = np.percentile(draws[:, 0] - draws[:, 1], (2.5, 97.5))
    common.report(
        "downstream",
        {
            "AP50": {start: float(np.mean(values[start])) for start in _STARTS},
            "ci95": {s: [float(low[i]), float(high[i])] for i, s in enumerate(_STARTS)},
            "difference": float(np.mean(values["export"]) - np.mean(values["scratch"])),
            "difference ci95": difference.tolist(),
            "seeds": values,
            "steps": _STEPS.value,
            "images": num_images,
        },
    )


def trained(example, start, seed):
    """Return detections and objects of a training, which is done unless it is kept."""
    file = pathlib.Path(_FOLDER.value) / f"{start}-{seed}-{_STEPS.value}.npz"
    if not file.exists():
        print(f"{start}, seed {seed}", flush=True)
        detections, truth = example.train(
            _EXPORT.value, _DATA.value, "none", start == "scratch", seed, _STEPS.value
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"detected/{name}": value for name, value in detections.items()}
        arrays |= {f"truth/{name}": truth[name] for name in ("boxes", "labels")}
        np.savez(file.with_suffix(".new.npz"), **arrays)
        file.with_suffix(".new.npz").rename(file)
    with np.load(file) as content:
        detections = {n: content[f"detected/{n}"] for n in ("boxes", "labels", "scores")}
        return detections, {n: content[f"truth/{n}"] for n in ("boxes", "labels")}


if __name__ == "__main__":
    app.run(main)
