"""A working folder as its files describe it, whether its run is finished, under way or broken off.

Nothing is locked, written or computed here, and no JAX is imported: it serves any terminal.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib

from crnas_jax import arch as archs
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.runtime.activity import INVOCATIONS, PROGRESS
from crnas_jax.runtime.files import read_json
from crnas_jax.runtime.workdir import read_config

# File in the folder of a search: the journal's keys by name of the search.
JOURNAL_KEY = "journal.json"
# Folders in which no step lies.
_NO_STEPS = {"set_aside", "checkpoints", "variables", "returned", "records", "logs", "profile"}


@dataclasses.dataclass(frozen=True)
class Step:
    """A step that is begun.

    Attributes:
      name: name of the step and of its folder.
      path: its folder.
      result: its result; None until it is finished.
      begun: when it was begun, ISO 8601; "" where that is not known.
      taken_back: when it was taken back from those set aside; "" where it was not.
    """

    name: str
    path: pathlib.Path
    result: dict | None
    begun: str = ""
    taken_back: str = ""

    @property
    def finished(self) -> str:
        """When it was finished, ISO 8601; "" where it is not, or that is not known."""
        return (self.result or {}).get("finished", "")

    @functools.cached_property
    def metrics(self) -> list[dict]:
        """The entries of a training's `metrics.jsonl`, in order of their steps."""
        rows = [row for row in json_lines(self.path / "metrics.jsonl") if "step" in row]
        return sorted(rows, key=lambda row: row["step"])

    @property
    def touched(self) -> float:
        """When something of it was written last, seconds."""
        files = (self.path / name for name in ("key.json", "metrics.jsonl", "spent.json"))
        return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)

    def read(self, name: str):
        """Return the content of a JSON file of the step; None where it is missing or no JSON."""
        return _json(self.path / name)


@dataclasses.dataclass(frozen=True)
class Record:
    """What a working folder holds.

    Attributes:
      path: the working folder.
      config: the config that it was last worked on with.
      digests: by split the digests of its annotations and images.
      steps: begun steps by name; finished ones come first, in the order of their end.
    """

    path: pathlib.Path
    config: dict
    digests: dict
    steps: dict[str, Step]

    @classmethod
    def open(cls, path: str | os.PathLike) -> "Record":
        """Read a working folder.

        Raises:
          UserError: the folder is missing, or none that a run has begun.
        """
        path = pathlib.Path(path)
        if not path.is_dir():
            raise UserError(path, "--workdir", "there is no such folder", "name a run's folder")
        if not (path / "config.json").is_file():
            remedy = "name the folder that was given as --workdir"
            raise UserError(path, "--workdir", "no run has begun here: no config.json", remedy)
        content = read_config(path)
        return cls(path, content["config"], content["data"], _steps(path))

    @functools.cached_property
    def result(self) -> dict | None:
        """The run's result; None until there is one, and once later steps have outdated it."""
        result = _json(self.path / "result.json")
        if not isinstance(result, dict) or "decision" not in result:
            return None
        steps = [step for name, step in self.steps.items() if not name.startswith("ranking")]
        times = [step.finished if step.result else step.begun for step in steps]
        last = max(times, default="")
        return None if last > result.get("finished", last) else result

    @functools.cached_property
    def scores(self) -> list[dict]:
        """The lines of the journal."""
        wanted = ("search", "code", "score", "config", "batches", "images")
        rows = json_lines(self.path / "journal.jsonl")
        return [row for row in rows if all(name in row for name in wanted)]

    @functools.cached_property
    def plan(self) -> dict:
        """What was printed before work started, and its parts with their cost."""
        return _json(self.path / "plan.json") or {}

    @functools.cached_property
    def data(self) -> dict:
        """The splits as they were read."""
        return _json(self.path / "data.json") or {}

    @functools.cached_property
    def invocations(self) -> list[dict]:
        """The commands that worked here, in order."""
        return json_lines(self.path / INVOCATIONS)

    @functools.cached_property
    def progress(self) -> dict:
        """How far the work in hand was when it was last looked at."""
        return _json(self.path / PROGRESS) or {}

    def read(self, name: str):
        """Return the content of a JSON file in the folder; None where it is missing or no JSON."""
        return _json(self.path / name)

    def result_of(self, step: str) -> dict | None:
        """Return the result of a step; None unless it is finished."""
        return self.steps[step].result if step in self.steps else None

    @property
    def in_hand(self) -> Step | None:
        """The step that is begun and not finished; of several the one that was worked on last."""
        steps = [step for step in self.steps.values() if step.result is None]
        if self.result is not None:  # a study may follow it
            end = self.result.get("finished", "")
            steps = [s for s in steps if s.name.startswith("ranking") and s.begun > end]
        return max(steps, key=lambda step: (step.begun, step.touched), default=None)

    def is_current(self, step: Step) -> bool:
        """Tell whether a finished step is this config's: an earlier config may have left it."""
        latest = max(step.finished, step.taken_back)
        is_new = latest >= self.plan.get("begun", "")
        return is_new or step.name in self.plan.get("current", ())

    def finalists(self) -> list[tuple[Arch, float]]:
        """Return the finalists that are trained so far, and their AP on `val`."""
        if self.result is not None:
            rows = [row for rows in self.result["finalists"].values() for row in rows]
        else:
            steps = [
                step
                for name, step in self.steps.items()
                if name.startswith("finalists/") and name.endswith("/val") and step.result
            ]
            rows = [step.result for step in steps if self.is_current(step)]
        found = {}
        for row in rows:
            arch = read_arch(row["arch"])
            if arch is not None and row.get("AP") is not None:
                found[arch] = row["AP"]
        return list(found.items())

    def scores_of(self, search: str, step: str = "") -> list[dict]:
        """Return the journal's lines of a search that belong to its present or last run.

        Args:
          search: name of the search in the journal, such as "stage" or "candidates, seed 1".
          step: step of the search; "" for that of its level.
        """
        level = search.partition(",")[0]
        rows = [row for row in self.scores if row["search"] == search]
        key = (self.read(f"{step or f'{level}_search'}/{JOURNAL_KEY}") or {}).get(search)
        key = key or (rows[-1]["config"] if rows else None)
        return [row for row in rows if row["config"] == key]


def read_arch(fields) -> Arch | ScalePermuted | None:
    """Return the architecture of a result; None for one of another version."""
    try:
        return archs.read(json.dumps(fields))
    except UserError:
        return None


def longest(rows: list[dict]) -> dict[tuple, dict]:
    """Return by code the row with the most mini-batches; 0 of them stands for the whole split."""
    found = {}
    for row in rows:
        code = tuple(row["code"])
        batches = row["batches"] or math.inf
        if code not in found or batches >= (found[code]["batches"] or math.inf):
            found[code] = row
    return found


def _steps(path):
    steps = []
    for folder, subfolders, files in os.walk(path):
        subfolders[:] = [name for name in subfolders if name not in _NO_STEPS]
        if "key.json" in files:
            place = pathlib.Path(folder)
            name, result = place.relative_to(path).as_posix(), _json(place / "result.json")
            key = _json(place / "key.json") or {}
            times = (key.get(name, "") for name in ("begun", "taken_back"))
            steps.append(Step(name, place, result if isinstance(result, dict) else None, *times))

    def order(step):
        return step.finished if step.result else "z", step.name  # after every time

    return {step.name: step for step in sorted(steps, key=order)}


def _json(file):
    """Return the content of a JSON file; None where it is missing or no JSON."""
    try:
        return read_json(file) if file.exists() else None
    except UserError:
        return None


def json_lines(file: pathlib.Path) -> list[dict]:
    """Return the objects of a file of lines; torn ones are left out."""
    rows = []
    if file.is_file():
        for line in file.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
    return rows
