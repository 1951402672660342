"""Lines of progress where there is no terminal."""

import itertools

import pytest

from t5x_lite import progress


def test_a_line_has_count_rate_and_time_left():
    assert progress.line(100, 300, 1000, "inputs", 10.0) == "400 of 1,000 inputs  30.0 inputs/s  ETA 20 s"
    assert progress.line(0, 300, None, "inputs", 10.0) == "300 inputs  30.0 inputs/s"
    # What is left decides whether these are enough to tell, as where a command goes on.
    assert progress.line(900, 5, 1000, "inputs", 10.0) == "905 of 1,000 inputs  0.5 inputs/s  ETA 3 min 10 s"
    # The first few of many waited for a compiler.
    assert progress.line(0, 3, 1000, "inputs", 10.0) == "3 of 1,000 inputs  0.3 inputs/s"


def test_lines_come_now_and_then(monkeypatch, capsys):
    seconds = itertools.count(step=4)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    checked = []
    assert list(progress.watched("abcdefg", 0, 7, "inputs", lambda: checked.append(1))) == list("abcdefg")
    said = capsys.readouterr().err.splitlines()
    assert said == ["3 of 7 inputs  0.2 inputs/s  ETA 16 s", "6 of 7 inputs  0.2 inputs/s  ETA 4 s"]
    assert len(checked) == 7
    # None at the end, of which the verb tells.
    assert list(progress.watched("abcdef", 0, 6, "inputs", lambda: None)) == list("abcdef")
    assert capsys.readouterr().err.splitlines() == ["3 of 6 inputs  0.2 inputs/s  ETA 12 s"]


@pytest.mark.parametrize(("count", "text"), [(0, "0 inputs"), (1, "1 input"), (1024, "1,024 inputs")])
def test_counts_are_words(count, text):
    assert progress.counted(count, "input") == text
