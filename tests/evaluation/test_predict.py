"""A trained detector on arbitrary images, from arrays, files and the command line."""

import copy
import dataclasses
import json
import shutil

import cv2
import jax
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from helpers import randomised, run_commands, tiny_options
from rounding import EPSILON, FACTOR, nudged

import crnas_jax
from crnas_jax.arch.staged import Arch
from crnas_jax.data import videos
from crnas_jax.data.transforms import ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.predict import (
    Prediction,
    join_turns,
    predictions_to_coco,
    read_image,
)
from crnas_jax.export.detector import load_detector, save_detector
from crnas_jax.models.build import Detector
from crnas_jax.models.heads.box_head import CASCADE_STAGES
from crnas_jax.models.heads.mask_head import MaskHeadOptions

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 8, "name": "übel"}]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a detector with random weights, which detects something in every image."""
    folder = tmp_path_factory.mktemp("detector")
    detector = Detector(Arch("resnet_basic", (1, 1, 1, 1), widths=(8, 8, 16, 16)), tiny_options())
    variables = randomised(jax.device_get(jax.jit(detector.init)(jax.random.key(0))))
    save_detector(folder, detector, variables, ImageSize(64, 96), CATEGORIES)
    return folder


@pytest.fixture(scope="module")
def predictor(folder):
    return crnas_jax.load_detector(folder)


def _assert_valid(image, prediction):
    height, width = image.shape[:2]
    assert (prediction.height, prediction.width) == (height, width)
    assert len(prediction.boxes) == len(prediction.scores) == len(prediction.class_names)
    assert (prediction.boxes >= 0).all()
    assert (prediction.boxes[:, [2, 3]] <= np.array([width, height]) * 1.01).all()
    assert (np.diff(prediction.scores) <= 0).all()
    names = {entry["id"]: entry["name"] for entry in CATEGORIES}
    category_ids = prediction.category_ids.tolist()
    assert [names[category] for category in category_ids] == prediction.class_names


@pytest.fixture(scope="module")
def nudged_predictors(predictor):
    """Return three predictors whose weights are an epsilon off."""
    predictors = [copy.copy(predictor) for _ in range(3)]
    for seed, other in enumerate(predictors):
        other.variables = nudged(predictor.variables, seed)
    return predictors


def _assert_same(prediction, expected, image, nudged_predictors):
    """Allow `FACTOR` times what weights that are an epsilon off change."""
    assert prediction.class_names == expected.class_names
    others = [predictor.predict([image])[0] for predictor in nudged_predictors]
    for name in ("boxes", "scores"):
        values = getattr(expected, name)
        error, *rounding = (
            abs(getattr(other, name) - values).max() for other in (prediction, *others)
        )
        assert error <= FACTOR * max(rounding) + EPSILON * abs(values).max(), name


def test_masks_lie_on_their_boxes(tmp_path):
    """The detector is a cascade with masks, saved and loaded again."""
    options = tiny_options()
    stages = {"stages": CASCADE_STAGES, "class_agnostic": True, "max_detections": 4}
    box = dataclasses.replace(options.box, **stages)
    options = dataclasses.replace(options, box=box, mask=MaskHeadOptions(8, 1))
    detector = Detector(Arch("resnet_basic", (1, 1, 1, 1), widths=(8, 8, 16, 16)), options)
    variables = randomised(jax.device_get(jax.jit(detector.init)(jax.random.key(0))))
    save_detector(tmp_path, detector, variables, ImageSize(64, 96, 64), CATEGORIES)
    loaded = crnas_jax.load_detector(tmp_path)
    assert loaded.detector == detector
    (prediction,) = loaded.predict([RNG.integers(0, 255, (50, 75, 3)).astype(np.uint8)])
    coco = predictions_to_coco(["a.png"], [prediction], loaded.category_ids, loaded.class_names)
    assert len(coco["annotations"]) == len(prediction.boxes) > 0
    for index, annotation in enumerate(coco["annotations"]):
        mask = prediction.mask(index)
        assert mask.shape == (50, 75)
        assert annotation["segmentation"]["size"] == [50, 75]
        assert annotation["area"] == mask.sum()
        x0, y0, x1, y1 = prediction.boxes[index]
        rows, columns = np.nonzero(mask)
        margin_x, margin_y = 2 + (x1 - x0) / 28, 2 + (y1 - y0) / 28
        assert ((columns >= x0 - margin_x) & (columns <= x1 + margin_x)).all()
        assert ((rows >= y0 - margin_y) & (rows <= y1 + margin_y)).all()


def test_images_of_any_size_alone_and_together(predictor, nudged_predictors):
    shapes = [(37, 91), (91, 37), (1, 1), (640, 480), (1, 200), (200, 1), (64, 64)]
    images = [RNG.integers(0, 255, (*shape, 3)).astype(np.uint8) for shape in shapes]
    together = predictor.predict(images, batch_size=3)
    for image, prediction in zip(images, together, strict=True):
        _assert_valid(image, prediction)
        _assert_same(prediction, predictor.predict([image])[0], image, nudged_predictors)
    assert sum(len(prediction.boxes) for prediction in together) > 10


def test_grey_and_transparent_images_give_the_same_detections(predictor, nudged_predictors):
    grey = RNG.integers(0, 255, (50, 70)).astype(np.uint8)
    colour = np.repeat(grey[..., None], 3, 2)
    clear = np.concatenate([colour, np.full((50, 70, 1), 9, np.uint8)], 2)
    predictions = predictor.predict([grey, grey[..., None], colour, clear])
    for prediction in predictions[1:]:
        _assert_same(prediction, predictions[0], grey, nudged_predictors)


def test_files_are_turned_as_their_exif_tag_says(predictor, nudged_predictors, tmp_path):
    image = RNG.integers(0, 255, (40, 70, 3)).astype(np.uint8)
    stored = PIL.Image.fromarray(image)
    exif = stored.getexif()
    exif[0x0112] = 6  # a viewer turns the image clockwise
    stored.save(tmp_path / "turned.png", exif=exif)
    turned = np.rot90(image, -1)
    from_file, from_array = predictor.predict([tmp_path / "turned.png", turned])
    assert (from_file.height, from_file.width) == (70, 40)
    _assert_same(from_file, from_array, turned, nudged_predictors)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pillow_images_are_read_as_their_files_are(tmp_path, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    pixels = RNG.integers(0, 255, (40, 70, 3)).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    from_file = read_image(tmp_path / "a.png")
    shown = PIL.ImageOps.exif_transpose(PIL.Image.open(tmp_path / "a.png"))
    np.testing.assert_array_equal(from_file, np.asarray(shown))
    np.testing.assert_array_equal(from_file, read_image(PIL.Image.open(tmp_path / "a.png")))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_upper_eight(tmp_path, suffix):
    grey = RNG.integers(0, 2**16, (40, 70)).astype(np.uint16)
    PIL.Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    expected = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, 2)
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), expected)
    np.testing.assert_array_equal(read_image(PIL.Image.open(tmp_path / f"a.{suffix}")), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pillow_images_without_a_known_scale_are_refused(dtype):
    with pytest.raises(UserError, match="which has no known scale; convert it to 8 bits"):
        read_image(PIL.Image.fromarray(np.ones((4, 5), dtype)))


def test_a_pillow_image_that_is_cut_off_is_refused(tmp_path):
    PIL.Image.fromarray(RNG.integers(0, 255, (40, 70, 3)).astype(np.uint8)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with (
        PIL.Image.open(tmp_path / "a.jpg") as image,
        pytest.raises(UserError, match="a Pillow image that does not load"),
    ):
        read_image(image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"score": 50}, "score: 50"), ({"score": float("nan")}, "score: nan"),
     ({"score": "0.5"}, "score: '0.5'"), ({"batch_size": 0}, "batch_size: 0")],
)  # fmt: skip
def test_arguments_out_of_bounds_are_refused(predictor, arguments, message):
    with pytest.raises(UserError, match=f"predict: {message}"):
        predictor.predict([], **arguments)


def test_scores_that_are_not_finite_are_an_error(predictor):
    """Finite weights can overflow: no detections would look like an empty photograph."""
    overflowing = copy.copy(predictor)
    huge = jax.tree.map(lambda leaf: np.full_like(leaf, 3e38), predictor.variables["params"]["fpn"])
    params = {**predictor.variables["params"], "fpn": huge}
    overflowing.variables = {**predictor.variables, "params": params}
    with pytest.raises(UserError, match="detector: scores: not finite"):
        overflowing.predict([np.full((40, 60, 3), 200, np.uint8)])


def test_no_images_give_an_empty_list(predictor):
    assert predictor.predict([]) == []


def test_scores_below_the_threshold_are_left_out(predictor):
    image = RNG.integers(0, 255, (64, 96, 3)).astype(np.uint8)
    (prediction,) = predictor.predict([image])
    median = float(np.median(prediction.scores))
    (confident,) = predictor.predict([image], score=median)
    assert 0 < len(confident.boxes) < len(prediction.boxes)
    assert confident.scores.min() >= median


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["none.jpg"], "none.jpg: image: missing; "),
        ([np.zeros((4, 4, 3))], "float64"),
        ([np.zeros((4, 4, 2), np.uint8)], "2 channels"),
        ([np.zeros((0, 4, 3), np.uint8)], "an array"),
        (np.zeros((4, 4, 3), np.uint8), "give a list of images"),
        ("photo.jpg", "give a list of images"),
    ],
)
def test_images_that_cannot_be_read_are_refused(predictor, images, message):
    with pytest.raises(UserError, match=message):
        predictor.predict(images)


def _write(text):
    return lambda folder: (folder / "detector.json").write_text(text)


def _newer_format(folder):
    file = folder / "detector.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 99', 1))


def _empty_weights(folder):
    for path in (folder / "variables").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "detector.json").unlink(), r"detector\.json: file"),
        (_write("{"), r"detector\.json: fields"),
        (_write("[]"), r"detector\.json: fields"),
        (_write('{"format": 1}'), r"detector\.json: fields"),
        (_newer_format, r"format 99, this version reads \(1, 2\)"),
        (_empty_weights, "variables: checkpoint: does not load"),
        (lambda folder: shutil.rmtree(folder / "variables"), "variables: checkpoint: missing"),
    ],
)
def test_a_damaged_detector_is_refused(folder, tmp_path, damage, message):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(UserError, match=message):
        load_detector(copy)


def test_the_script_writes_detections_or_one_line_of_error(folder, tmp_path):
    photos = tmp_path / "photos"
    (photos / "below").mkdir(parents=True)
    (photos / "notes.txt").write_text("no photograph")
    cv2.imwrite(str(photos / "grey.png"), RNG.integers(0, 255, (30, 40)).astype(np.uint8))
    cv2.imwrite(str(photos / "below" / "dot.PNG"), np.zeros((1, 1, 3), np.uint8))
    with videos.FrameWriter(tmp_path / "clip.mp4", 10) as writer:
        for shade in range(3):
            writer.add(np.full((40, 60, 3), 80 * shade, np.uint8))
    truth = {"image_id": 5, "category_id": 8, "bbox": [5, 5, 20, 10], "area": 200, "iscrowd": 0}
    image = {"id": 5, "file_name": "grey.png", "height": 30, "width": 40}
    content = {"images": [image], "annotations": [{"id": 1, **truth}], "categories": CATEGORIES}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"\xff\xd8")
    commands = [
        [
            "scripts/predict.py",
            f"--detector={folder}",
            f"--images={tmp_path / name}",
            f"--output={tmp_path / name}.json",
        ]
        for name in ("photos", "empty", "broken", "none")
    ]
    drawn = tmp_path / "drawn"
    commands[0] += [f"--images={tmp_path}/clip.mp4", f"--draw={drawn}", "--draw_score=0"]
    commands[0] += [f"--annotations={tmp_path}/truth.json"]
    outcomes = run_commands(commands)
    assert [outcome["status"] for outcome in outcomes] == [0, 0, 2, 2], outcomes
    coco = json.loads((tmp_path / "photos.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [
        str(photos / "below" / "dot.PNG"),
        str(photos / "grey.png"),
        *[str(tmp_path / "clip.mp4")] * 3,
    ]
    assert [image.get("frame") for image in coco["images"]] == [None, None, 0, 1, 2]
    assert {path.name for path in drawn.iterdir()} == {
        *("000000_dot.jpg", "000001_grey.jpg", "000002_clip.mp4")
    }
    picture = cv2.imread(str(drawn / "000001_grey.jpg"))
    assert picture.shape == (30, 40 + 6 + 40, 3)  # the truth is beside it
    assert sum(1 for _ in videos.frames(drawn / "000002_clip.mp4")) == 3
    assert coco["categories"] == CATEGORIES
    assert {annotation["image_id"] for annotation in coco["annotations"]} <= {1, 2, 3, 4, 5}
    empty = json.loads((tmp_path / "empty.json").read_text())
    assert empty["images"] == empty["annotations"] == []
    for outcome, name in zip(outcomes[2:], ("broken", "none"), strict=True):
        (line,) = outcome["stderr"].strip().splitlines()
        assert line.startswith(f"error: {tmp_path / name}")
        assert not (tmp_path / f"{name}.json").exists()


@pytest.mark.parametrize("num_hosts", [1, 2, 3])
def test_images_taken_in_turns_are_joined_in_order(num_hosts):
    def prediction(num_detections):
        boxes = RNG.uniform(0, 9, (num_detections, 4)).astype(np.float32)
        ids = np.ones(num_detections, int)
        return Prediction(boxes, RNG.random(num_detections), ids, ids, ["a"] * num_detections, 9, 9)

    predictions = [prediction(count) for count in (2, 0, 1, 3, 1)]
    names = [f"{number}.png" for number in range(5)]
    parts = [
        predictions_to_coco(names[host::num_hosts], predictions[host::num_hosts], [1], ["a"])
        for host in range(num_hosts)
    ]
    assert join_turns(parts) == predictions_to_coco(names, predictions, [1], ["a"])
