"""The records of a split in the order of its images, found by an index.

Where the data set has no index, every record is read once for it.
"""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np

from crnas_jax.data import images
from crnas_jax.data.records.features import ClassificationFeatures, DetectionFeatures
from crnas_jax.data.records.folder import (
    FEATURES,
    INFO,
    Examples,
    RecordFolder,
    features_digest,
)
from crnas_jax.data.records.index import (
    FORMAT,
    NO_ID,
    RecordIndex,
    join,
    make_index,
    read_index,
    write_index,
)
from crnas_jax.errors import UserError
from crnas_jax.runtime import files
from crnas_jax.runtime.ownership import may_write
from crnas_jax.runtime.progress import Progress

_OF_ANNOTATIONS = (
    *("image_id", "size", "label", "object_image", "object_id", "object_label"),
    *("bbox", "area", "flags", "has_mask"),
)
# Indices that this process has made, by their key.
_scanned: dict[str, RecordIndex] = {}
# Records that are indexed at once: their objects are Python's until they become columns.
_PART = 2048


def own_index(folder: pathlib.Path, split: str) -> pathlib.Path:
    """Return the path of the index that `data.records.builders` writes beside a split's shards."""
    return folder / f"index-{split}.npz"


def split_index(
    folder: RecordFolder,
    split: str,
    features: DetectionFeatures | ClassificationFeatures,
    max_pixels: int,
    keep_in: pathlib.Path | None,
) -> tuple[RecordIndex, pathlib.Path | None]:
    """Return the index of a split: the one beside its shards, the one kept, or a new one.

    Args:
      folder: the data set.
      split: name of the split.
      features: what its features mean.
      max_pixels: pixels of the largest image that is decoded.
      keep_in: folder in which an earlier run may have kept it; None for none.

    Returns:
      The index, and the path to keep it at; None where it is in a file already.

    Raises:
      UserError: a file is missing, or a record cannot be used.
    """
    sizes = folder.require_shards(split)
    own = own_index(folder.path, split)
    if own.exists():
        return _own_index(own, folder, features, sizes, folder.num_records(split)), None
    # Records that were written anew have other times.
    times = [path.stat().st_mtime_ns for path in folder.shards[split]]
    info, features_key = files.read_regular(folder.path / INFO), features_digest(folder.path)
    place = str(folder.path.resolve())
    key = files.digest(place, split, info, features_key, json.dumps([FORMAT, sizes, times]))
    kept = None if keep_in is None else keep_in / f"{key}.npz"
    if kept is not None and kept.exists():
        return read_index(kept, "remove it: the records are then read again"), None
    if key in _scanned:  # parts of one split are the splits of a run
        return _scanned[key], None
    _scanned[key] = scan(folder, split, features, sizes, max_pixels)
    return _scanned[key], kept


def _own_index(file, folder, features, sizes, num_records):
    """Read the index beside the shards; raise UserError unless it is theirs."""
    remedy = "remove it: each new run then reads all records first"
    index = read_index(file, remedy)
    categories = index.description.get("categories", features.class_names)
    shards = index.description.get("shards")
    is_theirs = isinstance(shards, dict) and len(categories) == len(features.class_names)
    is_theirs = is_theirs and index.description.get("features") == features_digest(folder.path)
    if not is_theirs:
        raise UserError(
            file, "index", f"it belongs to other records, or {FEATURES} changed", remedy
        )
    for name, size in sizes.items():
        if shards.get(name) != size:
            problem = f"{size} bytes, {file.name} says otherwise: damaged, or replaced"
            remedy = "restore it, or prepare it again"
            raise UserError(folder.path / name, "shard", problem, remedy)
    if len(index) != num_records:
        problem = f"{num_records} records by {INFO}, {len(index)} by {file.name}"
        raise UserError(folder.path / INFO, "shardLengths", problem, "restore it")
    return index


def scan(
    folder: RecordFolder,
    split: str,
    features: DetectionFeatures | ClassificationFeatures,
    sizes: dict[str, int],
    max_pixels: int,
) -> RecordIndex:
    """Read all records of a split and return their index.

    Args:
      folder: see `split_index`.
      split: see `split_index`.
      features: see `split_index`.
      sizes: sizes of the shards by name, bytes.
      max_pixels: see `split_index`.

    Raises:
      UserError: see `split_index`.
    """
    folder.require_lengths(split)
    examples = folder.examples(split, features.skip)
    if not len(examples):
        raise UserError(folder.path, f"split {split}", "no records", "give another split")
    description = {"shards": sizes, **features.description(examples[0])}
    parts, title = [], f"index of {folder.path} {split}"
    progress = Progress(title, len(examples), unit="record", beginning="reading all records once")
    for start in range(0, len(examples), _PART):
        stop = min(start + _PART, len(examples))

        def entry(row, start=start):
            return features.entry(examples[start + row])

        def place(row, start=start):
            return f"{folder.path}/{split}, record {start + row}"

        num_classes = len(features.class_names)
        part = make_index(stop - start, entry, place, description, num_classes, max_pixels)
        parts.append(part)
        progress.update(stop)
    progress.close()
    return join(parts, description)


class Records:
    """The records that a text in TFDS's language names, in the order of image ids.

    Without ids they are numbered from 1 by the names of their files, of a classification data set
    within their class; without names by their content.

    Attributes:
      place: folder and splits, for messages.
      index: their index.
    """

    def __init__(
        self,
        folder: RecordFolder,
        spec: str,
        features: DetectionFeatures | ClassificationFeatures,
        max_pixels: int,
        field: str,
        keep_in: pathlib.Path | None,
    ):
        """Find the records; those of a folder without an index are read once.

        Args:
          folder: the data set.
          spec: such as "train", "train[:90%]" or "train+validation".
          features: what its features mean.
          max_pixels: pixels of the largest image that is decoded.
          field: field of the config with `spec`, for messages.
          keep_in: folder in which indices of earlier runs may lie; None for none.

        Raises:
          UserError: there are no such records, or one cannot be used.
        """
        self.place = f"{folder.path}/{spec}"
        self._fresh: list[tuple[pathlib.Path, RecordIndex]] = []
        self._examples: list[Examples] = []
        self._splits: list[str] = []
        parts, positions, part_of, seen = [], [], [], {}
        for number, (split, rows) in enumerate(folder.positions(spec, field)):
            index, keep_at = split_index(folder, split, features, max_pixels, keep_in)
            if keep_at is not None:
                self._fresh.append((keep_at, index))
            parts.append(index.select(rows))
            positions.append(rows)
            part_of.append(np.full(len(rows), number))
            self._examples.append(folder.examples(split, features.skip))
            known = seen.get(split, rows[:0])
            if np.intersect1d(known, rows).size:
                problem = f"{spec!r} holds records twice"
                raise UserError("config", field, problem, "give parts that do not overlap")
            seen[split] = np.concatenate([known, rows])
            self._splits.append(f"{folder.path}/{split}")
        joined = join(parts, parts[0].description)
        if not len(joined):
            raise UserError("config", field, f"{spec!r} holds no record", "give another split")
        order, image_id = self._order(joined, np.concatenate(part_of), field)
        self.index = dataclasses.replace(joined.select(order), image_id=image_id)
        self._part_of = np.concatenate(part_of)[order]
        self._positions = np.concatenate(positions)[order]

    def _order(self, index, part_of, field):
        """Return the order of the records, and their ids in it."""
        is_missing = index.image_id == NO_ID
        if is_missing.any():
            names = index.name
            if not all(names.tolist()) or len(np.unique(names)) < len(names):
                names = index.sha256.view("S32").reshape(-1)
            order = np.lexsort((names, part_of, index.label))
            return order, np.arange(1, len(order) + 1, dtype=np.int64)
        order = np.argsort(index.image_id, kind="stable")
        image_id = index.image_id[order]
        (repeated,) = np.nonzero(np.diff(image_id) == 0)
        if len(repeated):
            problem = f"image/id {image_id[repeated[0]]} comes twice in {self.place}"
            raise UserError("config", field, problem, "give splits of different images")
        return order, image_id

    def __len__(self) -> int:
        return len(self.index)

    def name(self, row: int) -> str:
        """Return what names a record in messages."""
        name = self.index.name[row].decode(errors="replace")
        record = f"{self._splits[self._part_of[row]]}, record {self._positions[row]}"
        return f"{record} ({name})" if name else record

    def example(self, row: int) -> dict:
        """Read a record."""
        return self._examples[self._part_of[row]][self._positions[row]]

    def header(self, row: int) -> images.Header:
        """Return the header of the record's image, without reading it."""
        height, width = self.index.stored_size[row].tolist()
        orientation, has_16_bits = self.index.orientation[row], self.index.has_16_bits[row]
        return images.Header("record", height, width, int(orientation), bool(has_16_bits))

    def digest(self) -> str:
        """Return a digest of ids and annotations."""
        sha = hashlib.sha256(json.dumps(self.index.description.get("categories")).encode())
        for name in _OF_ANNOTATIONS:
            sha.update(np.ascontiguousarray(getattr(self.index, name)).tobytes())
        return sha.hexdigest()

    def keep(self) -> None:
        """Write the indices that were made, for the next run.

        Raises:
          UserError: one cannot be written.
        """
        for path, index in self._fresh:
            try:
                if may_write(path):
                    path.parent.mkdir(exist_ok=True)
                    write_index(path, index)
            except OSError as error:
                problem = f"cannot be written: {error.strerror or error}"
                raise UserError(path, "index", problem, "make room, then try again") from error
        self._fresh = []


@dataclasses.dataclass(frozen=True)
class StoredRecord:
    """The image of a record, a `stored.StoredImage`."""

    records: Records
    row: int

    @property
    def name(self) -> str:
        """What names the record in messages."""
        return self.records.name(self.row)

    @property
    def num_bytes(self) -> int:
        """Length of the encoded image."""
        return int(self.records.index.num_bytes[self.row])

    def header(self, max_pixels: int) -> images.Header:
        """Return what the index says: the image was checked for it."""
        header = self.records.header(self.row)
        images.require_pixels(self.name, *header.stored_size, max_pixels)
        return header

    def read(self, max_pixels: int) -> tuple[np.ndarray, images.Header]:
        """Decode the image as it is stored."""
        content = self.records.example(self.row)["image"]
        return images.decode(self.name, content, max_pixels)

    def sample(self) -> bytes:
        """Return nothing: the digest is at hand."""
        return b""

    def digest(self) -> bytes:
        """Return the SHA-256 of the encoded image."""
        return self.records.index.sha256[self.row].tobytes()
