"""Results of a search that are not scores yet, on disk: matches, statistics, and draws.

A score needs the matches on all mini-batches. They are written as they come, so that a search that
dies repeats no more than the chunk of subnets on the mini-batch in flight.
"""

import pathlib
import shutil
from collections.abc import Sequence

import numpy as np

from crnas_jax.evaluation.average_precision import RECORD_FIELDS
from crnas_jax.runtime import team
from crnas_jax.runtime.files import digest, replacing
from crnas_jax.runtime.ownership import may_write


class ResultCache:
    """Matches by code and mini-batch, or statistics or draws by code, of one search.

    Of several hosts the primary alone reads and writes it, for all.

    A file holds several codes. Files appear whole or not at all; a file that cannot be read counts
    as absent.
    """

    def __init__(self, folder: str | pathlib.Path, key: str):
        """Open the cache.

        Args:
          folder: folder of all caches.
          key: everything the contents depend on besides code and mini-batch.
        """
        self._folder = pathlib.Path(folder) / digest(key)

    def add_matches(self, batch: int, codes: Sequence, records: Sequence[dict]) -> None:
        """Store the records of each code on one mini-batch (`average_precision.match_records`)."""
        arrays = {name: np.concatenate([rows[name] for rows in records]) for name in RECORD_FIELDS}
        counts = np.array([len(rows["score"]) for rows in records])
        self._write("matches", codes, batch=np.int64(batch), counts=counts, **arrays)

    def matches(self) -> dict[tuple, dict]:
        """Return all stored records by (code, mini-batch); on other hosts None in their places."""
        records = self._matches() if team.is_primary() else {}
        return {key: records.get(key) for key in team.decide(lambda: list(records))}

    def _matches(self):
        records = {}
        for codes, file in self._read("matches"):
            ends = np.cumsum(file["counts"])
            parts = {name: np.split(file[name], ends[:-1]) for name in RECORD_FIELDS}
            for position, code in enumerate(codes):
                rows = {name: parts[name][position] for name in RECORD_FIELDS}
                records[code, int(file["batch"])] = rows
        return records

    def add_statistics(self, codes: Sequence, leaves: Sequence[Sequence[np.ndarray]]) -> None:
        """Store batch-normalisation statistics: for each code the leaves of its tree."""
        columns = zip(*leaves, strict=True)
        arrays = {f"leaf{index:04d}": np.stack(column) for index, column in enumerate(columns)}
        self._write("statistics", codes, **arrays)

    def statistics(self) -> dict[tuple, list[np.ndarray]]:
        """Return all stored statistics by code, leaves in the order given."""
        return team.decide(self._statistics)

    def _statistics(self):
        statistics = {}
        for codes, file in self._read("statistics"):
            leaves = [file[name] for name in sorted(file) if name.startswith("leaf")]
            for position, code in enumerate(codes):
                statistics[code] = [leaf[position] for leaf in leaves]
        return statistics

    def add_draws(self, codes: Sequence, draws: Sequence[np.ndarray]) -> None:
        """Store scores on resampled images: for each code [samples]."""
        self._write("draws", codes, draws=np.stack(draws))

    def draws(self) -> dict[tuple, np.ndarray]:
        """Return all stored draws by code."""
        return team.decide(self._draws)

    def _draws(self):
        draws = {}
        for codes, file in self._read("draws"):
            draws |= dict(zip(codes, file["draws"], strict=True))
        return draws

    def clear(self) -> None:
        """Remove everything."""
        if may_write(self._folder):
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, kind, codes, **arrays):
        if not may_write(self._folder):
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        name = digest(repr((arrays.get("batch"), codes)))
        with replacing(self._folder / f"{kind}-{name}.npz") as file:
            # Unused places of a path are zeros, and most rows of matches are alike: they compress.
            np.savez_compressed(file, codes=np.array(codes, np.int32), **arrays)

    def _read(self, kind):
        for path in sorted(self._folder.glob(f"{kind}-*.npz")):
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                    arrays = dict(content)
                codes = [tuple(code) for code in arrays["codes"].tolist()]
            except (OSError, MemoryError):  # the machine failed, not the file
                raise
            except Exception:  # damaged in any way NumPy can stumble over
                path.unlink(missing_ok=True)
                continue
            yield codes, arrays
