"""Write records as shards with random access, in TFDS's layout, with an index beside them.

A shard is written under another name, read back for its index, and then named: one that has its
name is finished, and is never written again.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping

import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.dataset_info import DatasetIdentity

from crnas_jax.data.images import MAX_PIXELS
from crnas_jax.data.records.features import ClassificationFeatures, DetectionFeatures
from crnas_jax.data.records.folder import (
    FILE_FORMAT,
    INFO,
    UNFINISHED,
    features_digest,
    require_plain_name,
)
from crnas_jax.data.records.index import join, make_index, read_index, write_index
from crnas_jax.data.records.split import own_index
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import digest, file_sha256, read_json, write_json
from crnas_jax.runtime.progress import Progress

VERSION = "1.0.0"
SHARD_BYTES = 256 * 2**20
STATE = "state.json"
# Random access to single records; JPEG does not get smaller.
_WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Split:
    """A split to write.

    Attributes:
      num_records: number of its records.
      num_bytes: bytes of all of them, roughly.
      records: function of (start, stop) that yields the records from a position on, serialised.
      place: function from a position to what names its image in messages.
      digest: text that changes with the annotations.
    """

    num_records: int
    num_bytes: int
    records: Callable[[int, int], Iterator[bytes]]
    place: Callable[[int], str]
    digest: str


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set to write.

    Attributes:
      name: name of its files.
      features: TFDS's features of its records.
      meaning: what they mean.
      splits: its splits by name.
      origin: TFDS's builder of the data set that the records are copies of.
    """

    name: str
    features: tfds.features.FeaturesDict
    meaning: DetectionFeatures | ClassificationFeatures
    splits: Mapping[str, Split]
    origin: tfds.core.DatasetBuilder | None = None


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Records `start` to `stop` - 1 of a split, shard `index` of `count`."""

    name: str
    split: str
    index: int
    count: int
    start: int
    stop: int

    @property
    def file(self):
        return f"{self.name}-{self.split}.{FILE_FORMAT}-{self.index:05d}-of-{self.count:05d}"

    @property
    def part(self):
        """Name of its index, until all shards are finished."""
        return f"{self.split}-{self.index:05d}.npz"


def prepare(
    data_set: DataSet,
    output: str | pathlib.Path,
    shard_bytes: int = SHARD_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Write the records of a data set, or go on with those that are there.

    Args:
      data_set: the data set.
      output: the folder; a new one, or one that this has begun.
      shard_bytes: bytes in a shard, roughly.
      max_pixels: pixels of the largest image that is taken.

    Raises:
      UserError: the folder holds something else, an image cannot be used, or the disk is full.
    """
    output = pathlib.Path(output).expanduser()
    for name in (data_set.name, *data_set.splits):
        require_plain_name(output, name)
    shards = list(_shards(data_set, shard_bytes))
    key = digest(
        data_set.name,
        json.dumps(data_set.features.to_json(), sort_keys=True),
        *(f"{shard.file} {shard.start} {shard.stop}" for shard in shards),
        *(split.digest for split in data_set.splits.values()),
    )
    if _is_finished(output, data_set, key):
        print(f"{output}: finished before, nothing to do")
        return
    with _disk_errors(output), contextlib.ExitStack() as stack:
        work = _claim(output, key)
        stack.enter_context(_alone(output, work))
        todo = [shard for shard in shards if not _has_shard(output, work, shard)]
        _require_room(output, data_set, todo)
        num_records = sum(shard.stop - shard.start for shard in shards)
        done = num_records - sum(shard.stop - shard.start for shard in todo)
        title = f"records of {data_set.name}"
        progress = Progress(title, num_records, done, "record", beginning="the first shard")
        for shard in todo:
            _write_shard(data_set, output, work, shard, max_pixels)
            done += shard.stop - shard.start
            progress.update(done)
        progress.close()
        _finish(data_set, output, work, shards, key)
    print(f"{output}: {num_records} records in {len(shards)} shards")


def _shards(data_set, shard_bytes):
    for name, split in data_set.splits.items():
        if not split.num_records:
            raise UserError(data_set.name, f"split {name}", "no images", "leave it out")
        count = min(max(-(-split.num_bytes // shard_bytes), 1), split.num_records)
        for index in range(count):
            start, stop = (split.num_records * edge // count for edge in (index, index + 1))
            yield _Shard(data_set.name, name, index, count, start, stop)


def _is_finished(output, data_set, key):
    """Tell whether these records are there already.

    Raises:
      UserError: others are.
    """
    if not (output / INFO).exists():
        return False
    for split in data_set.splits:
        file = own_index(output, split)
        index = read_index(file, "remove the folder") if file.exists() else None
        if index is None or index.description.get("made_from") != key:
            problem = "other records are there"
            raise UserError(output, "--output", problem, "name another folder, or remove it first")
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)
    return True


def _claim(output, key):
    """Return the folder for what is unfinished, made unless it is there."""
    work = output / UNFINISHED
    if not (work / STATE).exists():
        if output.exists() and any(path.name != UNFINISHED for path in output.iterdir()):
            problem = "something else is there"
            raise UserError(output, "--output", problem, "name a new folder")
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / STATE, {"made_from": key})
    if read_json(work / STATE, "remove the folder").get("made_from") != key:
        problem = "records of other data, or in other shards, are begun there"
        raise UserError(output, "--output", problem, "name another folder, or remove it first")
    return work


@contextlib.contextmanager
def _alone(output, work):
    """Raise UserError where another process is at work in the folder."""
    with (work / STATE).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            problem = "another process writes there"
            raise UserError(output, "--output", problem, "wait for it, or name another") from error
        except OSError:
            pass  # a mount without locks
        yield


def _has_shard(output, work, shard):
    """Tell whether a shard is finished.

    Raises:
      UserError: it has changed since.
    """
    path = output / shard.file
    if not path.exists():
        return False
    part = read_index(work / shard.part, f"remove {path}")
    if file_sha256(path).hex() != part.description["sha256"]:
        problem = "its content has changed since it was written"
        raise UserError(path, "shard", problem, "remove it, then give the same command again")
    return True


def _require_room(output, data_set, shards):
    """Say how much will be written; raise UserError unless there is room for it."""
    need = 0
    for shard in shards:
        split = data_set.splits[shard.split]
        need += split.num_bytes * (shard.stop - shard.start) // split.num_records
    free = shutil.disk_usage(output).free
    print(f"{output}: {need / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free", flush=True)
    if need > free:
        problem = f"{need / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free"
        raise UserError(output, "disk", problem, "make room, or name a folder elsewhere")


def _write_shard(data_set, output, work, shard, max_pixels):
    temporary, split = work / f"{shard.file}.tmp", data_set.splits[shard.split]
    writer = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
    try:
        for record in split.records(shard.start, shard.stop):
            writer.write(record)
    finally:
        writer.close()
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    source, meaning = ArrayRecordDataSource([str(temporary)]), data_set.meaning

    def entry(row):
        record = source[row]
        example = data_set.features.deserialize_example_np(record, decoders=meaning.skip)
        return meaning.entry(example)

    index = make_index(
        shard.stop - shard.start,
        entry,
        lambda row: split.place(shard.start + row),
        {"sha256": file_sha256(temporary).hex(), "size": temporary.stat().st_size},
        len(meaning.class_names),
        max_pixels,
    )
    write_index(work / shard.part, index)
    temporary.rename(output / shard.file)


def _finish(data_set, output, work, shards, key):
    """Write the indices, then what makes the folder one of TFDS's."""
    infos, indices = [], {}
    for name in data_set.splits:
        of_split = [shard for shard in shards if shard.split == name]
        parts = [read_index(work / shard.part, "remove the folder") for shard in of_split]
        sizes = {
            shard.file: part.description["size"]
            for shard, part in zip(of_split, parts, strict=True)
        }
        first = ArrayRecordDataSource([str(output / of_split[0].file)])[0]
        example = data_set.features.deserialize_example_np(first, decoders=data_set.meaning.skip)
        description = {"shards": sizes, "made_from": key, **data_set.meaning.description(example)}
        indices[name] = join(parts, description)
        template = tfds.core.ShardedFileTemplate(
            data_dir=output, dataset_name=data_set.name, split=name, filetype_suffix=FILE_FORMAT
        )
        lengths = [shard.stop - shard.start for shard in of_split]
        infos.append(
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=lengths,
                num_bytes=sum(sizes.values()),
                filename_template=template,
            )
        )
    info = _write_info(data_set, output, work, infos)
    features = features_digest(info)
    for name, index in indices.items():
        description = {**index.description, "features": features}
        index = dataclasses.replace(index, description=description)
        write_index(own_index(output, name), index)
    # The file that makes the folder complete comes last.
    for path in sorted(info.iterdir(), key=lambda path: path.name == INFO):
        path.rename(output / path.name)
    shutil.rmtree(work, ignore_errors=True)  # what is left of it, the next call removes


def _write_info(data_set, output, work, infos):
    """Write TFDS's files into a folder of their own; return it."""
    identity, texts = DatasetIdentity(data_set.name, tfds.core.Version(VERSION), "", ""), {}
    if data_set.origin is not None:
        identity = DatasetIdentity.from_builder(data_set.origin)
        names = ("description", "citation", "homepage", "supervised_keys")
        texts = {name: getattr(data_set.origin.info, name) for name in names}
    identity.data_dir = str(output)
    info = tfds.core.DatasetInfo(builder=identity, features=data_set.features, **texts)
    info.set_file_format(FILE_FORMAT)
    info.set_splits(tfds.core.splits.SplitDict(infos))
    folder = work / "info"
    folder.mkdir(exist_ok=True)
    info.write_to_directory(folder)
    return folder


@contextlib.contextmanager
def _disk_errors(output):
    """Turn what a full disk raises into a UserError; array_record raises it as a RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        text = str(error)
        numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
        problem = next((os.strerror(n) for n in numbers if os.strerror(n) in text), "")
        if not problem and isinstance(error, RuntimeError):
            raise
        remedy = "make room, then give the same command again: finished shards stay"
        problem = problem or error.strerror or text
        raise UserError(output, "records", f"cannot be written: {problem}", remedy) from error
