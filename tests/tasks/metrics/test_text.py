"""Texts: what the scores of whole corpora depend on."""

import numpy as np
import pytest

from t5x_lite.tasks import metrics

TARGETS = ["the lantern hung in the harbour . seven boats left", "noon came . the mill was quiet", "old brother"]
PREDICTIONS = ["a lantern hung . seven boats left the harbour", "the mill was old . noon came", "young brother"]


def test_bleu_of_the_same_and_of_nothing_alike():
    assert metrics.bleu(TARGETS, TARGETS) == {"bleu": pytest.approx(100)}
    assert metrics.bleu(TARGETS[:1], ["x"])["bleu"] == 0


def test_bleu_counts_case_and_takes_the_best_of_several_references():
    sentence = "seven boats left the harbour"
    assert metrics.bleu([sentence], [sentence.upper()])["bleu"] == 0
    assert metrics.bleu([["nothing of it"], [sentence]], [sentence]) == {"bleu": pytest.approx(100)}


def test_bleu_does_not_remark_on_tokenized_predictions(capfd):
    metrics.bleu(["a b ."] * 200, ["a b ."] * 200)
    assert capfd.readouterr().err == ""


def test_rouge_is_the_same_at_every_call_and_leaves_the_generator_alone():
    np.random.seed(7)
    expected = np.random.random()
    np.random.seed(7)
    first = metrics.rouge(TARGETS, PREDICTIONS)
    assert np.random.random() == expected
    assert metrics.rouge(TARGETS, PREDICTIONS) == first


def test_rouge_mean_is_near_rouge_and_the_same_for_one_summary():
    assert metrics.rouge_mean(TARGETS, PREDICTIONS) == pytest.approx(metrics.rouge(TARGETS, PREDICTIONS), abs=2)
    assert metrics.rouge_mean(TARGETS[:1], PREDICTIONS[:1]) == pytest.approx(
        metrics.rouge(TARGETS[:1], PREDICTIONS[:1])
    )


def test_rouge_mean_is_the_mean_of_f():
    """Precision 2/3 and recall 1, then nothing."""
    assert metrics.rouge_mean(["old mill", "noon"], ["an old mill", "boats"])["rouge1"] == pytest.approx(40)


def test_rouge_lsum_compares_sentences_in_any_order():
    target, prediction = "old mill . seven boats", "seven boats . old mill"
    scores = metrics.rouge_mean([target], [prediction], score_keys=["rougeL", "rougeLsum"])
    assert scores == {"rougeL": 50, "rougeLsum": 100}


@pytest.mark.parametrize("metric", [metrics.rouge, metrics.rouge_mean])
def test_rouge_of_nothing(metric):
    with pytest.raises(ValueError, match="no summaries"):
        metric([], [])


def test_edit_distance_is_of_words():
    values = metrics.edit_distance(["one two three", "four"], ["One three", "five six"])
    assert values == {"min_edit": 1, "max_edit": 2, "mean_edit": 1.5, "median_edit": 1.5, "sum_edit": 3}
    assert metrics.edit_distance(["four"], ["Four"], lower=False)["sum_edit"] == 1
