"""Metrics of examples that belong together, such as the answers to one question.

A target is {"value": ..., "group": ...} and a prediction {"value": ...}, as the postprocessors
multirc and record give them: the group of a prediction is that of its target.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from t5x_lite.tasks.metrics.classification import Metric, f1_score_with_invalid


def deduplicate_metric(metric_fn: Metric, group_key: str = "group", value_key: str = "value") -> Metric:
    """A metric of the first example of each group: ReCoRD has one for each right answer, all with the same inputs."""

    def deduplicated(targets: Sequence[Mapping], predictions: Sequence[Mapping]) -> dict[str, float]:
        first = {}
        for target, prediction in zip(targets, predictions):
            first.setdefault(target[group_key], (target[value_key], prediction[value_key]))
        return metric_fn([target for target, _ in first.values()], [prediction for _, prediction in first.values()])

    return deduplicated


def mean_group_metric(
    metric_fn: Metric, group_key: str = "group", value_key: str = "value", return_subgroup_scores: bool = False
) -> Metric:
    """A metric: the mean over groups of a metric of each group. Groups must be whole to be comparable.

    Args:
      metric_fn: the metric of one group.
      group_key: key of a target that holds its group.
      value_key: key of targets and predictions that holds their values.
      return_subgroup_scores: each group's score is also given, as <group>-<name>.
    """

    def mean_of_groups(targets: Sequence[Mapping], predictions: Sequence[Mapping]) -> dict[str, float]:
        groups = defaultdict(lambda: ([], []))
        for target, prediction in zip(targets, predictions):
            of_targets, of_predictions = groups[target[group_key]]
            of_targets.append(target[value_key])
            of_predictions.append(prediction[value_key])
        scores = defaultdict(list)
        for group, values in groups.items():
            for name, score in metric_fn(*values).items():
                scores[name].append(score)
                if return_subgroup_scores:
                    scores[f"{group}-{name}"].append(score)
        return {name: float(np.mean(values)) for name, values in scores.items()}

    return mean_of_groups


def multirc_f1_over_all_answers(targets: Sequence[Mapping], predictions: Sequence[Mapping]) -> dict[str, float]:
    """`f1_score_with_invalid` of all answers, whatever question they belong to: MultiRC's F1a."""
    return f1_score_with_invalid([target["value"] for target in targets], [p["value"] for p in predictions])
