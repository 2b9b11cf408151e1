"""The exception for mistakes that a user can mend."""

import errno

# How a system says that a disk takes no more.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class UserError(Exception):
    """A mistake in a config, a data set, a checkpoint or the command line.

    Scripts print it as one line and exit with status 2, without a traceback.

    Attributes:
      where: file, folder, config or options class with the mistake.
      field: entry inside it.
      problem: what is wrong, in a few words.
      remedy: what to do about it.
      is_shared: whether all processes of a team raise it (`runtime.team.decide`).
    """

    is_shared = False

    def __init__(self, where, field: str, problem: str, remedy: str):
        self.where, self.field, self.problem, self.remedy = str(where), field, problem, remedy
        text = f"{where}: {field}: {problem}; {remedy}"
        super().__init__(" ".join(text.split()))

    @property
    def fields(self) -> dict[str, str]:
        """What it was made from, by name."""
        return {name: getattr(self, name) for name in ("where", "field", "problem", "remedy")}


class NotFinite(UserError):
    """A training whose loss or weights are not finite any more."""


def disk_error(error: OSError) -> UserError | None:
    """Return what a user can do about a disk that takes no more; None for other errors."""
    if error.errno not in _FULL:
        return None
    remedy = "make room or lift the limit, then give the same command again"
    return UserError(error.filename or "disk", "file", error.strerror, remedy)
