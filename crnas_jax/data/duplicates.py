"""Images that two splits share, whatever their names."""

import hashlib
import pathlib
from collections import defaultdict
from collections.abc import Mapping, Sequence


def shared_image(names: Mapping[str, Sequence[str]]) -> tuple[str, str, str, str] | None:
    """(split, file, other split, other file) of an image two splits share; None where none is.

    Files are compared by content. Only those of one size in bytes are opened, of those only a part
    is read at first, so that a hundred thousand images take seconds.
    """
    files = [(split, name) for split, paths in names.items() for name in paths]
    groups = [files]
    for key in (_bytes, _middle, _content):
        finer = defaultdict(list)
        for number, group in enumerate(groups):
            for split, name in group:
                finer[number, key(name)].append((split, name))
        groups = [group for group in finer.values() if len({split for split, _ in group}) > 1]
    for group in groups:
        first = group[0]
        other = next(entry for entry in group if entry[0] != first[0])
        return (*first, *other)
    return None


def _bytes(path):
    return pathlib.Path(path).stat().st_size


def _middle(path):
    with pathlib.Path(path).open("rb") as file:
        file.seek(_bytes(path) // 2)
        return file.read(4096)


def _content(path):
    with pathlib.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
