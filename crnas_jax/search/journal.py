"""The append-only record of scored subnets: nothing in it is ever scored again."""

import dataclasses
import json
import math
import pathlib

from crnas_jax.errors import UserError
from crnas_jax.runtime import team
from crnas_jax.runtime.files import append, whole_lines

FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Score:
    """A subnet's score on some images.

    Attributes:
      value: AP, a fraction; higher is better.
      interval: 95 % interval over resampled images.
      num_batches: number of first mini-batches of the split that it was scored on.
      num_images: images in those mini-batches.
      failure: why a candidate scored 0 without having been scored; "" where it was.
    """

    value: float
    interval: tuple[float, float]
    num_batches: int
    num_images: int
    failure: str = ""


class Journal:
    """One JSON line for each scored subnet, flushed to disk before the next line.

    A torn last line (the process died while writing) is dropped when the file is opened again.
    Who only reads leaves it. Of several hosts the primary reads and writes it for all.

    Attributes:
      key: digest of everything a score depends on besides search, code and mini-batches; lines
        with another key are not used.
    """

    def __init__(self, path: str | pathlib.Path, key: str, read_only: bool = False):
        """Read the lines that are there.

        Args:
          path: path of the file.
          key: see the class.
          read_only: whether the file is left as it is.

        Raises:
          UserError: a line other than the last is no JSON.
        """
        self._path, self.key = pathlib.Path(path), key
        self._scores: dict[tuple, Score] = {
            key: Score(**fields) for key, fields in team.decide(self._read, read_only).items()
        }

    def _read(self, read_only):
        """Return the fields of the scores with this key; drop a torn last line."""
        if not read_only:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        scores = {}
        for line_number, line in enumerate(whole_lines(self._path, repair=not read_only), 1):
            try:
                row = json.loads(line)
                if row["format"] == FORMAT and row["config"] == self.key:
                    low, high = row["ci95"]
                    scores[row["search"], tuple(row["code"]), row["batches"]] = {
                        "value": float(row["score"]),
                        "interval": (low, high),
                        "num_batches": row["batches"],
                        "num_images": row["images"],
                        "failure": row.get("failure", ""),
                    }
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    self._path, f"line {line_number}", f"no score: {error}", "remove the line"
                ) from error
        return scores

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, search: str, code, num_batches: int) -> Score | None:
        """Return the score of a code on the first mini-batches, None where it has none."""
        return self._scores.get((search, tuple(code), num_batches))

    def scores_of(self, search: str) -> dict[tuple, Score]:
        """Return the scores of a search on whole splits, by code."""
        return {
            code: score
            for (name, code, batches), score in self._scores.items()
            if name == search and batches == 0
        }

    def effort(self, search: str) -> dict[str, int]:
        """Return how much a search has scored.

        Returns:
          `evaluated`, the number of scored codes; `image_passes`, the images that they were scored
          on, for each code those of its longest score. The images for recalibrated statistics, the
          same number for every subnet, are not among them.
        """
        images: dict[tuple, int] = {}
        for (name, code, _), score in self._scores.items():
            if name == search:
                images[code] = max(images.get(code, 0), score.num_images)
        return {"evaluated": len(images), "image_passes": sum(images.values())}

    def add(self, search: str, code, score: Score, **details) -> None:
        """Append a score and further details."""
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
            "images": score.num_images,
            "batches": score.num_batches,
            **({"failure": score.failure} if score.failure else {}),
            **details,
        }
        append(self._path, json.dumps(row) + "\n")
        self._scores[search, tuple(code), score.num_batches] = score
