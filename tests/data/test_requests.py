"""Requests of files: what was written is read back, and what cannot be computed on is refused with its line."""

import gzip
import json
import os
import threading

import pytest

from t5x_lite.data.requests import Request, survey
from t5x_lite.errors import UserError
from t5x_lite.output import write_lines

ODD = ["a\u2028b", "one\x0ctwo", "\x85", "tab\tç", "carriage\rreturn"]
BOTH = ("inputs", "targets")


def inputs(path):
    return [record["inputs"] for record in survey(str(path), ("inputs",))]


def test_what_is_written_is_read_back(tmp_path):
    path = str(tmp_path / "lines.jsonl")
    write_lines(path, ({"inputs": text, "targets": "t"} for text in ODD))
    found = survey(path, BOTH)
    assert [record["inputs"] for record in found] == ODD and found.count == len(ODD)
    assert inputs(path) == ODD
    assert len(list(found)) == len(list(found))  # as often as it is asked for


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["lines.txt", "lines.txt.gz", "lines"])
def test_a_line_of_text_is_an_input_whatever_it_holds(end, name, tmp_path):
    data = (end.join(ODD) + end).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert inputs(tmp_path / name) == ODD


def test_columns_and_fields_are_copied_through(tmp_path):
    (tmp_path / "a.tsv").write_text("\ufeffone\ttwo\nthree\n\n")
    expected = [{"inputs": "one", "targets": "two"}, {"inputs": "three"}, {"inputs": ""}]
    assert list(survey(str(tmp_path / "a.tsv"), ("inputs",))) == expected
    records = [{"inputs": "a", "id": 7, "more": [1.5, None]}, {"inputs": "b", "targets": "é"}]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, records)) + "\n\n")
    found = survey(str(tmp_path / "a.jsonl.gz"), ("inputs",))
    assert list(found) == records and found.count == 2
    assert found.names == {"inputs", "targets", "id", "more"}


def test_files_of_one_content_have_one_digest(tmp_path):
    for name, text in {"a.txt": "one\ntwo\n", "b.txt": "one\ntwo\n", "c.txt": "one\ntwp\n"}.items():
        (tmp_path / name).write_text(text)
    a, b, c = (str(survey(str(tmp_path / f"{name}.txt"), ("inputs",))) for name in "abc")
    assert a == b != c


def test_a_pipe_can_be_read_as_often_as_a_file(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("one\ntwo\n",))
    writer.start()
    found = survey(str(path), ("inputs",))
    writer.join()
    assert [r["inputs"] for r in found] == [r["inputs"] for r in found] == ["one", "two"]


def test_texts_are_encoded_once_and_when_they_are_asked_for():
    asked = []
    request = Request({"inputs": "a", "targets": "b"}, lambda text: asked.append(text) or [ord(text)])
    assert asked == [] and request.inputs == request.inputs == [97] and asked == ["a"]


WRONG = {
    # Name of the file, its bytes, fields asked for -> what the error says.
    ("gone.txt", None, ("inputs",)): r"^--input=\S+gone\.txt cannot be read\. No such file.* Correct --input\.$",
    ("empty.txt", b"", ("inputs",)): r"^--input=\S+ is empty\. It holds no record\. Give a file with inputs\.$",
    ("empty.jsonl", b"\n \n", BOTH): r"is empty\. It holds no record\. Give a file with inputs and targets\.$",
    ("a.txt", b"one\ntw\xff\n", ("inputs",)): r"^line 2 of \S+a\.txt is no UTF-8\. .*0xff.* Correct that line\.$",
    ("a.txt", b"one\n", BOTH): r"^line 1 of \S+ is one\. A line of text has no targets\. Give \.tsv .* or \.jsonl",
    ("a.tsv", b"one\n", BOTH): r"^line 1 of \S+ is one\. It has no targets: a line is inputs, a tab, targets\.",
    ("a.tsv", b"a\tb\tc\n", BOTH): r"^line 1 of \S+ has 3 columns\. They are inputs, and targets .* write \.jsonl",
    ("a.jsonl", b'{"inputs": "a"}\n{"inputs": 7}\n', ("inputs",)): r"^line 2 of \S+ is \S+ 7\}\. It must be an object",
    ("a.jsonl", b"[1]\n", BOTH): r"It must be an object with text in inputs and targets\. Correct that line\.$",
    ("a.jsonl", b'{"inputs": "a}\n', BOTH): r"^line 1 of \S+ is not JSON\. Unterminated string",
    ("a.jsonl", b'{"inputs": "a", "n": NaN}\n', BOTH): r"is not JSON\. NaN is no JSON\.",
    ("a.jsonl", b'{"inputs": "a", "n": [1e999]}\n', BOTH): r"is not JSON\. 1e999 is too large a number\.",
    ("a.jsonl", b"[" * 100_000 + b"\n", BOTH): r"^line 1 of \S+ is not JSON\.",
    ("a.jsonl", b'{"inputs": "half \\ud83d"}\n', ("inputs",)): r"^line 1 of \S+ has half a character in inputs\.",
    ("a.jsonl", b'{"inputs": "a", "k": ["\\ud83d"]}\n', ("inputs",)): r"has half a character in k\..* Correct that",
    ("a.txt.gz", b"no gzip", ("inputs",)): r"^--input=\S+ cannot be read\. Not a gzipped file",
    ("a.txt.gz", gzip.compress(b"one\n" * 9, mtime=0)[:-9], ("inputs",)): r"cannot be read\. Compressed file ended",
}


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0]}-{str(case[1])[:20]}")
def test_what_cannot_be_computed_on_is_refused(case, tmp_path):
    name, data, required = case
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=WRONG[case]):
        survey(str(tmp_path / name), required)


def test_a_folder_and_an_object_store_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read\. Is a directory\."):
        survey(str(tmp_path), ("inputs",))
    with pytest.raises(UserError, match=r"--input=gs://b/a\.txt is not on this machine\. .*Copy it"):
        survey("gs://b/a.txt", ("inputs",))
