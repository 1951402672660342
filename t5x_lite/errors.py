"""The two ways a command can fail, each with its exit code.

A `UserError` is wrong input: it says what, with the value, why it cannot be, and
the exact flag or gin name to change. A `RunError` is a failure of the run itself
(a full disk, a NaN loss): it says what is safe and how to go on.
"""

import difflib
import re
from collections.abc import Iterable


def _sentences(first: str, *rest: str) -> str:
    return " ".join(part.strip().rstrip(".") + "." for part in (first, *map(_capitalised, rest)))


def _capitalised(part: str) -> str:
    """A part that begins like a sentence, but for a flag, a name or a path, which stays as it is to be written."""
    part = part.strip()
    word = part.partition(" ")[0].rstrip(".,:;")
    return part if word.startswith("-") or re.search("[._/=]", word) else part[:1].upper() + part[1:]


class UserError(Exception):
    """Wrong input. Printed as one line without a traceback; the exit status is 2.

    Args:
      what: what is wrong, with the value.
      why: the reason it cannot be.
      fix: the exact flag or gin name to change.
    """

    exit_code = 2

    def __init__(self, what: str, why: str, fix: str):
        super().__init__(_sentences(what, why, fix))

    @classmethod
    def from_text(cls, text: str) -> "UserError":
        """An error whose three parts are already one text."""
        error = cls.__new__(cls)
        Exception.__init__(error, text)
        return error


class RunError(Exception):
    """The run itself failed. The exit status is 1.

    Args:
      what: what failed.
      safe: what is committed and can be relied on.
      go_on: how to continue.
    """

    exit_code = 1

    def __init__(self, what: str, safe: str, go_on: str):
        super().__init__(_sentences(what, safe, go_on))


class Preempted(BaseException):
    """The run was asked to stop (SIGTERM), has saved, and is not done. The exit status is 75 (EX_TEMPFAIL).

    Like KeyboardInterrupt it comes out of a signal wherever that arrives, and is no error of what it interrupts.
    """

    exit_code = 75


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """'Did you mean a, b or c' for a misspelt name, or the start of the list where nothing is near."""
    known = sorted(set(known))
    lowered = {k.lower(): k for k in known}
    found = [lowered[m] for m in difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.5)]
    if found:
        return "Nearest: " + ", ".join(found)
    if not known:
        return "None is known"
    return "Known: " + ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
