"""Who may write where: the primary alone, and in a working folder its latest run alone.

A lock keeps a second process out, but not every mount honours locks, and a process that was stopped
for long may wake when another one has gone on with its work. So each run that claims a folder
leaves a new token there, and looks before it writes whether the token is still its own.
"""

import pathlib
import uuid

from crnas_jax.errors import UserError
from crnas_jax.runtime import team

TOKEN = ".generation"
_claimed: dict[pathlib.Path, str] = {}


def claim(folder: pathlib.Path) -> str:
    """Leave a new token in a folder, and write there from now on only while it is there."""
    folder, token = folder.absolute(), uuid.uuid4().hex
    (folder / TOKEN).write_text(token)
    _claimed[folder] = token
    return token


def release(folder: pathlib.Path) -> None:
    """End what `claim` began."""
    _claimed.pop(folder.absolute(), None)


def read_token(folder: pathlib.Path) -> str | None:
    """Return the token in a folder; None where there is none to be seen."""
    try:
        return (folder / TOKEN).read_text()
    except OSError:
        return None


def may_write(path: pathlib.Path) -> bool:
    """Return whether this process writes a file: on the primary it does.

    Raises:
      UserError: see `require`.
    """
    if not team.is_primary():
        return False
    require(path)
    return True


def require(path: pathlib.Path) -> None:
    """Raise UserError where another run has claimed the working folder of a path since."""
    path = path.absolute()
    for folder, token in _claimed.items():
        if path.is_relative_to(folder) and read_token(folder) != token:
            raise UserError(
                folder,
                "--workdir",
                "another run has gone on with the work here",
                "nothing was written since; let that one finish",
            )
