"""tasks list and show: names, tables and examples."""

import re
import shutil
from pathlib import Path

import pytest

from t5x_lite import cli
from t5x_lite.verbs import tasks_list
from tests.verbs.conftest import run


def test_a_piped_list_is_one_full_name_a_line(two_parts, capsys):
    import seqio

    names = run(capsys, "tasks", "list", f"--module={two_parts}").splitlines()
    assert {"two_parts", "two_parts_alone", "text_span_corruption", "c4_v220_span_corruption"} <= set(names)
    assert len(names) == len(set(names)) and set(names) <= {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    # Without the module its tasks are not of the list, though they are registered by now.
    assert "two_parts" not in run(capsys, "tasks", "list").splitlines()


@pytest.mark.parametrize("width", [64, 100, 200])
def test_a_list_on_a_terminal_is_a_table_of_its_width(width, two_parts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    (tmp_path / "a.txt").write_text("text\n")
    globs = [f"--gin.DATA_GLOB={tmp_path}/*.txt", f"--gin.VALIDATION_GLOB={tmp_path}/*.txt"]
    out = run(capsys, "tasks", "list", f"--module={two_parts}", *globs, f"--gin.DATA_DIR={tmp_path}")
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    titles = [after for before, after in zip(lines, lines[1:]) if not before]
    assert titles[0].startswith("Pretraining on ") and titles[-1] == "Your own"
    row = {line.split()[0]: line.split() for line in lines if line}
    heads = ["name", "source", "features", "metrics", "splits", "data"]
    # Which columns a medium width has room for depends on the names that are registered by then.
    shown = {64: [["name", "data"]], 200: [heads]}.get(width, [heads[:k] + heads[-1:] for k in range(2, 6)])
    assert lines[0].split() in [*shown, [*heads[:2], *heads[3:]]]
    if width == 200:
        assert row["two_parts"][1:] == [
            "TextLineDataSource",
            "inputs,",
            "targets",
            "accuracy",
            "train,",
            "validation",
            "yes",
        ]
        assert row["two_parts_alone"][1:] == ["1", "tasks", "inputs,", "targets", "yes"]
        assert row["text_span_corruption"][-1] == "yes" and row["c4_v220_span_corruption"][-1] == "no"


def test_tfds_data_is_found_by_its_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    place = tmp_path / "c4/en/2.2.0"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text("{}")
    lines = run(capsys, "tasks", "list", f"--gin.DATA_DIR={tmp_path}").splitlines()
    assert next(line for line in lines if line.startswith("c4_v220_span_corruption ")).endswith(" yes")
    assert next(line for line in lines if line.startswith("c4_noclean_v220_span_corruption ")).endswith(" no")


def test_columns_are_cut_widest_first_and_then_left_out():
    rows = [("n" * 30, "a" * 40, "b" * 10, "c" * 20, "d" * 12, "e" * 3)]
    assert tasks_list.fitted(rows, 200) == [30, 40, 10, 20, 12, 3]
    assert tasks_list.fitted(rows, 110) == [30, 25, 10, 20, 12, 3]
    assert tasks_list.fitted(rows, 68) == [30, 8, 0, 8, 8, 3] or sum(tasks_list.fitted(rows, 68)) <= 60
    assert tasks_list.fitted(rows, 36) == [30, 0, 0, 0, 0, 3]
    assert tasks_list.fitted(rows, 20)[0] == 30  # a name is there to be copied


def test_examples_stand_below_their_records(two_parts, capsys):
    flags = ["tasks", "show", "two_parts", f"--module={two_parts}", "--gin.VOCABULARY=bytes"]
    assert run(capsys, *flags, "--n=2").splitlines()[:8] == [
        "two_parts, train: TextLineDataSource",
        "",
        "record 1",
        "  land 0:city 0",
        "",
        "example 1",
        "  inputs: land 0",
        "  targets: city 0",
    ]
    out = run(capsys, *flags, "--n=1", "--split=validation", "--gin.TASK_FEATURE_LENGTHS={'inputs': 9, 'targets': 3}")
    assert out.endswith(
        "  targets: ci\n"
        "  inputs in 7 tokens: 111:l 100:a 113:n 103:d 35:<20> 51:0 1:</s>\n"
        "  targets in 3 tokens: 102:c 108:i 1:</s>\n"
    )
    # More than there are gives what there is; a seed shuffles.
    assert run(capsys, *flags, "--n=20").count("example ") == 9
    mixed = run(capsys, *[w.replace("two_parts", "two_parts_alone") if w == "two_parts" else w for w in flags], "--n=2")
    assert mixed.startswith("two_parts, train") and mixed.count("example ") == 2


@pytest.fixture
def spans(corpus):
    """The command line of two examples of span corruption."""
    return [
        "tasks", "show", "text_span_corruption", "--n=2", f"--gin.DATA_GLOB={corpus}/train-*.json.gz",
        f"--gin.VOCABULARY={corpus}/vocabulary.model", "--gin.TASK_FEATURE_LENGTHS={'inputs': 40, 'targets': 16}",
    ]  # fmt: skip


def test_documents_of_an_objective_come_before_its_examples(spans, capsys):
    out = run(capsys, *spans)
    assert out.index("record 2") < out.index("200 records make these examples together") < out.index("example 1")
    assert "record 3" not in out and "example 3" not in out and "\x1b" not in out
    inputs, targets = re.search(r"example 1\n  inputs: (.*)\n  targets: (.*)\n", out).groups()
    assert "<extra_id_0>" in inputs and targets.startswith("<extra_id_0>")
    assert re.search(r"inputs in 40 tokens: .*\b499:▁<extra_id_0>.* 1:</s>$", out, re.MULTILINE)
    assert run(capsys, *spans) == out
    shuffled = run(capsys, *spans, "--seed=3")
    assert shuffled != out and run(capsys, *spans, "--seed=3") == shuffled


def test_a_span_has_the_colour_of_its_sentinel_on_a_terminal(spans, capsys, monkeypatch):
    plain = run(capsys, *spans)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    out = run(capsys, *spans)
    assert re.sub(r"\x1b\[\d+m", "", out) == plain
    inputs, targets = re.search(r"example 1\n  inputs: (.*)\n  targets: (.*)\n", out).groups()
    assert "\x1b[31m<extra_id_0>\x1b[0m" in inputs and "\x1b[32m<extra_id_1>\x1b[0m" in inputs
    assert re.match(r"\x1b\[31m<extra_id_0>\x1b\[0m\x1b\[31m [^\x1b<]+\x1b\[0m\x1b\[32m<extra_id_1>", targets)
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(capsys, *spans) == plain


def test_what_cannot_be_shown(two_parts, capsys, tmp_path):
    own = f"--module={two_parts}"
    cases = {
        ("two_part", own): r"two_part is no task or mixture\. Nearest: .*two_parts.*`t5x_lite tasks list`.*--module",
        ("two_parts", own, "--split=test"): r"--split=test is no split of two_parts\. It has train, validation",
        ("two_parts", own): r"VOCABULARY is not set",
        ("text_span_corruption", "--gin.VOCABULARY=bytes"): r"DATA_GLOB is not set",
        ("c4_v220_span_corruption", f"--gin.DATA_DIR={tmp_path}"): r"The data of c4_v220\S*, TFDS .*, is not there",
        ("two_parts", "--n=0"): r"--n does not fit\. It is '0'",
        ("two_parts", "--seed=x"): r"--seed does not fit\.",
        (): r"no task is named\. .*Write `t5x_lite tasks show NAME`",
    }
    for words, expected in cases.items():
        err = run(capsys, "tasks", "show", *words, status=2)
        assert re.match(f"t5x_lite: error: .*{expected}", err) and err.count("\n") == 1, err
    for words, expected in {"lst": r"ACTION cannot be lst\. Nearest: list", "": "t5x_lite tasks lacks an arg"}.items():
        assert re.search(expected, run(capsys, "tasks", *words.split(), status=2))


def test_a_file_of_a_whole_job_says_what_to_read(two_parts, capsys):
    """What else the job is made of may be missing."""
    Path("job.gin").write_text(
        "from __gin__ import dynamic_registration\ninclude 'runs/finetune.gin'\n"
        f"MIXTURE_OR_TASK_MODULE = '{two_parts}'\nVOCABULARY = 'bytes'\n"
        "TASK_FEATURE_LENGTHS = {'inputs': 4, 'targets': 4}\n"
    )
    out = run(capsys, "tasks", "show", "two_parts", "--gin_file=job.gin", "--n=1")
    assert "  inputs in 4 tokens: 111:l 100:a 113:n 1:</s>" in out


def test_the_example_of_the_repository(tmp_path, monkeypatch, capsys):
    """Its commands run with the pages of docs/; here it is what they say it is."""
    from tests.test_docs import ROOT

    shutil.copytree(ROOT / "examples/movie_reviews", tmp_path / "reviews")
    monkeypatch.chdir(tmp_path / "reviews")
    monkeypatch.syspath_prepend(tmp_path / "reviews")
    lines = run(capsys, "tasks", "check", "reviews", "--gin_file=tiny.gin").splitlines()
    assert [line.split(";")[0] for line in lines] == ["review_sentiment: ok", "review_stars: ok", "reviews: ok"]
    assert lines[1].endswith("accuracy 100, mean_error 0")
    (tmp_path / "reviews/reviews_train.tsv").write_text("A film.\tfair\t3\n")
    out = cli.run(["tasks", "check", "reviews", "--gin_file=tiny.gin"])
    assert out == 2
    assert re.search(
        r"review_sentiment: error: The record .*A film.* gives no example\. The label is 'fair'",
        capsys.readouterr().out,
    )
