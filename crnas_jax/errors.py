"""The exception for mistakes that a user can mend."""


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


class NotFinite(UserError):
    """A training whose loss or weights are not finite any more."""
