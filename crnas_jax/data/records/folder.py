"""A folder in TFDS's layout: its splits, and random access to their records without TensorFlow."""

import contextlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from crnas_jax.errors import UserError
from crnas_jax.runtime.files import digest, read_regular

INFO, FEATURES = "dataset_info.json", "features.json"
# Folder inside records that are not finished yet (`records.writer`).
UNFINISHED = "unfinished"
# The only format with random access.
FILE_FORMAT = "array_record"
# Modules of the classes that features.json may name: TFDS imports whatever stands there.
_TRUSTED = "tensorflow_datasets.core.features."
# What to do about a file that is missing or damaged.
RESTORE = "restore it, or prepare the data set again"


class RecordFolder:
    """A prepared data set.

    Attributes:
      path: the folder.
      info: TFDS's `DatasetInfo`.
      stock_name: see `stock_name`.
      shards: by split, the paths of its files.
    """

    def __init__(self, folder: str | pathlib.Path):
        """Read what the folder says of itself; no record is read.

        Raises:
          UserError: it is no such folder, a file is missing, or its format or a feature cannot be
            read without executing code from elsewhere.
        """
        self.path = pathlib.Path(folder).expanduser()
        fields = read_info(self.path)
        file_format = fields.get("fileFormat") or "tfrecord"
        if file_format != FILE_FORMAT:
            remedy = "prepare it again with file_format='array_record'"
            if file_format == "tfrecord":
                remedy = "convert it: crnas-jax prepare-data --dataset=tfrecord --source=FOLDER"
            problem = f"{str(file_format)[:40]!r} has no random access"
            raise UserError(self.path / INFO, "fileFormat", problem, remedy)
        self._builder = open_builder(self.path)
        self.info, self.stock_name = self._builder.info, stock_name(fields)
        self.shards, self._starts = {}, {}
        for split, part in self.info.splits.items():
            self.shards[split] = [pathlib.Path(path) for path in part.filepaths]
            for path in self.shards[split]:
                if path.parent != self.path:
                    problem = f"the shard {str(path)[:80]} lies elsewhere"
                    raise UserError(self.path / INFO, "filepathTemplate", problem, RESTORE)
            self._starts[split] = np.cumsum([0, *part.shard_lengths])

    def num_records(self, split: str) -> int:
        """Return the number of records of a split."""
        return int(self._starts[split][-1])

    def require_shards(self, split: str) -> dict[str, int]:
        """Return the sizes of a split's files by name, bytes.

        Raises:
          UserError: a file is missing.
        """
        sizes = {}
        for path in self.shards[split]:
            if not path.is_file():
                raise UserError(path, "shard", "missing", RESTORE)
            sizes[path.name] = path.stat().st_size
        return sizes

    def require_lengths(self, split: str) -> None:
        """Raise UserError unless every file of a split holds as many records as it should."""
        lengths = self.info.splits[split].shard_lengths
        for path, length in zip(self.shards[split], lengths, strict=True):
            try:
                number = len(ArrayRecordDataSource([str(path)]))
            except Exception as error:  # array_record raises many types of exceptions
                problem = f"does not load: {_first_line(error)}"
                raise UserError(path, "shard", problem, RESTORE) from error
            if number != length:
                problem = f"{number} records, {INFO} says {length}"
                raise UserError(path, "shard", problem, RESTORE)

    def positions(self, spec: str, field: str) -> list[tuple[str, np.ndarray]]:
        """Return the splits that a text in TFDS's language names, with positions in them.

        Args:
          spec: such as "train", "train[:90%]" or "train+validation[10:]".
          field: field of the config, for messages.

        Raises:
          UserError: it names no records of this folder.
        """
        splits = []
        try:
            for part in spec.split("+"):
                split = part.split("[")[0].strip()
                where = {path.name: index for index, path in enumerate(self.shards[split])}
                rows = []
                for shard in self.info.splits[part.strip()].file_instructions:
                    index = where[pathlib.Path(shard.filename).name]
                    start = self._starts[split][index] + shard.skip
                    stop = start + shard.take
                    if shard.take == -1:
                        stop = self._starts[split][index + 1]
                    elif shard.take < 0:  # TFDS lets a part end before it begins
                        raise ValueError(part)
                    rows.append(np.arange(start, stop))
                splits.append((split, np.concatenate([np.zeros(0, int), *rows])))
        except (KeyError, ValueError) as error:
            names = ", ".join(self.shards)
            problem = f"{spec[:60]!r} is no split of {self.path}, nor parts of splits"
            remedy = f"there are {names}; parts are such as 'train[:90%]' and 'train[200:]'"
            raise UserError("config", field, problem, remedy) from error
        return splits

    def examples(self, split: str, skip: dict[str, Any]) -> "Examples":
        """Return the records of a split; `skip` is TFDS's tree of features to leave encoded."""
        return Examples(self, split, self._builder.as_data_source(split, decoders=skip))

    def shard_of(self, split: str, position: int) -> pathlib.Path:
        """Return the file that holds a record."""
        return self.shards[split][int(np.searchsorted(self._starts[split], position, "right")) - 1]


class Examples:
    """The records of a split as dicts of features, by position; threads may share it."""

    def __init__(self, folder: RecordFolder, split: str, source: Sequence[dict[str, Any]]):
        """Take TFDS's data source of a split; see `RecordFolder.examples`."""
        self._folder, self._split, self._source = folder, split, source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Read a record.

        Raises:
          UserError: its shard is damaged.
        """
        try:
            return self._source[int(position)]
        except Exception as error:  # array_record and protobuf raise many types of exceptions
            shard = self._folder.shard_of(self._split, position)
            problem = f"does not load: {_first_line(error)}"
            raise UserError(shard, f"record {position}", problem, RESTORE) from error


def read_info(folder: pathlib.Path) -> dict[str, Any]:
    """Return the content of `dataset_info.json`.

    Raises:
      UserError: it is missing or is no JSON object.
    """
    file = folder / INFO
    try:
        fields = json.loads(read_regular(file))
        if not isinstance(fields, dict):
            raise ValueError("no JSON object")
    except OSError as error:
        below = (path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/{INFO}"))
        inside = sorted(path.parent for path in below)[:1]
        remedy = f"give {inside[0]}" if inside else "give the folder of a prepared TFDS data set"
        if (folder / UNFINISHED).exists():
            remedy = "it is unfinished: give the command of prepare-data again"
        raise UserError(file, "file", error.strerror or "unreadable", remedy) from error
    except ValueError as error:
        raise UserError(file, "json", str(error)[:100], RESTORE) from error
    return fields


def stock_name(fields: dict[str, Any]) -> str:
    """Return the name of the builder of TFDS itself that has prepared a folder; "" for another.

    Args:
      fields: content of its `dataset_info.json`.
    """
    module = str(fields.get("moduleName", ""))
    is_stock = module.startswith("tensorflow_datasets.")
    # Folders that are read, and written again, name the class that has read them.
    is_stock = is_stock and not module.startswith("tensorflow_datasets.core.")
    return str(fields.get("name", "")) if is_stock else ""


def open_builder(folder: pathlib.Path) -> tfds.core.DatasetBuilder:
    """Return TFDS's builder of a prepared folder, in whatever format.

    Raises:
      UserError: a file is missing or damaged, a name cannot be one of files, or a feature's class
        would have to be imported from elsewhere.
    """
    try:
        with _known_features(folder / FEATURES):
            builder = tfds.builder_from_directory(folder)
            features = builder.info.features
        if not isinstance(features, tfds.features.FeaturesDict):
            raise ValueError("the features have no names")
        names = [builder.info.name, *builder.info.splits]
        lengths = [part.shard_lengths for part in builder.info.splits.values()]
    except UserError:
        raise
    except Exception as error:  # TFDS and protobuf raise many types of exceptions
        problem = f"does not load: {_first_line(error)}"
        raise UserError(folder / FEATURES, "features", problem, RESTORE) from error
    for name in names:
        require_plain_name(folder / INFO, name)
    if any(length < 0 for of_split in lengths for length in of_split):
        raise UserError(folder / INFO, "shardLengths", "below 0", RESTORE)
    return builder


def require_plain_name(place, name: str) -> None:
    """Raise UserError unless the name of a data set or a split can begin that of a file."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        problem = f"{name[:80]!r} cannot be part of a file's name"
        raise UserError(place, "name", problem, "use letters, digits, dots and hyphens")


@contextlib.contextmanager
def _known_features(file):
    """Keep TFDS from importing the modules that features.json names, in any of its spellings."""
    connector = tfds.features.FeatureConnector
    original = connector.__dict__["cls_from_name"]

    def known_class(cls, name):
        parts = str(name).removeprefix(_TRUSTED).split(".")
        is_known = str(name).startswith(_TRUSTED) and all(part.isidentifier() for part in parts)
        if not is_known:
            problem = f"{str(name)[:80]!r} is no feature of TFDS"
            raise UserError(file, "pythonClassName", problem, "prepare the data set without it")
        return original.__get__(None, cls)(name)

    connector.cls_from_name = classmethod(known_class)
    try:
        yield
    finally:
        connector.cls_from_name = original


def features_digest(folder: pathlib.Path) -> str:
    """Return a digest of what says what the records' features are."""
    files = [folder / FEATURES, *sorted(folder.glob("*.labels.txt"))]
    return digest(*(part for file in files for part in (file.name, read_regular(file))))


def _first_line(error):
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
