"""Find images that two splits share, whatever their names."""

import hashlib
import pathlib
from collections import defaultdict
from collections.abc import Mapping, Sequence


def shared_image(files: Mapping[str, Sequence[str]]) -> tuple[str, str, str, str] | None:
    """Return the first image file that two splits share, compared by content.

    Only files of equal size are opened, and at first only a part of each is read, so that a hundred
    thousand images take seconds.

    Args:
      files: paths of the image files by split.

    Returns:
      (split, path, second split, path in the second split); None if no image is shared.
    """
    groups = [[(split, path) for split, paths in files.items() for path in paths]]
    for key in (_num_bytes, _middle, _content_digest):
        subgroups = defaultdict(list)
        for index, group in enumerate(groups):
            for split, path in group:
                subgroups[index, key(path)].append((split, path))
        groups = [group for group in subgroups.values() if len({split for split, _ in group}) > 1]
    for group in groups:
        first = group[0]
        duplicate = next(entry for entry in group if entry[0] != first[0])
        return (*first, *duplicate)
    return None


def _num_bytes(path):
    return pathlib.Path(path).stat().st_size


def _middle(path):
    with pathlib.Path(path).open("rb") as file:
        file.seek(_num_bytes(path) // 2)
        return file.read(4096)


def _content_digest(path):
    with pathlib.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
