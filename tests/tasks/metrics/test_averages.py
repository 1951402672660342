"""The averages of Raffel et al. (2020): Table 16's scores of the baseline give those of Table 1."""

import copy
import math

import pytest

from t5x_lite.tasks.metrics.averages import BENCHMARKS, average, missing, score

TABLE_16 = {
    "glue_cola_v002": {"matthews_corrcoef": 53.84},
    "glue_sst2_v002": {"accuracy": 92.68},
    "glue_mrpc_v002": {"f1": 92.07, "accuracy": 88.92},
    "glue_stsb_v002": {"pearson_corrcoef": 88.02, "spearman_corrcoef": 87.94},
    "glue_qqp_v002": {"f1": 88.67, "accuracy": 91.56},
    "glue_mnli_matched_v002": {"accuracy": 84.24},
    "glue_mnli_mismatched_v002": {"accuracy": 84.57},
    "glue_qnli_v002": {"accuracy": 90.48},
    "glue_rte_v002": {"accuracy": 76.28},
    "super_glue_boolq_v102": {"accuracy": 76.62},
    "super_glue_cb_v102": {"mean_3class_f1": 91.22, "accuracy": 91.96},
    "super_glue_copa_v102": {"accuracy": 66.20},
    "super_glue_multirc_v102": {"f1": 66.13, "exact_match": 25.78},
    "super_glue_record_v102": {"f1": 69.05, "em": 68.16},
    "super_glue_rte_v102": {"accuracy": 75.34},
    "super_glue_wic_v102": {"accuracy": 68.04},
    "super_glue_wsc_v102_simple_eval": {"accuracy": 78.56},
}


@pytest.mark.parametrize("benchmark, expected", [("glue_average", 83.284), ("super_glue_average", 71.364)])
def test_table_16_gives_table_1(benchmark, expected):
    assert round(average(benchmark, TABLE_16), 3) == expected


def test_other_tasks_and_metrics_do_not_count():
    others = {"glue_wnli_v002": {"accuracy": 0.0}, "glue_mnli_v002": {"accuracy": 0.0}, "glue_ax_v002": {}}
    scores = TABLE_16 | others | {"glue_sst2_v002": {"accuracy": 92.68, "loss": 3.0}}
    assert average("glue_average", scores) == average("glue_average", TABLE_16)


@pytest.mark.parametrize("task", TABLE_16)
def test_a_missing_score_is_named(task):
    benchmark = "super_glue_average" if task.startswith("super") else "glue_average"
    scores = copy.deepcopy(TABLE_16)
    name, _ = scores[task].popitem()
    assert missing(benchmark, scores) == [f"{task}/{name}"]
    with pytest.raises(ValueError, match=f"{benchmark} needs {task}/{name}$"):
        average(benchmark, scores)


def test_nothing_is_missing_of_the_other_benchmark():
    glue = {task: scores for task, scores in TABLE_16.items() if task.startswith("glue")}
    assert missing("glue_average", glue) == []
    assert len(missing("super_glue_average", glue)) == sum(map(len, BENCHMARKS["super_glue_average"].values()))


def test_an_undefined_score_makes_the_average_undefined():
    scores = TABLE_16 | {"glue_stsb_v002": {"pearson_corrcoef": math.nan, "spearman_corrcoef": 80.0}}
    assert math.isnan(average("glue_average", scores))


TWO_METRICS = {
    "glue_mrpc_v002", "glue_stsb_v002", "glue_qqp_v002",
    "super_glue_cb_v102", "super_glue_multirc_v102", "super_glue_record_v102",
}  # fmt: skip


def test_a_task_of_two_metrics_counts_with_their_mean():
    means = {task: score(task, scores) for task, scores in TABLE_16.items()}
    assert {task for task, mean in means.items() if mean is not None} == TWO_METRICS
    assert means["glue_stsb_v002"] == pytest.approx(87.98)
    assert score("super_glue_cb_v102_1_sentinel", TABLE_16["super_glue_cb_v102"]) == means["super_glue_cb_v102"]
    assert score("glue_mrpc_v002", {"f1": 92.07}) is None
    assert score("squad_v010_allanswers", {"em": 80.0, "f1": 90.0}) is None
    assert math.isnan(score("glue_mrpc_v002", {"f1": math.nan, "accuracy": 1.0}))


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_average_is_one_over_what_the_tasks_count_with(benchmark):
    """The table's columns, taken together, give the average beside them."""

    def counts_with(task, name):
        scores = TABLE_16[task]
        return scores[name] if (mean := score(task, scores)) is None else mean

    groups = [[counts_with(task, name) for task, name in metrics] for metrics in BENCHMARKS[benchmark].values()]
    mean = sum(sum(group) / len(group) for group in groups) / len(groups)
    assert mean == pytest.approx(average(benchmark, TABLE_16))
