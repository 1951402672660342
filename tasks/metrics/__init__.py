"""What downstream tasks are scored with: functions of targets and predictions (or scores) to a dict of numbers.

seqio tells by the parameters' names whether a metric wants predictions or scores. Scores are
percent but for areas under curves and edit distances; what is undefined is nan. The values are
those of t5 0.9.4 (t5/evaluation/metrics.py). The libraries that compute them are loaded at the
first call, since every command imports the tasks that name metrics.
"""

from t5x_lite.tasks.metrics.classification import (
    accuracy,
    all_match,
    auc,
    f1_score_with_invalid,
    matthews_corrcoef,
    mean_multiclass_f1,
    pearson_corrcoef,
    rank_classification,
    score_auc,
    sequence_accuracy,
    sklearn_metrics_wrapper,
    spearman_corrcoef,
)
from t5x_lite.tasks.metrics.grouped import deduplicate_metric, mean_group_metric, multirc_f1_over_all_answers
from t5x_lite.tasks.metrics.qa import coqa_f1, span_squad, squad, trivia_qa
from t5x_lite.tasks.metrics.text import bleu, edit_distance, rouge, rouge_mean

__all__ = [
    "accuracy",
    "all_match",
    "auc",
    "bleu",
    "coqa_f1",
    "deduplicate_metric",
    "edit_distance",
    "f1_score_with_invalid",
    "matthews_corrcoef",
    "mean_group_metric",
    "mean_multiclass_f1",
    "multirc_f1_over_all_answers",
    "pearson_corrcoef",
    "rank_classification",
    "rouge",
    "rouge_mean",
    "score_auc",
    "sequence_accuracy",
    "sklearn_metrics_wrapper",
    "span_squad",
    "spearman_corrcoef",
    "squad",
    "trivia_qa",
]
