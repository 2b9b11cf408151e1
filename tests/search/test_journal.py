"""The journal: no score twice, a torn last line, the lines of another config."""

import json

import pytest

from crnas_jax.errors import UserError
from crnas_jax.search.journal import Journal, Score


def _score(value, num_batches=2):
    return Score(value, (value - 0.1, value + 0.1), num_batches, 4 * num_batches)


def test_scores_survive_and_other_configs_are_ignored(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, "a")
    journal.add("stage", (1, 2, 3, 4), _score(0.1 + 0.2), seed=5)
    Journal(path, "b").add("stage", (1, 2, 3, 4), _score(0.5))
    again = Journal(path, "a")
    assert again.get("stage", (1, 2, 3, 4), 2) == _score(0.1 + 0.2)
    assert again.get("operation", (1, 2, 3, 4), 2) is None
    assert again.get("stage", (4, 3, 2, 1), 2) is None
    assert again.get("stage", (1, 2, 3, 4), 3) is None
    row = json.loads(path.read_text().splitlines()[0])
    assert row["format"] == 2
    assert row["seed"] == 5
    assert (row["images"], row["batches"]) == (8, 2)


def test_the_effort_of_a_search(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, "a")
    for code, num_batches in (((1,), 1), ((2,), 1), ((1,), 3)):
        journal.add("stage", code, _score(0.5, num_batches))
    journal.add("operation", (1,), _score(0.5))
    for read in (journal, Journal(path, "a")):
        assert read.effort("stage") == {"evaluated": 2, "image_passes": 4 + 12}
        assert read.effort("operation") == {"evaluated": 1, "image_passes": 8}
        assert read.effort("random") == {"evaluated": 0, "image_passes": 0}


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_dropped_and_the_file_goes_on(tmp_path, cut):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, "a")
    journal.add("stage", (1,), _score(0.25))
    journal.add("stage", (2,), _score(0.5))
    torn = path.read_bytes()[:-cut]
    path.write_bytes(torn)
    assert len(Journal(path, "a", read_only=True)) == 1
    assert path.read_bytes() == torn
    again = Journal(path, "a")
    assert len(again) == 1
    again.add("stage", (2,), _score(0.75))
    assert Journal(path, "a").get("stage", (2,), 2) == _score(0.75)
    assert len(path.read_text().splitlines()) == 2


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text("{oops\n{}\n")
    with pytest.raises(UserError, match="line 1"):
        Journal(path, "a")


def test_a_score_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="nan"):
        Journal(tmp_path / "j", "a").add("stage", (1,), _score(float("nan")))
    assert not (tmp_path / "j").exists()
