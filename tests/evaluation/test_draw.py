"""Detections drawn on images, and videos."""

import numpy as np
import pytest

from crnas_jax.data import masks, videos
from crnas_jax.errors import UserError
from crnas_jax.evaluation import draw
from crnas_jax.evaluation.predict import Prediction

GREY = np.full((120, 160, 3), 128, np.uint8)
BOX = (20, 40, 100, 100)


def _objects(**changes):
    fields = {"boxes": np.array([BOX], float), "labels": [1], "texts": ["cat 0.90"]}
    return draw.Objects(**(fields | changes))


def test_a_frame_lies_on_its_box_and_the_image_stays_as_it_was():
    image = GREY.copy()
    drawn = draw.draw(image, _objects())
    assert (image == GREY).all()
    colour = draw.colour_of(1)
    for x, y in ((60, 40), (60, 100), (20, 70), (100, 70)):
        assert tuple(drawn[y, x]) == colour
    assert (drawn[70, 60] == 128).all()
    assert (drawn[20:39, 20:60] != 128).any()  # the label stands above
    truth = draw.draw(image, _objects(is_truth=True))
    assert tuple(truth[70, 22]) == colour  # the second line
    assert tuple(drawn[70, 22]) == (128,) * 3


def test_masks_shine_through_and_sides_scale_boxes():
    mask = np.zeros(GREY.shape[:2], bool)
    mask[60:80, 40:60] = True
    drawn = draw.draw(GREY, _objects(masks=[mask]), side=320)
    assert drawn.shape == (240, 320, 3)
    expected = 0.6 * 128 + 0.4 * np.array(draw.colour_of(1))
    np.testing.assert_allclose(drawn[140, 100], expected, atol=2)
    assert tuple(drawn[80, 120]) == draw.colour_of(1)


@pytest.mark.parametrize("text", ["", "\n", "\u202eabc", "x" * 10_000, "übel 0.5", "\x00"])
@pytest.mark.parametrize("box", [BOX, (150, 0, 140, -5), (-1e4, -1e4, 1e4, 1e4)])
def test_any_text_and_box_can_be_drawn(text, box):
    assert draw.draw(GREY, _objects(boxes=np.array([box]), texts=[text])).shape == GREY.shape


def test_results_and_predictions_are_drawn_best_first():
    entries = [
        {"bbox": [0, 0, 10, 10], "category_id": 7, "score": 0.2},
        {"bbox": [5, 5, 20, 10], "category_id": 3, "score": 0.75},
    ]
    entries[0]["segmentation"] = [[0, 0, 10, 0, 10, 10, 0, 10]]
    entries[1]["segmentation"] = masks.encode(np.ones((20, 30), bool))
    drawn = draw.results_on(entries, [3, 7], ["a", "b"], mask_size=(20, 30)).masks
    assert [mask.sum() for mask in drawn] == [600, 100]
    objects = draw.results_on(entries, [3, 7], ["a", "b"])
    assert objects.texts == ["a 0.75", "b 0.20"]
    assert objects.boxes.tolist() == [[5, 5, 25, 15], [0, 0, 10, 10]]
    prediction = Prediction(
        np.array([[0, 0, 10, 10], [1, 1, 5, 5]], np.float32),
        np.array([0.9, 0.3], np.float32),
        np.array([2, 1]),
        np.array([7, 3]),
        ["b", "a"],
        120,
        160,
        np.ones((2, 28, 28), np.float32),
    )
    objects = draw.prediction_on(prediction, 0.5)
    assert objects.texts == ["b 0.90"]
    assert 100 <= objects.masks[0].sum() <= 12 * 12  # to the nearest pixel
    beside = draw.beside([GREY, GREY[:60]])
    assert beside.shape == (120, 160 + 6 + 160, 3)


def test_videos_keep_their_frames_and_their_rate(tmp_path):
    path = tmp_path / "clip.mp4"
    with videos.FrameWriter(path, 12.5) as writer:
        for shade in range(6):
            writer.add(np.full((96, 128, 3), 40 * shade, np.uint8))
    shades = [frame.mean() for frame in videos.frames(path)]
    np.testing.assert_allclose(shades, 40 * np.arange(6), atol=6)
    assert videos.frames_per_second(path) == pytest.approx(12.5)
    assert videos.is_video("A.MP4")
    assert not videos.is_video("a.jpg")


def test_what_is_no_video_is_refused(tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    for path, problem in ((broken, "OpenCV reads no frame"), (tmp_path / "a.mp4", "missing")):
        with pytest.raises(UserError, match=problem):
            next(videos.frames(path))
    with pytest.raises(UserError, match="cannot write"):
        videos.FrameWriter(tmp_path / "missing" / "a.mp4", 25).add(GREY)
