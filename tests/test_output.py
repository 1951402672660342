"""Lines as they come, and places that are looked at without leaving a trace."""

import errno
import fcntl
import io
import json
import os
import resource
import sys
import threading

import pytest

from t5x_lite.errors import RunError, UserError
from t5x_lite.output import check_file, check_folder, held, write_lines, write_text


def test_lines_can_be_read_as_soon_as_they_are_written(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("older\n" * 9)

    def lines():
        assert path.read_text() == "older\n" * 9
        for number in range(3):
            yield {"number": number, "text": "é\n", "loss": float("nan")}
            found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            assert found == [{"number": n, "text": "é\n", "loss": None} for n in range(number + 1)]

    assert write_lines(path, lines()) == 3
    assert write_lines(path, []) == 0 and path.read_text() == ""


def test_what_was_written_before_a_failure_is_counted(tmp_path):
    """A pipe whose reader leaves after two lines stands for a disk that is full."""
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def read_two():
        with open(path, "rb", buffering=0) as file:
            file.read(16)

    reader = threading.Thread(target=read_two)
    reader.start()

    def lines():
        yield {"n": 1}
        yield {"n": 2}
        reader.join()
        yield {"n": 3}

    with pytest.raises(RunError, match=r"could not be written: Broken pipe\. It holds [12] whole line"):
        write_lines(path, lines())
    reader.join()


def test_lines_go_to_stdout_as_utf8_whatever_the_terminal(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert write_lines(None, [{"text": "é"}]) == 1
    assert json.loads(stream.buffer.getvalue().decode()) == {"text": "é"}


def test_looking_at_a_place_changes_nothing(tmp_path):
    (tmp_path / "file").write_text("kept")
    before = os.stat(tmp_path / "file").st_mtime_ns, sorted(tmp_path.rglob("*"))
    for path in (tmp_path / "file", tmp_path / "new", "/dev/null", "gs://bucket/file", None):
        check_file(path if path is None else str(path), "--output")
    for path in (tmp_path, tmp_path / "a/b/c", "gs://bucket/folder"):
        check_folder(path, "--output_dir")
    assert (os.stat(tmp_path / "file").st_mtime_ns, sorted(tmp_path.rglob("*"))) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_permissions_are_looked_at(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o400)
    with pytest.raises(UserError, match="Permission denied"):
        check_file(str(tmp_path / "file"), "--output")
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        check_folder(tmp_path / "new", "--output_dir")
    tmp_path.chmod(0o700)


def test_a_folder_is_held_by_one(tmp_path):
    with held(tmp_path, "--gin.MODEL_DIR"):
        with pytest.raises(UserError, match=r"--gin.MODEL_DIR=\S+ is in use\. Another process .* choose another --gin"):
            with held(tmp_path, "--gin.MODEL_DIR"):
                pass
    with held(tmp_path, "--gin.MODEL_DIR"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with held(tmp_path, "--gin.MODEL_DIR"):
        pass


@pytest.fixture
def limit_of_files():
    """Sets how many bytes a file of this process can have."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_text_is_written_whole_or_the_older_file_stays(tmp_path, limit_of_files):
    path = tmp_path / "page.html"
    write_text(path, "older", "nothing is lost")
    limit_of_files(1000)
    with pytest.raises(RunError, match=r"page\.html could not be written: File too large\. The table stands above\. M"):
        write_text(path, "x" * 5000, "the table stands above")
    assert path.read_text() == "older" and os.listdir(tmp_path) == ["page.html"]


def test_a_text_for_a_link_or_a_device_goes_through_it(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("older")
    link.symlink_to(target)
    write_text(link, "é", "nothing is lost")
    assert link.is_symlink() and target.read_text(encoding="utf-8") == "é"
    with pytest.raises(RunError, match=r"/dev/full could not be written: No space left on device"):
        write_text("/dev/full", "text", "nothing is lost")
    assert not os.path.isfile("/dev/full")
