"""Groups of examples: which of them count, and how often."""

import pytest

from t5x_lite.tasks import metrics, postprocessors


def test_of_each_query_of_record_the_first_example_counts():
    queries = [{"answers": [b"Zoe", b"she"], "idx/passage": 1, "idx/query": query} for query in (4, 4, 5)]
    targets = [postprocessors.record("Zoe", example, is_target=True) for example in queries]
    predictions = [postprocessors.record(answer) for answer in ("She", "nobody", "nobody")]
    assert metrics.deduplicate_metric(metrics.squad)(targets, predictions) == {"em": 50.0, "f1": 50.0}


def test_a_question_of_multirc_is_right_if_all_its_answers_are():
    answers = [("True", "True", 1), ("False", "False", 1), ("True", "true", 2), ("False", "False", 2)]
    targets = [postprocessors.multirc(t, {"idx/question": question}, is_target=True) for t, _, question in answers]
    predictions = [postprocessors.multirc(prediction) for _, prediction, _ in answers]
    assert metrics.mean_group_metric(metrics.all_match)(targets, predictions) == {"exact_match": 50.0}
    assert metrics.multirc_f1_over_all_answers(targets, predictions) == {"f1": pytest.approx(200 / 3)}


def test_scores_of_each_group():
    metric = metrics.mean_group_metric(metrics.all_match, "of", "is", return_subgroup_scores=True)
    values = metric([{"of": "x", "is": 1}, {"of": "y", "is": 2}], [{"is": 1}, {"is": 3}])
    assert values == {"exact_match": 50.0, "x-exact_match": 100.0, "y-exact_match": 0.0}
