"""Output that goes on behind its last whole line, of the same command alone."""

import errno
import json
import os
import signal

import pytest

from t5x_lite import resumable
from t5x_lite.errors import Preempted, RunError, UserError
from t5x_lite.interruption import preemptible

COMMAND = {"verb": "infer", "strategy": "greedy", "checkpoint": ["/m@8"]}
LINES = [{"n": n, "text": "é\u2028"} for n in range(10)]
WHOLE = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in LINES)


def write(path, stop=None, command=COMMAND, overwrite=False):
    """Writes the lines that are missing, or as many as `stop`; returns how many were there."""
    with resumable.opened(str(path), command, overwrite) as answers:
        answers.write(LINES[answers.done : stop])
        return answers


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.jsonl"


@pytest.mark.parametrize("torn", ["", '{"n": 4, "te'])
def test_a_file_that_was_cut_off_is_gone_on_with(path, torn):
    write(path, 4)
    beside = json.loads((path.parent / "out.jsonl.command.json").read_text())
    beside["lines"] = None  # as it is until the last line is there
    (path.parent / "out.jsonl.command.json").write_text(json.dumps(beside))
    with path.open("a") as file:
        file.write(torn)
    answers = write(path)
    assert not answers.finished and path.read_text() == WHOLE
    assert write(path).finished and path.read_text() == WHOLE


def test_lines_can_be_read_as_soon_as_they_are_written(path):
    def lines():
        for number, line in enumerate(LINES):
            assert path.read_text().count("\n") == number
            yield line

    with resumable.opened(str(path), COMMAND, False) as answers:
        assert answers.write(lines()) == 10


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strategy": "beam beam_size=4"}, r"Its strategy was greedy, and is beam beam_size=4 now"),
        ({"checkpoint": ["/m@12"]}, r'Its checkpoint was \["/m@8"\], and is \["/m@12"\] now'),
        ({"seed": 1}, r"Its seed was null, and is 1 now"),
    ],
)
def test_the_output_of_another_command_is_refused(path, changed, message):
    write(path, 4)
    before = path.read_text()
    with pytest.raises(UserError, match=rf"--output=\S+ is of another command\. ({message})\. .*--overwrite"):
        write(path, command=COMMAND | changed)
    assert path.read_text() == before
    write(path, command=COMMAND | changed, overwrite=True)
    assert path.read_text() == WHOLE
    assert write(path, command=COMMAND | changed).finished
    with pytest.raises(UserError, match="is of another command"):
        write(path)


@pytest.mark.parametrize("beside", [None, "no JSON", "[]", '{"command": {}}'])
def test_a_file_of_nobody_knows_what_is_refused(path, beside):
    path.write_text("kept\n")
    if beside is not None:
        (path.parent / "out.jsonl.command.json").write_text(beside)
    with pytest.raises(UserError, match=r"--output=\S+ is there\. \S+command\.json, which would .* --overwrite"):
        write(path)
    assert path.read_text() == "kept\n"


def test_an_older_file_stays_until_the_first_line_is_there(path):
    path.write_text("older\n")

    def failing():
        raise UserError("what", "why", "fix")
        yield

    with pytest.raises(UserError), resumable.opened(str(path), COMMAND, True) as answers:
        answers.write(failing())
    assert path.read_text() == "older\n" and os.listdir(path.parent) == ["out.jsonl"]


def test_nothing_is_left_where_nothing_was_written(path):
    with pytest.raises(UserError), resumable.opened(str(path), COMMAND, False):
        raise UserError("what", "why", "fix")
    assert os.listdir(path.parent) == []
    path.touch()  # an empty file is of no command
    assert not write(path).done == 0 and path.read_text() == WHOLE


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("failing", ["write", "replace"])
def test_nothing_is_left_where_the_first_line_cannot_be_written(path, failing, monkeypatch):
    """Of a line, and of the description beside the lines."""
    monkeypatch.setattr(os, failing, full_disk)
    with pytest.raises(RunError, match=r"could not be written: No space left on device\. It holds 0 whole lines\."):
        write(path)
    monkeypatch.undo()
    assert os.listdir(path.parent) == []
    path.touch()  # which was there before
    monkeypatch.setattr(os, failing, full_disk)
    with pytest.raises(RunError):
        write(path)
    monkeypatch.undo()
    assert os.listdir(path.parent) == ["out.jsonl"]
    write(path)
    assert path.read_text() == WHOLE
    monkeypatch.setattr(os, failing, full_disk)
    with pytest.raises(RunError):
        write(path, overwrite=True)
    monkeypatch.undo()
    assert path.read_bytes() == b"" and os.listdir(path.parent) == ["out.jsonl"]


def test_what_cannot_be_marked_as_finished_is_gone_on_with(path, monkeypatch):
    with pytest.raises(RunError, match=r"No space left on device\. It holds 10 whole lines\."):
        with resumable.opened(str(path), COMMAND, False) as answers:
            answers.write(iter_then(LINES, lambda: monkeypatch.setattr(os, "replace", full_disk)))
    monkeypatch.undo()
    assert path.read_text() == WHOLE
    assert not write(path).finished and write(path).finished and path.read_text() == WHOLE


def iter_then(items, act):
    yield from items
    act()


def test_a_file_that_was_taken_away_meanwhile_is_made_anew(path, monkeypatch):
    """Another process that had nothing to write takes its file away between our opening and locking it."""
    real, taken = resumable._lock, []

    def lock(file, name):
        if not taken:
            taken.append(os.unlink(name))
        real(file, name)

    monkeypatch.setattr(resumable, "_lock", lock)
    write(path)
    assert path.read_text() == WHOLE


def test_two_processes_do_not_write_one_file(path, monkeypatch):
    with resumable.opened(str(path), COMMAND, False):
        with pytest.raises(UserError, match=r"--output=\S+ is in use\. Another process is writing it"):
            write(path)
        # Nor takes the other away what is empty so far, even where it was not there when it looked.
        monkeypatch.setattr(resumable.os.path, "exists", lambda path: False)
        with pytest.raises(UserError):
            write(path)
        monkeypatch.undo()
        assert path.exists()


def test_a_file_that_never_stays_is_refused(path, monkeypatch):
    real = resumable._lock
    monkeypatch.setattr(resumable, "_lock", lambda file, name: (os.unlink(name), real(file, name))[1])
    with pytest.raises(UserError, match=r"--output=\S+ cannot be kept\. Whenever it is opened"):
        write(path)


def test_simultaneous_starts_write_one_output(path, monkeypatch):
    """B looks while there is no file, and locks once A has made and locked it."""
    real = resumable._taken

    def taken_in_between(name):
        monkeypatch.setattr(resumable, "_taken", real)
        with resumable.opened(name, COMMAND, False) as first:
            with pytest.raises(UserError, match="is in use"):
                real(name)
            first.write(LINES)
        return real(name)

    monkeypatch.setattr(resumable, "_taken", taken_in_between)
    with resumable.opened(str(path), COMMAND, False) as second:
        assert second.finished
    assert path.read_text() == WHOLE


def test_a_full_disk_leaves_whole_lines(path, monkeypatch):
    real, room = os.write, [len(WHOLE.encode()) // 2 + 7]  # in the middle of a line

    def full(file, data):
        if room[0] < len(data):
            if not room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            data = data[: room[0]]
        room[0] -= len(data)
        return real(file, data)

    monkeypatch.setattr(resumable.os, "write", full)
    with pytest.raises(RunError, match=r"could not be written: No space left on device\. It holds \d whole lines"):
        write(path)
    assert WHOLE.startswith(path.read_text()) and path.read_text().endswith("\n")
    monkeypatch.undo()
    assert write(path).done == 10
    assert path.read_text() == WHOLE


def test_what_is_no_file_is_written_from_the_start():
    for place in ("/dev/null", None, "/dev/stdout"):
        with resumable.opened(place, COMMAND, False) as answers:
            assert answers.write(LINES) == 10 and not answers.finished
    assert not os.path.exists("/dev/null.command.json")


def test_sigterm_is_an_exception_that_says_what_is_safe(path):
    before = signal.getsignal(signal.SIGTERM)

    def lines():
        yield from LINES[:3]
        os.kill(os.getpid(), signal.SIGTERM)
        yield from LINES[3:]

    with pytest.raises(Preempted, match=r"stopped by SIGTERM: \S+ holds 3 whole lines; the same command goes on"):
        with resumable.opened(str(path), COMMAND, False) as answers, preemptible(answers.state):
            answers.write(lines())
    assert signal.getsignal(signal.SIGTERM) == before
    write(path)
    assert path.read_text() == WHOLE


def test_a_signal_that_was_swallowed_is_found_again():
    with preemptible(lambda: "safe") as check:
        check()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Preempted:
            pass  # as a callback out of C does
        with pytest.raises(Preempted):
            check()
