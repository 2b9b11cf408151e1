"""What a search has worked out, kept on disk: matches by mini-batch, statistics, and draws.

A score needs the matches on all mini-batches. They are written as they come, so that a search that
dies repeats no more than the chunk of subnets on the mini-batch in flight.
"""

import pathlib
import shutil
from collections.abc import Sequence

import numpy as np

from crnas_jax.evaluation.average_precision import FIELDS
from crnas_jax.runtime.workdir import digest, replacing


class PartialResults:
    """Matches by code and mini-batch, or statistics or draws by code, of one search.

    A file holds several codes. Files appear whole or not at all; one that cannot be read is as good
    as absent.
    """

    def __init__(self, folder: str | pathlib.Path, key: str):
        """Args: the folder; everything the contents depend on but code and mini-batch."""
        self._folder = pathlib.Path(folder) / digest(key)
        self._folder.mkdir(parents=True, exist_ok=True)

    def add_matches(self, batch: int, codes: Sequence, rows: Sequence[dict]) -> None:
        """Keeps the rows of each code on one mini-batch (`average_precision.flags`)."""
        arrays = {name: np.concatenate([one[name] for one in rows]) for name in FIELDS}
        counts = np.array([len(one["score"]) for one in rows])
        self._write("matches", codes, batch=np.int64(batch), counts=counts, **arrays)

    def matches(self) -> dict[tuple, dict]:
        """All that is kept: by (code, mini-batch), rows as given."""
        kept = {}
        for codes, file in self._read("matches"):
            ends = np.cumsum(file["counts"])
            parts = {name: np.split(file[name], ends[:-1]) for name in FIELDS}
            for position, code in enumerate(codes):
                one = {name: parts[name][position] for name in FIELDS}
                kept[code, int(file["batch"])] = one
        return kept

    def add_statistics(self, codes: Sequence, leaves: Sequence[Sequence[np.ndarray]]) -> None:
        """Keeps batch-normalisation statistics: for each code the leaves of its tree."""
        columns = zip(*leaves, strict=True)
        arrays = {f"leaf{index:04d}": np.stack(column) for index, column in enumerate(columns)}
        self._write("statistics", codes, **arrays)

    def statistics(self) -> dict[tuple, list[np.ndarray]]:
        """All that is kept: by code, leaves in the order given."""
        kept = {}
        for codes, file in self._read("statistics"):
            leaves = [file[name] for name in sorted(file) if name.startswith("leaf")]
            for position, code in enumerate(codes):
                kept[code] = [leaf[position] for leaf in leaves]
        return kept

    def add_draws(self, codes: Sequence, draws: Sequence[np.ndarray]) -> None:
        """Keeps scores on resampled images: for each code [samples]."""
        self._write("draws", codes, draws=np.stack(draws))

    def draws(self) -> dict[tuple, np.ndarray]:
        """All that is kept: by code, as given."""
        kept = {}
        for codes, file in self._read("draws"):
            kept |= dict(zip(codes, file["draws"], strict=True))
        return kept

    def clear(self) -> None:
        """Removes everything: it is scored."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, kind, codes, **arrays):
        name = digest(repr((arrays.get("batch"), codes)))
        with replacing(self._folder / f"{kind}-{name}.npz") as file:
            # Places that a path does not use are zeros, and most rows of matches are alike.
            np.savez_compressed(file, codes=np.array(codes, np.int32), **arrays)

    def _read(self, kind):
        for path in sorted(self._folder.glob(f"{kind}-*.npz")):
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                    arrays = dict(content)
                codes = [tuple(code) for code in arrays["codes"].tolist()]
            except (OSError, MemoryError):  # the machine's fault
                raise
            except Exception:  # damaged in any way NumPy can stumble over
                path.unlink(missing_ok=True)
                continue
            yield codes, arrays
