"""Requests of files: what was written is read back, and what cannot be computed on is refused with its line."""

import json

import pytest

from t5x_lite.data.requests import read_inputs, read_records
from t5x_lite.errors import UserError
from t5x_lite.output import write_lines

ODD = ["a\u2028b", "one\x0ctwo", "\x85", "tab\tç", "carriage\rreturn"]


def test_what_is_written_is_read_back(tmp_path):
    path = str(tmp_path / "lines.jsonl")
    write_lines(path, ({"inputs": text, "targets": "t"} for text in ODD))
    assert [record["inputs"] for record in read_records(path, ("inputs", "targets"))] == ODD
    assert read_inputs(path) == ODD


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_of_text_is_an_input_whatever_it_holds(end, tmp_path):
    (tmp_path / "lines.txt").write_bytes((end.join(ODD) + end).encode())
    assert read_inputs(str(tmp_path / "lines.txt")) == ODD


def test_half_a_character_is_refused(tmp_path):
    path = tmp_path / "half.jsonl"
    path.write_text(json.dumps({"inputs": "whole 🙂"}) + "\n" + '{"inputs": "half \\ud83d"}\n')
    with pytest.raises(UserError, match=r"line 2 of \S+half\.jsonl has half a character in inputs\..* Correct that"):
        read_records(str(path), ("inputs",))


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="is empty"):
        read_inputs(str(tmp_path / "empty.txt"))
