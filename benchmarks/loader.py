"""Images per second from the loader: over a loop of Pillow and NumPy, by workers, and its memory.

    python benchmarks/loader.py --images=COCO/images --annotations=COCO/train.json

Both sides decode the same files, resize them to 800x1333 with kept aspect, place them on a canvas,
scale the boxes and stack batches; the loader also checks each file, mirrors half of the images and
pads the objects. Speed per core is images over seconds of processor time, all threads together.
The memory is that of a process which opens records with seven objects each, checks them as a run
does, and reads batches; these are of small images, since how many batches are in flight at once
differs by more than what the records take. Targets: 2 times the loop per core; two workers 1.5
times one; 20,000 records at most 50 MB above 2,000.
"""

import io
import json
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import common
import numpy as np
from absl import app, flags
from PIL import Image

from crnas_jax.data import loader
from crnas_jax.data.checks import require_consistent
from crnas_jax.data.coco import CocoSource
from crnas_jax.data.transforms import DetectionRows, ImageSize

_IMAGES = flags.DEFINE_string("images", "../shared/data/coco200/images", "Folder of the images.")
_ANNOTATIONS = flags.DEFINE_string(
    "annotations", "../shared/data/coco200/train.json", "Json file of the images."
)
_BATCH = flags.DEFINE_integer("batch", 8, "Images in a batch.")
_PASSES = flags.DEFINE_integer("passes", 3, "Passes over the images; the medians count.")
_RECORDS = flags.DEFINE_list("records", ["2000", "20000"], "Numbers of records; few and many.")
_MEASURED = flags.DEFINE_string("measured", "", "Folder of records; for the process itself.")
_SIZE, _OBJECTS = ImageSize(800, 1333), 100


def main(_):
    if _MEASURED.value:
        print(json.dumps(memory_of(_MEASURED.value)))
        return
    source = CocoSource(_IMAGES.value, _ANNOTATIONS.value)
    functions = {
        "pillow": lambda: pillow_loop(source),
        "1 worker": lambda: load(source, 1),
        "2 workers": lambda: load(source, 2),
    }
    rates = {name: [] for name in functions}
    for _ in range(_PASSES.value):  # interleaved, so that a noisy machine treats all alike
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            num_images = function()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            rates[name].append((num_images / wall, num_images / cpu))
    wall, cpu = ({n: float(np.median([r[i] for r in v])) for n, v in rates.items()} for i in (0, 1))
    few, many = (peak_megabytes(int(number)) for number in _RECORDS.value)
    common.report(
        "loader",
        {
            "images": len(source),
            "ratios": {
                "loader over pillow, images per second and core": cpu["1 worker"] / cpu["pillow"],
                "two workers over one": wall["2 workers"] / wall["1 worker"],
            },
            "megabytes of many records above few": many - few,
            "records": [int(number) for number in _RECORDS.value],
            "peak megabytes": {"few": few, "many": many},
            "images per second": wall,
            "images per second and core": cpu,
        },
    )


def load(source, workers):
    """Read all images once by the loader; return their number."""
    loader.read_with(loader.ReadOptions(workers))
    plan = loader.Plan(source.sizes, _BATCH.value, seed=0, keep_all=True)
    rows = DetectionRows(_SIZE, _OBJECTS, flip=True)
    return sum(int(batch["weight"].sum()) for batch in loader.batches(source, plan, rows))


def pillow_loop(source):
    """Do the same with Pillow and NumPy, one image after the other; return their number."""
    plan = loader.Plan(source.sizes, _BATCH.value, seed=0, keep_all=True)
    boxes_of = {image_id: [] for image_id in source.image_ids.tolist()}
    for entry in source.coco["annotations"]:
        boxes_of[entry["image_id"]].append(entry["bbox"])
    num_images = 0
    for batch in plan.epoch(0):
        canvases, all_boxes = [], []
        for index in batch.indices:
            if index < 0:
                continue
            image = Image.open(source.image_names[index]).convert("RGB")
            height, width = _SIZE.resized(image.height, image.width)
            scale = width / image.width
            image = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
            canvas = np.zeros((*_SIZE.canvas(batch.portrait), 3), np.uint8)
            canvas[:height, :width] = image
            boxes = np.array(boxes_of[int(source.image_ids[index])], np.float32).reshape(-1, 4)
            padded = np.zeros((_OBJECTS, 4), np.float32)
            padded[: len(boxes)] = boxes[:_OBJECTS] * scale
            canvases.append(canvas)
            all_boxes.append(padded)
        np.stack(canvases), np.stack(all_boxes)
        num_images += len(canvases)
    return num_images


def peak_megabytes(num_records):
    """Return the peak resident memory of a process that reads so many records."""
    with tempfile.TemporaryDirectory() as folder:
        write_records(pathlib.Path(folder), num_records)
        command = [sys.executable, __file__, f"--measured={folder}/records"]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def write_records(folder, num_records):
    """Write records of small images, all different, with seven objects each."""
    from crnas_jax.data.records.builders import detection_data_set
    from crnas_jax.data.records.writer import prepare

    rng, images, annotations = np.random.default_rng(0), [], []
    (folder / "images").mkdir()
    for image_id in range(1, num_records + 1):
        content, name = io.BytesIO(), f"{image_id:012d}.jpg"
        pixels = rng.integers(0, 255, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((640, 480)).save(content, "JPEG", quality=50)
        (folder / "images" / name).write_bytes(content.getvalue())
        images.append({"id": image_id, "file_name": name, "height": 480, "width": 640})
        for box in rng.uniform(5, 300, (7, 4)).tolist():
            entry = {"id": len(annotations) + 1, "image_id": image_id, "bbox": box, "iscrowd": 0}
            annotations.append({**entry, "category_id": 1 + len(annotations) % 80, "area": 900.5})
    categories = [{"id": index, "name": str(index)} for index in range(1, 81)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content))
    source = CocoSource(folder / "images", folder / "train.json")
    prepare(detection_data_set("measured", {"train": source}), folder / "records")


def memory_of(folder):
    """Open records as a run does and read batches; return this process's peak in MB."""
    from crnas_jax.data.tfds import TfdsSource

    source = TfdsSource(folder, "train")
    require_consistent({"train": source})
    loader.read_with(loader.ReadOptions(2))
    plan = loader.Plan(source.sizes, _BATCH.value, seed=0)
    rows = DetectionRows(ImageSize(64, 107), _OBJECTS, flip=True)
    for _ in loader.batches(source, plan, rows, stop=len(plan)):
        pass
    # `ru_maxrss` would count the memory of the process that started this one.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    app.run(main)
