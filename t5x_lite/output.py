"""Where verbs write: places are refused before any work, held while they are written, and lines go out as they come."""

import contextlib
import errno
import fcntl
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

from etils import epath

from t5x_lite.errors import RunError, UserError


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path names an object store, such as gs://."""
    return "://" in os.fspath(path)


def check_local(path: str, flag: str) -> None:
    """Refuses a path in an object store.

    Raises:
      UserError: it is one.
    """
    if is_remote(path):
        raise UserError(
            f"{flag}={path} is not on this machine",
            "what this flag names is read or written in place",
            f"name a local path with {flag}, and copy it: gcloud storage cp --recursive",
        )


def check_file(path: str | None, flag: str, source: str | None = None) -> None:
    """Refuses a file that cannot be written, and leaves everything as it is.

    Args:
      path: of the file, which may be there and is then written over; None is stdout, gs:// is taken as it is.
      flag: that named it.
      source: a file that the verb reads.

    Raises:
      UserError: there is no such folder, it cannot be written, or the file is `source`.
    """
    if path is None or is_remote(path):
        return
    if source is not None and os.path.exists(path) and os.path.samefile(path, source):
        raise UserError(
            f"{flag}={path} is also the input", "it would be written over", f"name another file with {flag}"
        )
    try:
        if not os.path.exists(path):
            _try(Path(path).parent)
        elif os.path.isdir(path):
            raise IsADirectoryError("it is a folder")
        elif os.path.isfile(path):
            open(path, "ab").close()
    except OSError as error:
        raise _refused(path, flag, error, "file") from error


def check_folder(path: str | os.PathLike, flag: str) -> None:
    """Refuses a folder, there or to be made with those above it, in which no file can be written.

    Args:
      path: of the folder; gs:// is taken as it is.
      flag: that names it.

    Raises:
      UserError: a part of the path is no folder, or cannot be written.
    """
    if is_remote(path):
        return
    whole = Path(path).absolute()
    try:
        _try(next(p for p in (whole, *whole.parents) if os.path.lexists(p)))
    except OSError as error:
        raise _refused(path, flag, error, "folder") from error


def _try(folder: Path) -> None:
    # Permissions do not say it all: the system's superuser has every one of them on a read-only file system.
    with tempfile.TemporaryFile(dir=folder):
        pass


def _refused(path: str | os.PathLike, flag: str, error: OSError, kind: str) -> UserError:
    return UserError(
        f"{flag}={os.fspath(path)} cannot be written", error.strerror or str(error), f"name another {kind} with {flag}"
    )


@contextlib.contextmanager
def held(folder, flag: str) -> Iterator[None]:
    """Keeps a local folder to this process; the system lets it go when the process ends, however it ends.

    Raises:
      UserError: another process holds it.
    """
    path = os.fspath(folder)
    if is_remote(path):
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                yield  # a file system without locks
                return
            if not isinstance(error, BlockingIOError):
                raise
            raise UserError(
                f"{flag}={path} is in use",
                "another process is writing there, and two would spoil each other's files",
                f"wait for it or stop it, or choose another {flag}",
            ) from None
        yield
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike, text: str, safe: str) -> None:
    """Writes text over a file, whole or not at all; into what is no file, such as /dev/stdout, as it is.

    Args:
      path: of the file, local or gs://.
      text: what it then holds.
      safe: what is not lost where it cannot be written.

    Raises:
      RunError: it cannot be written, as on a full disk.
    """
    from t5x_lite.train.metrics import write_whole  # at the top it would need TensorBoard's package, as below

    place = epath.Path(path)
    is_in_place = not is_remote(path) and (os.path.islink(path) or os.path.exists(path) and not os.path.isfile(path))
    try:
        place.write_text(text, encoding="utf-8") if is_in_place else write_whole(place, text.encode())
    except OSError as error:
        raise RunError(
            f"{os.fspath(path)} could not be written: {error.strerror or error}",
            safe,
            "make room there, or name another place, and run the same command again",
        ) from error


def write_lines(path: str | os.PathLike | None, lines: Iterable[Mapping]) -> int:
    """Writes lines of JSON as they come, over a file or to stdout.

    Args:
      path: of the file, local or gs://; None: stdout. An older file stays until the first line is there.
      lines: what they hold; numbers that are not finite are written as null.

    Returns:
      How many.

    Raises:
      RunError: they cannot be written, as on a full disk.
    """
    # Not at the top: `bench` checks its --output where TensorBoard's package is not installed.
    from t5x_lite.train.metrics import json_line

    lines, count = iter(lines), 0
    first = list(islice(lines, 1))
    try:
        with contextlib.nullcontext(sys.stdout.buffer) if path is None else epath.Path(path).open("wb") as file:
            for line in chain(first, lines):
                file.write(json_line(line).encode() + b"\n")
                file.flush()
                count += 1
    except OSError as error:
        if path is None:
            raise
        raise RunError(
            f"{os.fspath(path)} could not be written: {error.strerror or error}",
            f"it holds {count} whole line{'s' * (count != 1)}",
            "make room there, or name another place, and run the same command again",
        ) from error
    return count
