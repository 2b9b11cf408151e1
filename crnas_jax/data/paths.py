"""Find the file that an image's entry names, inside the folder of images."""

import pathlib
import re
import unicodedata
import urllib.parse

from crnas_jax.runtime.files import exists


def leads_out(name: str) -> bool:
    """Tell whether a file name of an annotation file is absolute or may leave its folder.

    Links that the user has put into the folder are the user's own, and are followed.
    """
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    has_drive = re.match(r"[A-Za-z]:", name) is not None
    return path.is_absolute() or has_drive or ".." in path.parts or "\0" in name


def image_path(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Return the path of an image; where there is no such file, of the one that must be meant.

    Tools write names with backslashes, encoded for URLs, composed otherwise (Unicode), or with the
    folder of the images before them.

    Args:
      folder: folder of the images.
      name: name that does not lead out (`leads_out`).
    """
    path = folder / name
    if exists(path):
        return path
    slashes = name.replace("\\", "/")
    others = [slashes, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))]
    others += [urllib.parse.unquote(slashes), slashes.removeprefix(f"{folder.name}/")]
    paths = (folder / other for other in others if not leads_out(other))
    return next(filter(exists, paths), path)
