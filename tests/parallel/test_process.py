"""The cache of compiled programs: a folder for each kind of machine, with a limit."""

import os
import pathlib

from crnas_jax.parallel.process import speed_up_compilation, trim_cache


def test_each_kind_of_machine_has_a_folder(tmp_path, monkeypatch):
    before = os.environ["JAX_COMPILATION_CACHE_DIR"]
    try:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
        speed_up_compilation()
        folder = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
        assert folder.parent == tmp_path
        speed_up_compilation()  # as in a process that inherits it
        assert pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) == folder
    finally:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", before)
        speed_up_compilation()


def test_the_oldest_programs_make_room(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    for number in range(4):
        path = tmp_path / f"{number}-cache"
        path.write_bytes(b"x" * 10)
        os.utime(path, (number, number))
    (tmp_path / "other").write_bytes(b"x" * 100)
    trim_cache(40)
    assert len(list(tmp_path.glob("*-cache"))) == 4
    trim_cache(25)
    assert {path.name for path in tmp_path.iterdir()} == {"2-cache", "3-cache", "other"}
