"""The append-only record of scored subnets: nothing in it is ever scored again."""

import dataclasses
import json
import math
import os
import pathlib

from crnas_jax.errors import UserError

FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Score:
    """What a subnet is worth, as far as some images can tell.

    Attributes:
      value: AP, a fraction; higher is better.
      interval: of 95 %, over resampled images.
      batches: mini-batches it was scored on, the first ones of the validation split.
      images: in those.
    """

    value: float
    interval: tuple[float, float]
    batches: int
    images: int


class Journal:
    """One JSON line for each scored subnet, flushed to disk before the next line.

    A torn last line (the process died while writing) is dropped when the file is opened again.

    Attributes:
      key: of everything a score depends on beside search, code and mini-batches; lines with another
        are not used.
    """

    def __init__(self, path: str | pathlib.Path, config_hash: str):
        """Reads what is there.

        Args:
          path: of the file.
          config_hash: becomes `key`.

        Raises:
          UserError: a line other than the last is no JSON.
        """
        self._path, self.key = pathlib.Path(path), config_hash
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._scores: dict[tuple, Score] = {}
        if self._path.exists():
            self._read()

    def _read(self):
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                if row["format"] == FORMAT and row["config"] == self.key:
                    low, high = row["ci95"]
                    score = Score(float(row["score"]), (low, high), row["batches"], row["images"])
                    self._scores[row["search"], tuple(row["code"]), score.batches] = score
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    self._path, f"line {number}", f"no score: {error}", "remove the line"
                ) from error

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, search: str, code, batches: int) -> Score | None:
        """The score of a code on so many mini-batches, None where it has none."""
        return self._scores.get((search, tuple(code), batches))

    def evaluated(self, search: str) -> int:
        """How many codes of a search have a score."""
        return len({code for name, code, _ in self._scores if name == search})

    def image_passes(self, search: str) -> int:
        """Images that all subnets of a search were scored on: of each, those of its longest score.

        Those for recalibrated statistics, the same number for every subnet, are not among them.
        """
        most: dict[tuple, int] = {}
        for (name, code, _), score in self._scores.items():
            if name == search:
                most[code] = max(most.get(code, 0), score.images)
        return sum(most.values())

    def add(self, search: str, code, score: Score, **details) -> None:
        """Appends one score and what else is known of it."""
        if not math.isfinite(score.value):
            raise ValueError(f"score {score} of {code}")
        code = [int(entry) for entry in code]
        row = {
            "format": FORMAT,
            "search": search,
            "config": self.key,
            "code": code,
            "score": score.value,
            "ci95": list(score.interval),
            "images": score.images,
            "batches": score.batches,
            **details,
        }
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._scores[search, tuple(code), score.batches] = score
