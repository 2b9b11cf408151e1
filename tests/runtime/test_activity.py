"""What a process leaves in a folder for who looks from outside."""

import json

from crnas_jax.runtime import activity
from crnas_jax.runtime.progress import Progress


def _progress(folder):
    return json.loads((folder / activity.PROGRESS).read_text())


def test_a_command_says_what_it_is_how_far_it_is_and_that_it_ended(tmp_path):
    activity.begin(["crnas-jax", "run"])
    (tmp_path / activity.PROGRESS).write_text('{"ended": "before"}')
    activity.record(tmp_path, devices="1 x cpu")
    assert not (tmp_path / activity.PROGRESS).exists()
    (line,) = (tmp_path / activity.INVOCATIONS).read_text().splitlines()
    row = json.loads(line)
    assert (row["command"], row["devices"]) == (["crnas-jax", "run"], "1 x cpu")
    progress = Progress("baseline", 10, 4, line_seconds=1e9)
    assert _progress(tmp_path)["note"] == "compiling"
    progress.update(5, loss=1.0)
    progress.update(6, loss=1.0)
    progress.update(10, loss=1.0)
    now = _progress(tmp_path)
    assert (now["name"], now["done"], now["total"], now["seconds_left"]) == ("baseline", 10, 10, 0)
    assert "ended" not in now
    activity.release(tmp_path / "another")
    assert "ended" not in _progress(tmp_path)
    activity.release(tmp_path)
    assert _progress(tmp_path)["ended"] >= row["started"]
    progress.update(10)
    assert "ended" in _progress(tmp_path)  # nothing is written after the end
