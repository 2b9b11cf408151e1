"""The append-only record of scored subnets: nothing in it is ever scored again."""

import json
import math
import os
import pathlib

from crnas_jax.errors import UserError

FORMAT = 1


class Journal:
    """One JSON line for each scored subnet, flushed to disk before the next line.

    A torn last line (the process died while writing) is dropped when the file is opened again.

    Attributes:
      key: of everything a score depends on; lines with another are not used.
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
        self._scores: dict[tuple, float] = {}
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
                    self._scores[row["search"], tuple(row["code"])] = float(row["score"])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    self._path, f"line {number}", f"no score: {error}", "remove the line"
                ) from error

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, search: str, code) -> float | None:
        """The score of a code, None where it has none."""
        return self._scores.get((search, tuple(code)))

    def add(self, search: str, code, score: float, **details) -> None:
        """Appends one score (a fraction; higher is better) and what else is known of it."""
        if not math.isfinite(score):
            raise ValueError(f"score {score} of {code}")
        code = [int(entry) for entry in code]
        row = {
            "format": FORMAT,
            "search": search,
            "config": self.key,
            "code": code,
            "score": score,
            **details,
        }
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._scores[search, tuple(code)] = score
