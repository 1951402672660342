"""The output of a command that may be cut off: whole lines of JSON, and beside them which command they are of.

F.jsonl               a line for each input, in order
F.jsonl.command.json  what decides what the lines say; the same command goes on behind the last whole line
"""

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping

from etils import epath

from t5x_lite.errors import RunError, UserError
from t5x_lite.output import is_remote, write_lines
from t5x_lite.train.metrics import json_line, say, write_whole

_CHUNK = 1 << 20
_TRIES = 10


class Answers:
    """Lines that are written, some of which may be there already.

    Args:
      path: of the file; None: stdout.
      done: how many lines are there.
      finished: they are all that the command gives.
    """

    def __init__(self, path: str | None, done: int = 0, finished: bool = False):
        self.path, self.done, self.finished = path, done, finished

    def state(self) -> str:
        """What is safe and how to go on, when the command is cut off."""
        return "what it has written are whole lines; the same command begins anew"

    def write(self, lines: Iterable[Mapping]) -> int:
        """Writes lines as they come and returns how many.

        Raises:
          RunError: they cannot be written, as on a full disk.
        """
        return write_lines(self.path, lines)


class _Resumable(Answers):
    """Lines of a local file, which is held open and locked."""

    def __init__(self, path: str, file: int, command: Mapping, done: int, finished: bool):
        super().__init__(path, done, finished)
        self._file, self._command, self.begun = file, command, False
        self._size = os.fstat(file).st_size if done else 0

    def state(self) -> str:
        return f"{self.path} holds {_lines(self.done)}; the same command goes on from there"

    def write(self, lines: Iterable[Mapping]) -> int:
        count = 0
        for line in lines:
            data = json_line(line).encode() + b"\n"
            with self._failures():
                if not self.done:
                    # Only now, so that a command that fails before leaves what was there. An empty file is of no
                    # command, whatever is beside it.
                    os.ftruncate(self._file, 0)
                    self.begun = True
                    self._describe(None)
                self._append(data)
            self.done += 1
            count += 1
        if self.done:
            with self._failures():
                self._describe(self.done)
        return count

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise RunError(
                f"{self.path} could not be written: {error.strerror or error}",
                f"it holds {_lines(self.done)}",
                "make room there, and run the same command again: it goes on from there",
            ) from error

    def _append(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            written += os.write(self._file, data[written:])
        self._size += len(data)

    def _describe(self, lines: int | None) -> None:
        text = json.dumps({"command": self._command, "lines": lines}, ensure_ascii=False, indent=1)
        write_whole(epath.Path(_beside(self.path)), text.encode() + b"\n")


def _beside(path: str) -> str:
    return f"{path}.command.json"


def _lines(count: int) -> str:
    return f"{count:,} whole line{'s' * (count != 1)}"


@contextlib.contextmanager
def opened(path: str | None, command: Mapping[str, object], overwrite: bool) -> Iterator[Answers]:
    """Where a command writes, or goes on writing.

    A local file that is there must be of the same command, unless it is empty or `overwrite`; a line that was cut
    short by a kill is taken out. Pipes and object stores are written from the start. Nothing is left behind where
    nothing was written.

    Args:
      path: see `output.check_file`, which has found it to be writable; None: stdout.
      command: what decides what the lines say, in words for the user: values of JSON.
      overwrite: begin anew, whatever is there; an older file stays until the first line is there.

    Raises:
      UserError: the file is of another command, or is being written by another process.
    """
    if path in (None, "/dev/stdout"):  # which may be a file, of whatever the shell appends to it
        yield Answers(None)
        return
    if is_remote(path):
        if epath.Path(path).exists() and not overwrite:
            raise UserError(
                f"--output={path} is there",
                "what is in an object store cannot be gone on with",
                "name another file with --output, or write over it with --overwrite",
            )
        yield Answers(path)
        return
    there = os.path.exists(path)
    if there and not stat.S_ISREG(os.stat(path).st_mode):
        yield Answers(path)
        return
    command = json.loads(json.dumps(command))
    file, locked = _taken(path)
    try:
        done, finished = 0, False
        if os.fstat(file).st_size and not overwrite:
            finished = _check(path, command)
            done = _cut(file)
            finished = finished == done > 0
        answers = _Resumable(path, file, command, done, finished)
        try:
            yield answers
        finally:
            if answers.begun and not os.fstat(file).st_size:
                epath.Path(_beside(path)).unlink(missing_ok=True)
    finally:
        # While it is locked, so that it is no other process's.
        if locked and not there and not os.fstat(file).st_size and _is_at(file, path):
            os.unlink(path)
        os.close(file)


def _taken(path: str) -> tuple[int, bool]:
    """Opens a file, made where there is none, and whether it is locked: not on a file system without locks."""
    for _ in range(_TRIES):
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            locked = _lock(file, path)
            if _is_at(file, path):
                return file, locked
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # another process has taken it away between the two
    raise UserError(
        f"--output={path} cannot be kept",
        "whenever it is opened, another file takes its place",
        "stop what replaces it, or name another file with --output",
    )


def _is_at(file: int, path: str) -> bool:
    """Whether an open file is what its path names now."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(file: int, path: str) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        raise UserError(
            f"--output={path} is in use",
            "another process is writing it",
            "wait for it or stop it, or name another file with --output",
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):  # a file system without locks
            raise
        return False


def _check(path: str, command: Mapping[str, object]) -> int | None:
    """Refuses a file of another command; the number of its lines where it was finished."""
    anew = "name another file with --output, or begin it anew with --overwrite"
    try:
        with open(_beside(path), encoding="utf-8") as file:
            found = json.load(file)
        before, lines = dict(found["command"]), found["lines"]
        names = [*command, *(name for name in before if name not in command)]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--output={path} is there", f"{_beside(path)}, which would say what made it, is not", anew
        ) from None
    for name in names:
        if before.get(name) != command.get(name):
            raise UserError(
                f"--output={path} is of another command",
                f"its {name} was {_shown(before.get(name))}, and is {_shown(command.get(name))} now",
                anew,
            )
    return lines


def _shown(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut(file: int) -> int:
    """Takes a last line without an end out of a file, and counts the others."""
    count, end, place = 0, 0, 0
    while data := os.pread(file, _CHUNK, place):
        if (last := data.rfind(b"\n")) >= 0:
            count, end = count + data.count(b"\n"), place + last + 1
        place += len(data)
    if end < place:
        os.ftruncate(file, end)
    return count


def is_finished(answers: Answers) -> bool:
    """Whether there is nothing to do; says so, and where a command goes on."""
    if answers.finished:
        what = f"is complete: it holds {_lines(answers.done)} of this command; --overwrite begins it anew"
        say(f"{answers.path} {what}")
    elif answers.done:
        say(f"{answers.path} holds {_lines(answers.done)} of this command: going on from there")
    return answers.finished


def say_done(what: str, count: int, total: int | None, by: object) -> None:
    """Says that a command is done: `1,024 of 2,000 inputs completed with the checkpoint of step 8`."""
    say(f"{count:,}{'' if total is None else f' of {total:,}'} {what} with {by}")
