"""Normalised answers: the rules of each public evaluation script."""

import math

import pytest

from t5x_lite.tasks import metrics
from t5x_lite.tasks.metrics.qa import normalize_squad, normalize_trivia_qa


@pytest.mark.parametrize(
    "answer, by_squad, by_trivia_qa",
    [
        ("The  Red-Hat Society", "redhat society", "red hat society"),
        ("a.b", "ab", "b"),
        ("‘An’ apple`s", "‘ ’ apples", "apple s"),
        ("the a an", "", ""),
        ("theatre banana", "theatre banana", "theatre banana"),
        ("L'ÉTÉ\u00a0\n", "lété", "l été"),
    ],
)
def test_normalisation(answer, by_squad, by_trivia_qa):
    assert normalize_squad(answer) == by_squad
    assert normalize_trivia_qa(answer) == by_trivia_qa


def test_the_best_right_answer_counts():
    assert metrics.squad([["old mill", "the old grey mill"], ["x"]], ["Old Mill!", "y"]) == {"em": 50.0, "f1": 50.0}


def test_nothing_against_nothing_has_no_word_in_common_but_in_coqa():
    assert metrics.squad([["the"]], [""]) == {"em": 100.0, "f1": 0.0}
    assert metrics.coqa_f1([["the"]], [""]) == {"f1": 100.0}


@pytest.mark.parametrize(
    "span, em",
    [
        ("start: 1 end: 2", 100.0),
        ("1 1 2 2", 100.0),
        ("start: 2 end: 1", 0.0),
        ("start: 1", 0.0),
        ("start: one end: 2", 0.0),
        ("start: -1 end: -2", 100.0),
        ("", 0.0),
    ],
)
def test_spans(span, em):
    """A minus sign is punctuation."""
    target = {"answers": ["grey mill"], "context": "old, grey mill"}
    assert metrics.span_squad([target], [span])["em"] == em


@pytest.mark.parametrize("metric", [metrics.squad, metrics.trivia_qa])
def test_answers_that_cannot_be_compared(metric):
    with pytest.raises(ValueError):
        metric([["x"]], [])
    with pytest.raises(ValueError, match="no right answer"):
        metric([[]], ["x"])
    assert all(math.isnan(value) for value in metric([], []).values())
