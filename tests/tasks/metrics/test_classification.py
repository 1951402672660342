"""Labels, numbers and ranks: what is wrong, undefined or at the edge."""

import math

import numpy as np
import pytest

from t5x_lite.tasks import metrics


def test_an_invalid_prediction_counts_as_the_wrong_label():
    assert metrics.f1_score_with_invalid([1, 1, 0], [1, -1, 7]) == {"f1": 50.0}


def test_invalid_predictions_stay_as_they_were():
    predictions = np.array([1, -1, 0])
    metrics.f1_score_with_invalid(np.array([1, 1, 0]), predictions)
    assert predictions.tolist() == [1, -1, 0]


@pytest.mark.parametrize("correlation", [metrics.pearson_corrcoef, metrics.spearman_corrcoef])
def test_a_correlation_with_a_constant_is_nan(correlation):
    (value,) = correlation([0.0, 2.5, 5.0], [-1.0, -1.0, -1.0]).values()
    assert math.isnan(value)


def test_mean_f1_counts_a_class_that_never_comes():
    assert metrics.mean_multiclass_f1(3)([0, 1, 0], [0, 1, 0]) == {"mean_3class_f1": pytest.approx(200 / 3)}


def test_a_function_that_sklearn_does_not_have_is_said_before_training():
    with pytest.raises(ValueError, match="no function mathews_corrcoef"):
        metrics.sklearn_metrics_wrapper("mathews_corrcoef")


def test_as_many_predictions_as_targets():
    for metric in (metrics.accuracy, metrics.sequence_accuracy, metrics.f1_score_with_invalid):
        with pytest.raises((ValueError, IndexError)):
            metric([0, 1], [0])


def test_ranks_do_not_depend_on_the_order_of_examples():
    targets = [((example, label), label == 1, 1.0, 2) for example in range(3) for label in range(2)]
    scores = [-3.0, -1.0, -1.0, -2.0, -0.5, -0.1]
    straight = metrics.rank_classification(targets, scores, num_classes=2)
    assert straight["accuracy"] == pytest.approx(200 / 3)
    assert metrics.rank_classification(targets[::-1], scores[::-1], num_classes=2) == pytest.approx(
        straight, nan_ok=True
    )


@pytest.mark.parametrize(
    "targets, scores, options, message",
    [
        ([((0, 0), True, 1.0, 2)], [], {}, "1 targets and 0 scores"),
        ([((0, 0), True, 1.0)], [-1.0], {}, "not 3 values"),
        ([(0, True, 1.0, 2)], [-1.0], {}, "has 2 numbers"),
        ([((0, 0), True, 1.0, 2)], [-1.0], {"num_classes": 2}, "no whole number of examples with 2 classes"),
    ],
)
def test_ranks_of_another_form(targets, scores, options, message):
    with pytest.raises(ValueError, match=message):
        metrics.rank_classification(targets, scores, **options)
