"""Metrics of labels and numbers: accuracy, F1, correlations, areas under curves, ranking of labels."""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Metric = Callable[[Sequence, Sequence], dict[str, float]]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' warnings of undefined values: a model that always says one thing is no fault."""
    with warnings.catch_warnings():
        # The first kind is scikit-learn's, the second scipy's and numpy's.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def accuracy(targets: Sequence, predictions: Sequence) -> dict[str, float]:
    """Percentage of predictions equal to their target, of labels or whole strings."""
    from sklearn.metrics import accuracy_score

    with _quiet():
        return {"accuracy": 100 * float(accuracy_score(targets, predictions))}


def sequence_accuracy(targets: Sequence, predictions: Sequence) -> dict[str, float]:
    """Percentage of predictions equal to their target, which may be any two values that == compares.

    Raises:
      ValueError: there are not as many predictions as targets.
    """
    equal = [prediction == target for prediction, target in zip(predictions, targets, strict=True)]
    return {"sequence_accuracy": 100 * float(np.mean(equal)) if equal else np.nan}


def all_match(targets: Sequence, predictions: Sequence) -> dict[str, float]:
    """100 where all predictions equal their targets, else 0."""
    return {"exact_match": 100 * float(np.array_equal(targets, predictions))}


def pearson_corrcoef(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Pearson's correlation in percent, nan where one side is constant."""
    import scipy.stats

    with _quiet():
        return {"pearson_corrcoef": 100 * float(scipy.stats.pearsonr(targets, predictions)[0])}


def spearman_corrcoef(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Spearman's rank correlation in percent, nan where one side is constant."""
    import scipy.stats

    with _quiet():
        return {"spearman_corrcoef": 100 * float(scipy.stats.spearmanr(targets, predictions)[0])}


def matthews_corrcoef(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Matthews' correlation in percent, 0 where one side is constant."""
    import sklearn.metrics

    with _quiet():
        return {"matthews_corrcoef": 100 * float(sklearn.metrics.matthews_corrcoef(targets, predictions))}


def f1_score_with_invalid(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """F1 of the label 1 in percent, where a prediction that is neither 0 nor 1 counts as the wrong one of them."""
    from sklearn.metrics import f1_score

    targets, predictions = np.asarray(targets), np.array(predictions)
    invalid = (predictions != 0) & (predictions != 1)
    predictions[invalid] = 1 - targets[invalid]
    with _quiet():
        return {"f1": 100 * float(f1_score(targets, predictions))}


def mean_multiclass_f1(num_classes: int, **metric_fn_kwargs) -> Metric:
    """A metric: the plain mean of each class's F1, in percent, as mean_<num_classes>class_f1.

    Args:
      num_classes: how many labels count, from 0.
      **metric_fn_kwargs: go to sklearn.metrics.fbeta_score.
    """

    def mean_f1(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
        from sklearn.metrics import fbeta_score

        with _quiet():
            f1 = fbeta_score(
                targets, predictions, beta=1, labels=range(num_classes), average="macro", **metric_fn_kwargs
            )
        return {f"mean_{num_classes}class_f1": 100 * float(f1)}

    return mean_f1


def sklearn_metrics_wrapper(
    metric_str: str,
    metric_dict_str: str | None = None,
    metric_post_process_fn: Callable | None = None,
    **metric_fn_kwargs,
) -> Metric:
    """A metric made of a function of sklearn.metrics.

    Args:
      metric_str: name of the function.
      metric_dict_str: name of the value, the function's name unless given.
      metric_post_process_fn: applied to the value, for example to make it percent.
      **metric_fn_kwargs: go to the function.

    Raises:
      ValueError: sklearn.metrics has no such function.
    """
    import sklearn.metrics

    function = getattr(sklearn.metrics, metric_str, None)
    if function is None:
        raise ValueError(f"sklearn.metrics has no function {metric_str}")

    def metric(targets: Sequence, predictions: Sequence) -> dict[str, Any]:
        with _quiet():
            value = function(targets, predictions, **metric_fn_kwargs)
        return {metric_dict_str or metric_str: metric_post_process_fn(value) if metric_post_process_fn else value}

    return metric


def auc(
    targets: Sequence[float], predictions: Sequence[float], targets_threshold: float | None = None
) -> dict[str, float]:
    """Areas, 0 to 1, under the curve of true and false positives and under that of precision and recall.

    Args:
      targets: 0 or 1, or with `targets_threshold` any numbers.
      predictions: the higher, the likelier is 1.
      targets_threshold: the least target that counts as 1.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    if targets_threshold is not None:
        # Not >=, so that nan counts as 1.
        targets = (~(np.asarray(targets) < targets_threshold)).astype(np.int32)
    with _quiet():
        return {
            "auc-roc": float(roc_auc_score(targets, predictions)),
            "auc-pr": float(average_precision_score(targets, predictions)),
        }


def score_auc(
    targets: Sequence[float], scores: Sequence[float], targets_threshold: float | None = None
) -> dict[str, float]:
    """`auc` of the scores that a model gives to targets."""
    return auc(targets, scores, targets_threshold)


def rank_classification(
    targets: Sequence[tuple[Sequence[int], bool, float, int]],
    scores: Sequence[float],
    num_classes: int | None = None,
    normalize_by_target_length: bool = False,
    idx_len: int = 2,
) -> dict[str, float]:
    """How well the label with the highest log likelihood is the right one.

    Args:
      targets: for each possible label of each example, in any order, (idx, is_correct, weight, length of the
        tokenized label); idx is the number of the example, then that of the label. The postprocessor
        rank_classification gives them.
      scores: their log likelihoods.
      num_classes: how many labels each example has, None where they differ.
      normalize_by_target_length: scores are divided by the lengths of their labels.
      idx_len: how many numbers an idx has.

    Returns:
      accuracy in percent, alone where `num_classes` is None or an example has several right labels; else with
      two classes also f1, auc-roc and auc-pr in percent of the class 1, with more mean_<num_classes>class_f1.

    Raises:
      ValueError: targets and scores do not pair up, or targets have another form.
    """
    if len(targets) != len(scores):
        raise ValueError(f"there are {len(targets)} targets and {len(scores)} scores")
    if len(targets[0]) != 4:
        raise ValueError(f"a target is (idx, is_correct, weight, length), not {len(targets[0])} values")
    idx = targets[0][0]
    if not hasattr(idx, "__len__") or len(idx) != idx_len:
        raise ValueError(f"the first value of a target, its idx, has {idx_len} numbers, and this is {idx}")
    if normalize_by_target_length:
        scores = [score / length for (_, _, _, length), score in zip(targets, scores)]
    pairs = sorted(zip(targets, scores), key=lambda pair: pair[0][0])
    if not num_classes:
        return _accuracy_of_ranks(pairs)
    if len(pairs) % num_classes:
        raise ValueError(f"{len(pairs)} targets are no whole number of examples with {num_classes} classes")

    right = np.array([target[1] for target, _ in pairs]).reshape(-1, num_classes)
    # Every label of an example has the example's weight.
    weights = np.array([target[2] for target, _ in pairs]).reshape(-1, num_classes)[:, 0]
    likelihoods = np.array([score for _, score in pairs], np.float32).reshape(-1, num_classes)
    chosen = likelihoods.argmax(-1)
    if (right.sum(-1) > 1).any():
        return {"accuracy": 100 * float(np.average(right[np.arange(len(right)), chosen], weights=weights))}
    return _scores_of_ranks(right, chosen, likelihoods, weights)


def _accuracy_of_ranks(pairs: list[tuple[tuple, float]]) -> dict[str, float]:
    """Accuracy where examples differ in how many labels they have. `pairs` are sorted."""
    correct = total = 0
    for _, group in itertools.groupby(pairs, key=lambda pair: pair[0][0][0]):
        labels, likelihoods = zip(*group)
        _, is_correct, weight, _ = labels[np.argmax(likelihoods)]
        correct += is_correct * weight
        total += weight
    return {"accuracy": float(100 * correct / total)}


def _scores_of_ranks(
    right: np.ndarray, chosen: np.ndarray, likelihoods: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
    """Metrics where each example has one right label at most. All arrays but `chosen` and `weights` are 2-D."""
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

    classes = right.shape[1]
    one_hot = np.eye(classes)[chosen]
    metrics = {"accuracy": 100 * float(accuracy_score(right, one_hot, sample_weight=weights))}
    if classes > 2:
        return metrics | mean_multiclass_f1(classes, sample_weight=weights)(right, one_hot)
    exponents = np.exp(likelihoods - likelihoods.max(-1, keepdims=True))
    positive = (exponents / exponents.sum(-1, keepdims=True))[:, 1]
    with _quiet():
        return metrics | {
            "f1": 100 * float(f1_score(right.argmax(-1), chosen, sample_weight=weights)),
            "auc-roc": 100 * float(roc_auc_score(right[:, 1], positive, sample_weight=weights)),
            "auc-pr": 100 * float(average_precision_score(right[:, 1], positive, sample_weight=weights)),
        }
