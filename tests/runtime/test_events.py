"""What TensorBoard finds in a folder, read from its files."""

import struct

import numpy as np
from tensorboardX.proto.event_pb2 import Event

from crnas_jax.runtime.events import Events
from crnas_jax.training.logging import RunLog


def events(folder):
    """Return the events of all files of a folder, in order."""
    found = []
    for file in sorted(folder.glob("events.*")):
        content, start = file.read_bytes(), 0
        while start < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            found.append(Event.FromString(content[start + 12 : start + 12 + length]))
            start += length + 16
    return found


def _values(folder):
    return {
        (event.step, value.tag): value for event in events(folder) for value in event.summary.value
    }


def test_scalars_counts_and_images_are_read_back(tmp_path):
    with Events(tmp_path) as writer:
        writer.scalars(3, {"AP": 0.25})
        writer.counts(3, {"paths/branch/0": np.array([4, 0, 6])})
        writer.image(0, "detections", np.zeros((10, 20, 3), np.uint8))
    values = _values(tmp_path)
    assert values[3, "AP"].simple_value == 0.25
    histogram = values[3, "paths/branch/0"].histo
    assert (histogram.min, histogram.max, histogram.num) == (0, 2, 10)
    assert sum(histogram.bucket) == 10
    image = values[0, "detections"].image
    assert (image.height, image.width) == (10, 20)


def test_sampled_paths_are_counted(tmp_path):
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, 3, 2) for _ in range(20)]
    with RunLog(tmp_path, "supernet", 0, 20, 4) as log:
        for step, branch in enumerate(drawn, 1):
            log.path({"branch": branch, "ops": np.zeros(1, int)})
            if step >= 10:  # the first and the eleventh have histograms
                log.metrics(step, {"loss": 1.0})
        log.path(None)  # a stand-alone network has none
    values = _values(tmp_path)
    for place in range(2):
        expected = [branch[place] for branch in drawn]
        assert values[20, f"paths/branch/{place}"].histo.num == 20
        assert values[20, f"paths/branch/{place}"].histo.sum == sum(expected)
    assert values[10, "paths/branch/0"].histo.num == 10
    assert values[10, "loss"].simple_value == 1
