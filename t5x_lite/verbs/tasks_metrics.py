"""Whether the metrics and the postprocessor of a task do what they should, for t5x_lite tasks check."""

import numpy as np

from t5x_lite import task_metrics
from t5x_lite.errors import UserError
from t5x_lite.verbs import tasks
from t5x_lite.verbs.tasks_finding import Finding, Stop, warning, wrong


def measure(task, examples: list[dict], findings: list[Finding]) -> list[str]:
    """Computes the metrics for predictions that equal the targets, and for two kinds of wrong ones."""
    try:
        task_metrics.check(task)
        if not task.metric_objs:
            return ["no metric"]
    except UserError as error:
        findings.append(Finding(str(error)))
        return []
    except ValueError as error:
        findings.append(wrong("a metric function has other arguments", str(error), "name its arguments so"))
        return []
    ids = _padded([example["targets"] for example in examples])
    try:
        best = _measured(task, examples, ids, "predictions that equal the targets")
        empty = _measured(task, examples, np.zeros((len(ids), 1), np.int32), "empty predictions")
        turned = _measured(task, examples, np.roll(ids, 1, axis=0), "the targets of other examples")
    except Stop as stop:
        findings.append(stop.finding)
        return []
    for name, value in best.items():
        if finding := _not_best(name, value, empty.get(name, np.nan), turned.get(name, np.nan)):
            findings.append(finding)
    return [", ".join(f"{name} {value:g}" for name, value in best.items())] if best else []


def _not_best(name: str, value: float, empty: float, turned: float) -> Finding | None:
    if np.isnan(value):
        return warning(f"the metric {name} is NaN where predictions equal the targets", "it says nothing", "correct it")
    if np.isnan(empty) or np.isnan(turned):
        return None
    least, most = min(empty, turned), max(empty, turned)
    if least < value < most or value == least == most:
        return warning(
            f"the metric {name} is not best where predictions equal the targets",
            f"it is {value:g} there, {empty:g} for empty predictions and {turned:g} for the targets of other examples",
            "look whether the postprocessor treats predictions and targets alike",
        )
    return None


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    padded = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for k, row in enumerate(rows):
        padded[k, : len(row)] = row
    return padded


def _measured(task, examples: list[dict], ids: np.ndarray, kind: str) -> dict[str, float]:
    """The numbers that the metrics of predictions give for ids [N, T].

    Raises:
      Stop: the postprocessor or a metric fails, or gives what is no number.
    """
    import seqio
    from seqio.metrics import CollectingMetric
    from seqio.metrics import ModelOutputType as Kind

    _postprocess(task, examples, ids)
    scores = np.zeros(len(ids), np.float32)
    outputs = {Kind.PREDICTION: ids, Kind.PREDICTION_WITH_AUX: (ids, {"scores": scores}), Kind.SCORE: scores}
    features, numbers = task.output_features, {}
    # The metric functions come after the objects.
    functions = [seqio.utils.function_name(function) for function in task.metric_fns]
    objects = [type(metric).__name__ for metric in task.metric_objs[: len(task.metric_objs) - len(functions)]]
    for function, metric in zip([*objects, *functions], task.metric_objs):
        try:
            measured = metric.from_model_output(examples, outputs[metric.model_output_type], features, "targets")
            if isinstance(measured, CollectingMetric):
                values, _ = measured.actual_compute(examples, features, "targets", None)
            else:
                values = measured.compute()
            kept, others = task_metrics.plain(values)
        except Exception as error:
            # Whatever a user's function raises is about that function.
            raise Stop(
                wrong(
                    f"the metric {function} fails on {kind}",
                    tasks.reason(error),
                    "correct it; a model may say anything",
                )
            ) from error
        if others:
            name, found = next(iter(others.items()))
            raise Stop(
                wrong(f"the metric {name} of {function} is of type {found}", "it is no number", "return a float")
            )
        if metric.model_output_type is not Kind.SCORE:
            numbers |= {name: value for name, value in kept.items() if isinstance(value, float)}
    return numbers


def _postprocess(task, examples: list[dict], ids: np.ndarray) -> None:
    """Calls the postprocessor with outputs of a model, to see whether it fails by itself."""
    import seqio

    vocabulary = task.output_features["targets"].vocabulary
    for example, row in zip(examples, ids):
        output = vocabulary.decode(row.tolist())
        try:
            task.postprocess_fn(output, example=example, is_target=False)
        except Exception as error:
            # Whatever a user's function raises is about that function.
            raise Stop(
                wrong(
                    f"the postprocessor {seqio.utils.function_name(task.postprocessor)} fails on {output!r}",
                    tasks.reason(error),
                    "correct it: a model may say anything, and it is called with example= and is_target=",
                )
            ) from error
