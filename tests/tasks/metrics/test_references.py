"""Every metric gives what t5 0.9.4 gives, and says nothing on stderr where a value is undefined."""

import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from t5x_lite.tasks import metrics

CASES = json.loads((Path(__file__).parents[2] / "references/t5_metrics.json").read_text(encoding="utf-8"))["metrics"]

MADE = {
    "log_loss": metrics.sklearn_metrics_wrapper("log_loss", "nats", float),
    "mean_2class_f1": metrics.mean_multiclass_f1(2),
    "mean_3class_f1": metrics.mean_multiclass_f1(3),
    "mean_group_all_match": metrics.mean_group_metric(metrics.all_match),
    "mean_group_with_subgroups": metrics.mean_group_metric(metrics.all_match, return_subgroup_scores=True),
    "deduplicate_squad": metrics.deduplicate_metric(metrics.squad),
}


@pytest.mark.parametrize("name, targets, predictions, options, expected", CASES)
def test_equal_to_t5(name, targets, predictions, options, expected, capfd):
    metric = MADE.get(name) or getattr(metrics, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = metric(targets, predictions, **options)
    assert values == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)
    assert {type(value) for value in values.values()} == {float}
    assert capfd.readouterr().err == ""


def test_every_metric_has_a_reference_and_the_parameters_that_seqio_looks_for():
    factories = {"deduplicate_metric", "mean_group_metric", "mean_multiclass_f1", "sklearn_metrics_wrapper"}
    found = {}
    for name in set(metrics.__all__) - factories | MADE.keys():
        parameters = inspect.signature(MADE.get(name) or getattr(metrics, name)).parameters.values()
        found[name] = [
            p.name for p in parameters if p.default is p.empty and p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ]
    scored = {"score_auc", "rank_classification"}
    assert found == {name: ["targets", "scores" if name in scored else "predictions"] for name in found}
    # t5 0.9.4 has no rouge_mean.
    assert found.keys() - {name for name, *_ in CASES} == {"rouge_mean"}


def test_libraries_are_loaded_at_the_first_call_only():
    program = "import sys, t5x_lite.tasks.metrics, t5x_lite.tasks.postprocessors; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"tensorflow", "seqio", "sklearn", "scipy", "sacrebleu", "rouge_score", "nltk", "jax"}
    assert not heavy & set(done.stdout.split())
