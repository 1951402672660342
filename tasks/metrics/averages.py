"""The averages over GLUE and SuperGLUE of Raffel et al. (2020), section 2.3.

Each is the plain mean over eight tasks, and a task with several metrics counts with their mean.
Both versions of MNLI are one task. WNLI and the diagnostic sets AX, AX-b and AX-g do not count.
"""

from collections.abc import Mapping

Scores = Mapping[str, Mapping[str, float]]

# For each benchmark, task by task, the metrics that count, as (name in the registry, name of the metric).
GLUE = {
    "CoLA": [("glue_cola_v002", "matthews_corrcoef")],
    "SST-2": [("glue_sst2_v002", "accuracy")],
    "MRPC": [("glue_mrpc_v002", "f1"), ("glue_mrpc_v002", "accuracy")],
    "STS-B": [("glue_stsb_v002", "pearson_corrcoef"), ("glue_stsb_v002", "spearman_corrcoef")],
    "QQP": [("glue_qqp_v002", "f1"), ("glue_qqp_v002", "accuracy")],
    "MNLI": [("glue_mnli_matched_v002", "accuracy"), ("glue_mnli_mismatched_v002", "accuracy")],
    "QNLI": [("glue_qnli_v002", "accuracy")],
    "RTE": [("glue_rte_v002", "accuracy")],
}
SUPER_GLUE = {
    "BoolQ": [("super_glue_boolq_v102", "accuracy")],
    "CB": [("super_glue_cb_v102", "mean_3class_f1"), ("super_glue_cb_v102", "accuracy")],
    "COPA": [("super_glue_copa_v102", "accuracy")],
    "MultiRC": [("super_glue_multirc_v102", "f1"), ("super_glue_multirc_v102", "exact_match")],
    "ReCoRD": [("super_glue_record_v102", "f1"), ("super_glue_record_v102", "em")],
    "RTE": [("super_glue_rte_v102", "accuracy")],
    "WiC": [("super_glue_wic_v102", "accuracy")],
    "WSC": [("super_glue_wsc_v102_simple_eval", "accuracy")],
}
BENCHMARKS = {"glue_average": GLUE, "super_glue_average": SUPER_GLUE}


def score(task: str, scores: Mapping[str, float]) -> float | None:
    """What a task of several metrics counts with: their mean.

    Args:
      task: its name in the registry, with or without sentinels.
      scores: its metrics.

    Returns:
      The mean in percent; None of a task that counts with one metric or not at all, or where one is missing.
    """
    groups = (group for benchmark in BENCHMARKS.values() for group in benchmark.values())
    names = [name for group in groups for of, name in group if of == plain_name(task)]
    return sum(scores[name] for name in names) / len(names) if len(names) > 1 and scores.keys() >= set(names) else None


def plain_name(task: str) -> str:
    """The name of a task without what says that it has a sentinel."""
    return task.replace("_1_sentinel", "")


def missing(benchmark: str, scores: Scores) -> list[str]:
    """What an average needs and `scores` do not have, as task/metric. Arguments as `average`."""
    needed = (metric for metrics in BENCHMARKS[benchmark].values() for metric in metrics)
    return [f"{task}/{name}" for task, name in needed if name not in scores.get(task, {})]


def average(benchmark: str, scores: Scores) -> float:
    """The average over a benchmark.

    Args:
      benchmark: "glue_average" or "super_glue_average".
      scores: for each task its metrics, all of one step. Other tasks and metrics are left out.

    Returns:
      The average in percent, nan where a score is nan.

    Raises:
      ValueError: a score is missing; it says which.
    """
    if lacking := missing(benchmark, scores):
        raise ValueError(f"{benchmark} needs {', '.join(lacking)}")
    groups = [[scores[task][name] for task, name in metrics] for metrics in BENCHMARKS[benchmark].values()]
    return sum(sum(group) / len(group) for group in groups) / len(groups)
