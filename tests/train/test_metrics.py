"""What a run writes about itself: whole lines of valid JSON, whatever happened before and whatever the values."""

import json
import math
import threading

import pytest
from etils import epath

from t5x_lite.errors import UserError
from t5x_lite.train import metrics


def test_a_line_is_valid_json_whatever_its_values():
    line = metrics.json_line({"nan": math.nan, "inf": -math.inf, "one": 1.5, "text": "a\nb\u2028ç", "none": None})
    assert "\n" not in line
    # A strict reader: Python's own takes NaN otherwise.
    read = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read == {"nan": None, "inf": None, "one": 1.5, "text": "a\nb\u2028ç", "none": None}


@pytest.mark.parametrize("there", ["", '{"step": 1, "text": "x\\u2028y"}\n', '{"step": 1}\n{"step": 2, "lo'])
def test_a_result_is_added_behind_whole_lines_only(tmp_path, there):
    folder = epath.Path(tmp_path)
    (folder / metrics.RESULTS).write_text(there)
    metrics.append_result(folder, {"step": 3, "loss": math.nan})
    whole = [json.loads(line) for line in there.split("\n")[:-1]]
    assert metrics.read_jsonl(folder / metrics.RESULTS) == [*whole, {"step": 3, "loss": None}]


def test_results_of_several_writers_are_all_there(tmp_path):
    """Training takes lines of later steps out while eval adds others."""
    folder = epath.Path(tmp_path)

    def write(task):
        for step in range(1, 41):
            metrics.append_result(folder, {"step": step, "task": task, "text": "x" * 999})

    writers = [threading.Thread(target=write, args=(task,)) for task in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        metrics._drop_after(folder / metrics.RESULTS, 100)
        metrics.read_jsonl(folder / metrics.RESULTS)
    found = [(line["task"], line["step"]) for line in metrics.read_jsonl(folder / metrics.RESULTS)]
    assert sorted(found) == [(task, step) for task in range(4) for step in range(1, 41)]


def test_lines_of_steps_that_are_done_again_are_taken_out(tmp_path):
    folder = epath.Path(tmp_path)
    (folder / "eval").mkdir()
    for name in ("metrics.jsonl", "eval/results.jsonl"):
        (folder / name).write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"ste')
    metrics.MetricsWriter(str(folder), resume_step=20, active=True).close()
    for name in ("metrics.jsonl", "eval/results.jsonl"):
        assert (folder / name).read_text() == '{"step": 10}\n{"step": 20}\n'


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(UserError, match=r"line 2 of \S+metrics\.jsonl is no JSON\..*Take that line out"):
        metrics.read_jsonl(epath.Path(tmp_path) / "metrics.jsonl")
