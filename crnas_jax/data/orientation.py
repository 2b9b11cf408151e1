"""Decide what boxes on photographs with an EXIF orientation were drawn on.

Some labelling tools show a photograph turned as its EXIF orientation says, others as its pixels are
stored, and annotation files do not say which. The size in the file tells where the orientation
exchanges height and width; what is told by some photographs of a file holds for all.
"""

import dataclasses
import functools
import pathlib

from crnas_jax.data.images import Header
from crnas_jax.errors import UserError

# The image as its pixels are stored, as viewers show it, or what the sizes tell.
STORED, SHOWN, AUTO = "stored", "shown", "auto"
CHOICES = (AUTO, STORED, SHOWN)
_REMEDY = (
    'look at one of them, then set config.data.exif to "shown" (boxes fit the photograph as '
    'viewers show it) or "stored"'
)


@dataclasses.dataclass(frozen=True)
class Orientations:
    """The photographs of one annotation file that carry an EXIF orientation other than 1.

    Attributes:
      file: annotation file.
      setting: one of `CHOICES`; other than `AUTO` it decides for photographs whose size does not.
      turned: by path the header, and the (height, width) that the annotation file gives.
    """

    file: pathlib.Path
    setting: str
    turned: dict[str, tuple[Header, tuple[int, int]]]

    @functools.cached_property
    def told(self) -> dict[str, list[str]]:
        """Paths of the photographs whose size tells `STORED`, and of those that tell `SHOWN`."""
        told = {STORED: [], SHOWN: []}
        for path, (header, size) in self.turned.items():
            if header.stored_size != header.shown_size:
                told[STORED if size == header.stored_size else SHOWN].append(path)
        return told

    @functools.cached_property
    def choice(self) -> str:
        """`STORED` or `SHOWN`, for photographs whose size does not tell.

        Raises:
          UserError: there are such photographs, and nothing decides.
        """
        stored, shown = self.told[STORED], self.told[SHOWN]
        if self.setting != AUTO or not self.turned:
            return SHOWN if self.setting == AUTO else self.setting
        if stored and shown:
            problem = (
                f"by their sizes, boxes belong to {len(stored)} photographs as stored "
                f"({_names(stored)}) and to {len(shown)} turned by EXIF ({_names(shown)})"
            )
            raise UserError(self.file, "config.data.exif", problem, _REMEDY)
        if not stored and not shown:
            problem = (
                f"nothing tells whether boxes belong to the {len(self.turned)} photographs with an "
                f"EXIF orientation ({_names(list(self.turned))}) as stored or as shown"
            )
            raise UserError(self.file, "config.data.exif", problem, _REMEDY)
        return STORED if stored else SHOWN

    def notes(self) -> list[str]:
        """Say what was decided, and why: lines for the plan."""
        if not self.turned:
            return []
        num_told = sum(map(len, self.told.values()))
        reason = f"told by the size of {num_told}"
        if self.setting != AUTO:
            reason = f"data.exif decides, but for {num_told} whose size tells"
        return [
            f"{len(self.turned)} photographs have an EXIF orientation: boxes belong to them as "
            f"{self.choice} ({reason})"
        ]


def _names(paths):
    names = ", ".join(pathlib.Path(path).name for path in paths[:3])
    return names + (", ..." if len(paths) > 3 else "")
