"""Find images that come twice, in one split or in two, whatever their names."""

import hashlib
import pathlib
from collections import defaultdict
from collections.abc import Mapping, Sequence


def copies(files: Mapping[str, Sequence[str]]) -> list[list[tuple[str, str]]]:
    """Group the image files with the same content.

    Only files of equal size are opened, and at first only a part of each is read, so that a hundred
    thousand images take seconds.

    Args:
      files: paths of the image files by split.

    Returns:
      Groups of (split, path), each of at least two different paths; [] if all images differ.
    """
    groups = [[(split, path) for split, paths in files.items() for path in dict.fromkeys(paths)]]
    for key in (_num_bytes, _middle, _content_digest):
        subgroups = defaultdict(list)
        for index, group in enumerate(groups):
            for split, path in group:
                subgroups[index, key(path)].append((split, path))
        groups = [group for group in subgroups.values() if len(group) > 1]
    return groups


def _num_bytes(path):
    return pathlib.Path(path).stat().st_size


def _middle(path):
    with pathlib.Path(path).open("rb") as file:
        file.seek(_num_bytes(path) // 2)
        return file.read(4096)


def _content_digest(path):
    with pathlib.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
