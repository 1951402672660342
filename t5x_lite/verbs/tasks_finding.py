"""What t5x_lite tasks check finds about a task."""

import dataclasses

from t5x_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something about a task.

    Args:
      text: what, why, and what to change.
      wrong: whether it must be changed; otherwise it is a warning.
    """

    text: str
    wrong: bool = True


def wrong(what: str, why: str, fix: str) -> Finding:
    """Something that must be changed. Arguments as UserError."""
    return Finding(str(UserError(what, why, fix)))


def warning(what: str, why: str, fix: str) -> Finding:
    """Something that may be meant. Arguments as UserError."""
    return Finding(str(UserError(what, why, fix)), wrong=False)


class Stop(Exception):
    """A finding that leaves nothing to go on with."""

    def __init__(self, finding: Finding):
        super().__init__(finding.text)
        self.finding = finding
