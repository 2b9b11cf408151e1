"""The journal: exact de-duplication, a torn last line, another config's lines."""

import json

import pytest

from crnas_jax.errors import UserError
from crnas_jax.search.journal import Journal


def test_scores_survive_and_other_configs_are_ignored(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, "a")
    journal.add("stage", (1, 2, 3, 4), 0.1 + 0.2, images=5)
    Journal(path, "b").add("stage", (1, 2, 3, 4), 0.5)
    again = Journal(path, "a")
    assert again.get("stage", (1, 2, 3, 4)) == 0.1 + 0.2
    assert again.get("operation", (1, 2, 3, 4)) is None
    assert again.get("stage", (4, 3, 2, 1)) is None
    row = json.loads(path.read_text().splitlines()[0])
    assert row["format"] == 1
    assert row["images"] == 5


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_dropped_and_the_file_goes_on(tmp_path, cut):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, "a")
    journal.add("stage", (1,), 0.25)
    journal.add("stage", (2,), 0.5)
    path.write_bytes(path.read_bytes()[:-cut])
    again = Journal(path, "a")
    assert len(again) == 1
    again.add("stage", (2,), 0.75)
    assert Journal(path, "a").get("stage", (2,)) == 0.75
    assert len(path.read_text().splitlines()) == 2


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text("{oops\n{}\n")
    with pytest.raises(UserError, match="line 1"):
        Journal(path, "a")


def test_a_score_that_is_no_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="nan"):
        Journal(tmp_path / "j", "a").add("stage", (1,), float("nan"))
    assert not (tmp_path / "j").exists()
