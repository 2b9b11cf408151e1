"""Read TFRecord files, the format that TFDS writes by default, without TensorFlow.

A record is its length (8 bytes), the checksum of the length, the content, and its checksum; all
little-endian. Checksums are CRC-32C, rotated and shifted. Compressed files are refused.
"""

import os
import pathlib
import struct
from collections.abc import Iterator

import google_crc32c

from crnas_jax.data.records.features import ClassificationFeatures, DetectionFeatures
from crnas_jax.data.records.folder import (
    FEATURES,
    INFO,
    RESTORE,
    open_builder,
    read_info,
    stock_name,
)
from crnas_jax.data.records.writer import DataSet, Split
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import digest, read_regular

_HEAD, _CHECKSUM = struct.Struct("<QI"), struct.Struct("<I")
_MASK = 0xA282EAD8
# How gzip and zlib begin.
_COMPRESSED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_MAX_BYTES = 2**31


def data_set(folder: str | pathlib.Path) -> DataSet:
    """Describe a folder of TFRecords in TFDS's layout as a data set to write.

    Raises:
      UserError: it is no such folder, its features cannot be read, or a file is missing.
    """
    folder = pathlib.Path(folder).expanduser()
    fields = read_info(folder)
    file_format = fields.get("fileFormat") or "tfrecord"
    if file_format != "tfrecord":
        problem = f"{str(file_format)[:40]!r} instead of 'tfrecord'"
        raise UserError(folder / INFO, "fileFormat", problem, "array_record is read as it is")
    builder = open_builder(folder)
    info = builder.info
    lengths = {split: list(part.shard_lengths) for split, part in info.splits.items()}
    names = {split: list(part.filenames) for split, part in info.splits.items()}
    kind = DetectionFeatures if "objects" in info.features else ClassificationFeatures
    meaning = kind(info.features, folder / FEATURES, stock_name(fields))
    splits = {
        split: _split(folder, split, [folder / pathlib.Path(n).name for n in names[split]], counts)
        for split, counts in lengths.items()
        if sum(counts)
    }
    if not splits:
        raise UserError(folder / INFO, "splits", "there is no record", "give another folder")
    return DataSet(info.name, info.features, meaning, splits, builder)


def _split(folder, split, paths, counts):
    for path in paths:
        if not path.is_file():
            raise UserError(path, "shard", "missing", RESTORE)

    def records(start: int, stop: int) -> Iterator[bytes]:
        first = 0
        for path, count in zip(paths, counts, strict=True):
            begin, end = max(start - first, 0), min(stop - first, count)
            if begin < end:
                yield from read_records(path, begin, end, count)
            first += count

    sizes = [path.stat().st_size for path in paths]
    key = digest(read_regular(folder / INFO), read_regular(folder / FEATURES), str(sizes))
    return Split(
        sum(counts), sum(sizes), records, lambda row: f"{folder}/{split}, record {row}", key
    )


def read_records(path: pathlib.Path, start: int, stop: int, count: int) -> Iterator[bytes]:
    """Yield records `start` to `stop` - 1 of a file; the content of others is passed over.

    Args:
      path: the file.
      start: first record.
      stop: record after the last one; if that is `count`, the file is followed to its end.
      count: number of records that it must hold.

    Raises:
      UserError: it is compressed, damaged, cut off, or holds another number of records.
    """
    with path.open("rb") as file:
        row = 0
        while (row < stop or stop == count) and (head := file.read(_HEAD.size)):
            if len(head) < _HEAD.size:
                raise _damaged(path, row, "it is cut off")
            length, checksum = _HEAD.unpack(head)
            if checksum != _masked(head[:8]) or length > _MAX_BYTES:
                if row == 0 and head.startswith(_COMPRESSED):
                    raise UserError(path, "shard", "it is compressed", "prepare it uncompressed")
                raise _damaged(path, row, "damaged, or no TFRecord: the length's checksum differs")
            if not start <= row < stop:
                file.seek(length + _CHECKSUM.size, os.SEEK_CUR)
                row += 1
                continue
            content = file.read(length + _CHECKSUM.size)
            if len(content) < length + _CHECKSUM.size:
                raise _damaged(path, row, "it is cut off")
            record, (checksum,) = content[:length], _CHECKSUM.unpack(content[length:])
            if checksum != _masked(record):
                raise _damaged(path, row, "damaged: the checksum differs")
            yield record
            row += 1
    if row != stop:
        raise UserError(path, "shard", f"{row} records, {INFO} says {count}", RESTORE)


def _masked(content):
    checksum = google_crc32c.value(content)
    return ((checksum >> 15 | checksum << 17) + _MASK) & 0xFFFFFFFF


def _damaged(path, row, problem):
    return UserError(path, f"record {row}", problem, RESTORE)
