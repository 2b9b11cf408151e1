"""What the primary says arrives as it was; it alone writes, while the folder is its own."""

import threading

import numpy as np
import pytest
from helpers import Pair

from crnas_jax.errors import UserError
from crnas_jax.runtime import files, ownership, team


@pytest.fixture
def pair(monkeypatch):
    """Return a function that makes this process the one or the other."""
    texts = []

    def become(index):
        monkeypatch.setattr(team, "_team", Pair(index, texts))

    return become


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1 + 0.2,
        float("inf"),
        "text\n\\",
        [1, (2, (3,), [])],
        {(1, 2): {"a": (None, False)}, "dict": [], "array": {}},
        {"tuple": [1]},
    ],
)
def test_values_keep_their_types(value):
    decoded = team.decode(team.encode(value))
    assert decoded == value
    assert repr(decoded) == repr(value)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "uint8", "float64"])
def test_arrays_keep_bits_and_shapes(dtype):
    arrays = [
        np.arange(6).reshape(2, 3).astype(dtype).T,
        np.zeros((0, 4), dtype),
        np.array(1, dtype),
    ]
    for array, decoded in zip(arrays, team.decode(team.encode(arrays)), strict=True):
        assert decoded.dtype == array.dtype
        np.testing.assert_array_equal(decoded, array)
        assert decoded.flags.writeable


def test_nothing_else_is_told():
    with pytest.raises(TypeError, match="cannot be told"):
        team.encode({"lock": threading.Lock()})


def test_the_primary_decides_for_all(pair):
    calls = []

    def look(answer):
        calls.append(team.is_joint())
        return team.decide(lambda: (answer, [answer]))  # within another one

    assert team.decide(look, 0) == (0, [0])
    pair(0)
    assert team.decide(look, 1) == (1, [1])
    pair(1)
    assert team.decide(look, 2) == (1, [1])
    assert calls == [False, False]


def test_mistakes_of_the_primary_are_those_of_all(pair):
    def fail():
        raise UserError("place", "field", "problem", "remedy")

    for index in (0, 1):
        pair(index)
        with pytest.raises(UserError, match="place: field: problem; remedy") as error:
            team.decide(fail)
        assert error.value.is_shared


def test_only_the_primary_writes(pair, tmp_path):
    pair(1)
    files.write_json(tmp_path / "a.json", {"a": 1})
    files.append(tmp_path / "b", "line\n")
    with files.replacing(tmp_path / "c") as file:
        file.write(b"content")
    assert not list(tmp_path.iterdir())
    pair(0)
    files.write_json(tmp_path / "a.json", {"a": 1})
    assert files.read_json(tmp_path / "a.json") == {"a": 1}


def test_who_lost_the_folder_to_another_run_writes_nothing_there(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "_claimed", {})
    folder, beside = tmp_path / "run", tmp_path / "other.json"
    folder.mkdir()
    ownership.claim(folder)
    files.write_json(folder / "a.json", 1)
    (folder / ownership.TOKEN).write_text("of another run")
    for write in (
        lambda: files.write_json(folder / "a.json", 2),
        lambda: files.append(folder / "journal", "line\n"),
    ):
        with pytest.raises(UserError, match="another run has gone on"):
            write()
    files.write_json(beside, 2)
    assert files.read_json(folder / "a.json") == 1
    ownership.release(folder)
    files.write_json(folder / "a.json", 3)
    assert sorted(path.name for path in folder.iterdir()) == [ownership.TOKEN, "a.json"]


def test_numbers_of_numpy_become_pythons():
    values = [np.float64(0.5), np.int32(3), np.bool_(True)]
    assert repr(team.decode(team.encode(values))) == "[0.5, 3, True]"


def test_hosts_at_different_places_are_told(pair):
    pair(0)
    team.decide(max, 1, 2)
    pair(1)
    with pytest.raises(RuntimeError, match="host 0 decided max, not min"):
        team.decide(min, 1, 2)


def test_what_differs_between_hosts_is_named_on_all(pair):
    pair(0)
    team.require_alike({"a": "1"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team.current(), "gather", lambda text: [text, team.encode({"a": "2"})])
        with pytest.raises(UserError, match="host 1: a: 2, on host 0 1") as error:
            team.require_alike({"a": "1"})
    assert error.value.is_shared
