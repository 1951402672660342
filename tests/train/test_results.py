"""The best step and the table, of lines as they stand in results.jsonl."""

import pytest

from t5x_lite.train import results

SETTING = {"split": "validation", "decode": "greedy", "num_examples": None, "lengths": "512/62"}


def line(step, task, setting=SETTING, **own):
    return {"step": step, "task": task, **setting, "loss": 2.0 - step / 100, "accuracy": 0.5, "tokens": 9, **own}


LINES = [
    line(4, "a", em=10.0, f1=90.0),
    line(4, "b", task_accuracy=50.0),
    line(8, "a", em=30.0, f1=10.0),
    line(8, "b", task_accuracy=40.0),
    {"step": 8, **SETTING, "task": "both_average", "score": 35.0},
    line(12, "a", em=60.0, f1=10.0),  # of b, nothing yet
]


def test_a_task_counts_with_the_first_of_its_own_metrics():
    assert results.headline(LINES[0]) == ("em", 10.0) and results.headline(LINES[1]) == ("task_accuracy", 50.0)
    assert results.headline(line(4, "c", note="text", flag=True)) == ("loss", 1.96)
    assert results.headline(line(4, "c", em=None)) == ("em", None)
    assert results.headline(line(4, "c", rouge1=40.0, rouge2=18.0, rougeLsum=36.0)) == ("rouge2", 18.0)
    assert results.headline(line(4, "c", f1=90.0, task_accuracy=80.0, score=85.0)) == ("score", 85.0)
    assert results.headline(line(4, "c", committed="2026-01-01", overrides="VOCABULARY=a")) == ("loss", 1.96)


def test_the_best_step_has_the_highest_mean_over_all_tasks():
    assert results.best(results.rows(LINES)).step == 8
    assert results.best_step(LINES, [4, 8, 12]) == 8
    assert results.best_step(LINES, [4, 12]) == 4
    assert results.best_step(LINES, [16]) is None and results.best_step([], [4]) is None
    # The later of two lines counts, and what is not finite never does.
    assert results.best_step([*LINES, line(4, "a", em=99.0)], [4, 8]) == 4
    assert results.best_step([*LINES, line(8, "a", em=None)], [4, 8]) == 4
    broken_off = [*LINES, line(4, "a", em=99.0, incomplete=True)]
    assert results.best_step(broken_off, [4, 8]) == 8
    assert results.rows(broken_off) == results.rows(LINES)


def test_without_metrics_the_lowest_loss_is_the_best():
    assert results.best_step([line(4, "a"), line(12, "a"), line(8, "a")], [4, 8, 12]) == 12
    # Means are equal: the first.
    assert results.best_step([line(4, "a", em=1.0), line(8, "a", em=1.0)], [4, 8]) == 4


def test_some_metrics_are_better_when_lower():
    lower = (
        "loss",
        "mean_edit",
        "edit_distance",
        "wer",
        "WER",
        "task_loss",
        "perplexity",
        "val/cer",
        "word_error_rate",
    )
    assert all(map(results.is_lower_better, lower))
    higher = ("accuracy", "f1", "bleu", "rouge2", "score", "pearson_corrcoef", "auc-roc", "lower_bound", "credit")
    assert not any(map(results.is_lower_better, higher))
    edits = [line(4, "a", mean_edit=3.0), line(8, "a", mean_edit=1.0), line(12, "a", mean_edit=2.0)]
    assert results.best_step(edits, [4, 8, 12]) == 8
    assert results.best_step([*edits, *(line(s, "b", wer=float(s)) for s in (4, 8, 12))], [4, 8, 12]) == 4


def test_among_metrics_of_both_kinds_those_that_are_better_when_lower_count_negatively():
    both = [line(4, "a", em=60.0), line(4, "b", wer=50.0), line(8, "a", em=50.0), line(8, "b", wer=30.0)]
    rows = results.rows(both)
    assert [row.mean for row in rows] == [5.0, 10.0] and results.best(rows).step == 8
    assert results.table(rows) == (
        "step       a       b    mean\n"
        "          em     wer\n"
        "   4  60.000  50.000   5.000\n"
        "   8  50.000  30.000  10.000\n"
    )


def test_steps_are_compared_under_one_setting():
    training = {"split": "validation"}
    during = [line(step, "a", training, em=100.0 - step) for step in (2, 4, 6, 8)]
    after = [line(step, "a", em=float(step)) for step in (4, 8)]
    assert results.best_step([*during, *after], [4, 8]) == 8  # both have two: the latest
    assert results.best_step([*after, *during], [4, 8]) == 4
    assert results.best_step([*during, *after], [2, 4, 8]) == 2  # training has three of them
    ensemble = line(4, "a", em=100.0, checkpoints=["/m@4", "/n@4"])
    assert results.best_step([*after, ensemble], [4, 8]) == 8
    demo = {"step": 4, "task": "a", "split": "validation", "baseline_unigram_loss": 5.0}
    assert results.best_step([demo], [4]) is None


def test_the_table_has_aligned_columns():
    assert results.table(results.rows([*LINES[:-1], line(8, "a", em=None)])) == (
        "step       a              b  both_average    mean\n"
        "          em  task_accuracy         score\n"
        "   4  10.000         50.000                30.000\n"
        "   8     nan         40.000        35.000     nan\n"
    )
    assert results.table(results.rows([line(4, "a")])) == "step      a\n       loss\n   4  1.960\n"


@pytest.mark.parametrize("lines", [[], [{"step": 1, "task": "x", **SETTING, "score": 2.0}]])
def test_a_table_of_little_is_small(lines):
    assert results.table(results.rows(lines)).startswith("step")
