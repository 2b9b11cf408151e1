"""Batches: order from seed and step, canvases, resizing, flips, hosts, and generated data sets."""

import types

import cv2
import numpy as np
import pytest

from crnas_jax.data import loader
from crnas_jax.data.classification import FolderSource, SyntheticClassification
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import ClassificationRows, DetectionRows, ImageSize
from crnas_jax.errors import UserError
from crnas_jax.runtime import team

RNG = np.random.default_rng(0)
SIZES = np.array([(3, 4)] * 11 + [(4, 3)] * 3, np.int32)


def test_training_epochs_shuffle_full_batches_of_one_canvas():
    plan = loader.Plan(SIZES, 4, seed=0)
    steps = [plan[step] for step in range(plan.num_steps(4))]
    assert [len(plan.epoch(epoch)) for epoch in range(4)] == [2 + 1, 3 + 1, 3 + 1, 3 + 1]
    assert steps == [batch for epoch in range(4) for batch in plan.epoch(epoch)]
    for batch in steps:
        indices = [i for i in batch.indices if i >= 0]
        assert all((SIZES[i][0] > SIZES[i][1]) == batch.portrait for i in indices)
        assert len(indices) == (3 if batch.portrait else 4)
    again = loader.Plan(SIZES, 4, seed=0)
    assert [again[step] for step in reversed(range(15))] == steps[::-1]
    assert steps[:3] != steps[3:6]


@pytest.mark.parametrize(("num_landscape", "num_portrait"), [(31, 5), (17, 31), (16, 16), (205, 1)])
def test_every_image_is_read_equally_often(num_landscape, num_portrait):
    sizes = np.array([(3, 4)] * num_landscape + [(4, 3)] * num_portrait)
    plan = loader.Plan(sizes, 16, seed=0)
    counts = np.zeros(len(sizes), int)
    for step in range(plan.num_steps(50)):
        indices = np.array(plan[step].indices)
        np.add.at(counts, indices[indices >= 0], 1)
    assert abs(counts - 50).max() <= 2  # within 5 %


def test_evaluation_reads_every_image_once():
    for plan in (loader.Plan(SIZES, 4, seed=None), loader.Plan(SIZES, 4, seed=0, keep_all=True)):
        indices = [i for batch in plan.epoch(0) for i in batch.indices if i >= 0]
        assert sorted(indices) == list(range(14))
        assert plan.first_indices(len(plan)) == indices
        assert len(plan.first_indices(1)) <= 4
    with pytest.raises(UserError):
        loader.Plan(SIZES[:0], 4, seed=0)


def test_hosts_read_parts_of_the_same_batches_and_resuming_continues_the_order(monkeypatch):
    source, rows = SyntheticSource(12, 64), DetectionRows(ImageSize(64, 64), 6, flip=True)
    plan = loader.Plan(source.sizes, 4, seed=3)
    batches = list(loader.batches(source, plan, rows, 3, 0, 5))
    parts = []
    for host in (0, 1):
        monkeypatch.setattr(team, "_team", types.SimpleNamespace(index=host, count=2))
        parts.append(list(loader.batches(source, plan, rows, 3, 2, 5)))
    assert len(batches) == 5
    for step in range(3):
        for name, values in batches[step + 2].items():
            joined = np.concatenate([parts[0][step][name], parts[1][step][name]])
            np.testing.assert_array_equal(values, joined)


def _first_draw(seed):
    return np.random.default_rng(seed).random()


def test_a_row_keeps_aspect_and_flips_boxes_with_pixels():
    image = np.zeros((30, 60, 3), np.uint8)
    image[10:20, 40:50] = 255
    record = {
        "image": image,
        "image_id": np.int64(2**40 + 1),
        "boxes": np.array([[40, 10, 50, 20]], np.float32),
        "labels": np.array([2], np.int32),
        "area": np.array([100], np.float32),
        "crowd": np.array([False]),
    }
    rng = next(np.random.default_rng(i) for i in range(99) if _first_draw(i) < 0.5)
    row = DetectionRows(ImageSize(60, 100), 3, flip=True)(record, False, rng)
    assert row["image"].shape == (64, 128, 3)  # multiples of 32
    assert row["image_size"].tolist() == [50, 100]  # the longer side binds
    np.testing.assert_allclose(row["scale"], [5 / 3, 5 / 3])
    np.testing.assert_allclose(
        row["boxes"][0], [100 - 50 / 0.6, 10 / 0.6, 100 - 40 / 0.6, 20 / 0.6], rtol=1e-5
    )
    x0, y0, x1, y1 = row["boxes"][0].astype(int)
    assert row["image"][y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].min() == 255
    assert row["image"].sum() / 255 / 3 == pytest.approx(100 / 0.36, rel=0.1)
    assert row["valid"].tolist() == [True, False, False]
    assert row["area"][0] == 100
    assert row["image_id"] == 2**40 + 1


def test_objects_beyond_the_maximum_are_dropped():
    source = SyntheticSource(4, 64, max_objects=5)
    record = max((source[i] for i in range(4)), key=lambda record: len(record["boxes"]))
    assert len(record["boxes"]) > 1
    row = DetectionRows(ImageSize(64, 64), 1)(record, False, RNG)
    assert row["valid"].tolist() == [True]
    assert row["boxes"][0].tolist() in record["boxes"].tolist()


def test_synthetic_images_are_deterministic_by_index():
    source, repeated = SyntheticSource(20, 64, seed=1), SyntheticSource(20, 64, seed=1)
    repeated[7]
    np.testing.assert_array_equal(source[3]["image"], repeated[3]["image"])
    assert (SyntheticSource(20, 64, seed=2)[3]["image"] != source[3]["image"]).any()
    assert len(source[15]["boxes"]) == 0
    by_image = {}
    for annotation in source.coco["annotations"]:
        x, y, w, h = annotation["bbox"]
        by_image.setdefault(annotation["image_id"], []).append([x, y, x + w, y + h])
    for index in range(20):
        assert source[index]["boxes"].tolist() == by_image.get(index + 1, [])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 64), "ImageSize: min_size: 0; give a whole number of at least 1"),
        ((-2, -1), "ImageSize: min_size: -2; "),
        ((64, 0), "ImageSize: max_size: 0; "),
        ((64, 64, 0), "ImageSize: multiple: 0; "),
        ((64, 63), "ImageSize: max_size: 63 is less than min_size, 64; "),
    ],
)
def test_impossible_image_sizes_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        ImageSize(*sizes)


@pytest.mark.parametrize("shape", [(40, 30), (1, 1), (2, 300)])
def test_classification_crops_lie_inside_and_are_square(shape):
    image = np.full((*shape, 3), 7, np.uint8)
    record = {"image": image, "image_id": np.int64(0), "label": 3}
    for rows in (ClassificationRows(16, augment=True), ClassificationRows(16, augment=False)):
        for seed in range(5):
            row = rows(record, False, np.random.default_rng(seed))
            assert row["image"].shape == (16, 16, 3)
            assert (row["image"] == 7).all()
            assert row["label"] == 3


def test_synthetic_classes_differ_and_are_deterministic():
    source = SyntheticClassification(18, 32, seed=1)
    assert [source[i]["label"] for i in range(9)] == list(range(9))
    np.testing.assert_array_equal(
        source[5]["image"], SyntheticClassification(18, 32, 1)[5]["image"]
    )
    assert (source[5]["image"] != source[14]["image"]).any()


def test_a_folder_with_one_subfolder_per_class(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "1.png"), np.zeros((4, 5, 3), np.uint8))
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    source = FolderSource(tmp_path)
    assert (source.class_names, len(source)) == (["a", "b"], 2)
    assert source[1]["label"] == 1
    assert source[1]["image"].shape == (4, 5, 3)
    (tmp_path / "b" / "1.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"1\.png"):
        source[1]
    with pytest.raises(UserError, match="none"):
        FolderSource(tmp_path / "none")
