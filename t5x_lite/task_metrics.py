"""The metric functions of a seqio task, on what a model decodes and on how probable it finds the targets."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property

import jax
import numpy as np
from etils import epath

from t5x_lite.data import examples
from t5x_lite.data.requests import grouped, inputs_batch, pairs_batch
from t5x_lite.errors import UserError
from t5x_lite.job import Job
from t5x_lite.output import write_lines
from t5x_lite.program import Program, greedy_step, score_step
from t5x_lite.train.metrics import say

# What a line of results has of its own: a metric that is called like one of these becomes task_NAME.
RESERVED = ("step", "task", "split", "loss", "accuracy", "tokens")


class Stopped(Exception):
    """The evaluation was asked to end before it was done; nothing of it was written."""


def by_task(
    task,
    split: str,
    job: Job,
    program: Program,
    rows: int,
    explain: Callable[[Exception], Exception | None],
    num_examples: int | None = None,
) -> dict[str, "TaskMetrics"]:
    """The metrics of each task of a mixture (or of the task itself) that has the split and any metric function.

    Args:
      task: seqio task or mixture.
      others: see `TaskMetrics`.

    Raises:
      UserError: as `TaskMetrics`.
    """
    return {
        member.name: TaskMetrics(member, split, job, program, rows, explain, num_examples)
        for member in examples.members(task, split)
        if member.metric_objs
    }


def check(task) -> None:
    """Refuses a seqio task with a metric function that wants what is not computed.

    Raises:
      UserError: it wants scores with intermediate values.
    """
    if not task.metric_objs:
        return  # a cached task may be read where there is no seqio
    from seqio.metrics import ModelOutputType

    if any(m.model_output_type == ModelOutputType.SCORE_WITH_INTERMEDIATES for m in task.metric_objs):
        raise UserError(
            f"a metric of {task.name} wants scores with intermediate values",
            "what can be computed are predictions, their scores as auxiliary values, and scores of the targets",
            f"remove that metric from {task.name}",
        )


class TaskMetrics:
    """Computes the metrics of one task as seqio's Evaluator does; its examples are read once and kept.

    It can be called with the parameters of any step, under the program's mesh, on one host.

    Args:
      task: seqio task.
      split: of the task.
      job: lengths of the features, seed, and whether seqio's offline cache is read.
      program: the job laid out.
      rows: of a batch; they divide over the devices.
      explain: turns an error of the data into a UserError, or returns None.
      num_examples: the first so many examples; None: all.

    Raises:
      UserError: a metric function wants what is not computed.
    """

    def __init__(
        self,
        task,
        split: str,
        job: Job,
        program: Program,
        rows: int,
        explain: Callable[[Exception], Exception | None],
        num_examples: int | None = None,
    ):
        check(task)
        self._task, self._split, self._job, self._explain, self._num_examples = task, split, job, explain, num_examples
        self._kinds = {metric.model_output_type for metric in task.metric_objs}
        self._sharding, self._rows, self._convert = program.batch_sharding, rows, program.convert
        self._vocabulary = task.output_features["targets"].vocabulary
        self._decode = greedy_step(program, job.feature_lengths["targets"], self._vocabulary.eos_id)
        self._score = score_step(program)
        self._targets = None  # as the task's postprocessor gives them

    def __call__(
        self, params: dict, step: int, folder: epath.Path, stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, float | str]:
        """Computes the metrics and writes FOLDER/STEP-TASK-SPLIT.jsonl: inputs, targets and outputs as text.

        Args:
          params: of the program.
          step: that they are of.
          folder: is made where it is not there.
          stopped: is asked before each batch whether to end.

        Returns:
          Numbers and texts by name. Values of other kinds are named on stderr; without examples there are none.

        Raises:
          UserError: the data cannot be read, or a metric function failed.
          RunError: the file cannot be written.
          Stopped: as `stopped` says.
        """
        if not self._examples:
            return {}
        outputs = self._outputs(params, stopped)
        folder.mkdir(parents=True, exist_ok=True)
        write_lines(folder / f"{step}-{self._task.name}-{self._split}.jsonl", self._lines(outputs))
        kept, others = plain(self._values(outputs))
        for name, kind in others.items():
            say(f"{self._task.name}: the metric {name} is {kind}, neither a number nor a text: left out")
        return {f"task_{name}" if name in RESERVED else name: value for name, value in kept.items()}

    @cached_property
    def _examples(self) -> list[dict]:
        import tensorflow_datasets as tfds

        job = self._job
        dataset = self._task.get_dataset(
            sequence_length=dict(job.feature_lengths),
            split=self._split,
            use_cached=job.use_cached_tasks,
            shuffle=False,
            seed=job.seed,
            num_epochs=1,
        )
        if self._num_examples is not None:
            dataset = dataset.take(self._num_examples)
        try:
            return list(tfds.as_numpy(dataset))
        except Exception as error:
            raise (self._explain(error) or error) from error

    def _outputs(self, params: dict, stopped: Callable[[], bool]) -> dict:
        """What the metric functions need, by seqio's kind: ids [N, T], and log-probabilities [N] in nats."""
        from seqio.metrics import ModelOutputType as Kind

        outputs = {}
        if self._kinds & {Kind.PREDICTION, Kind.PREDICTION_WITH_AUX}:
            ids, scores = self._decoded(params, self._groups(stopped))
            outputs |= {Kind.PREDICTION: ids, Kind.PREDICTION_WITH_AUX: (ids, {"scores": scores})}
        if Kind.SCORE in self._kinds:
            outputs[Kind.SCORE] = self._scored(params, self._groups(stopped))
        return outputs

    def _groups(self, stopped: Callable[[], bool]) -> Iterator[list[dict]]:
        """The examples of each batch."""
        for group in grouped(self._examples, self._rows):
            if stopped():
                raise Stopped
            yield group

    def _decoded(self, params: dict, groups: Iterable[list[dict]]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of each completion [N, T], 0 behind its end, and its log-probability [N]."""
        done = []
        for group in groups:
            tokens = inputs_batch([e["inputs"] for e in group], self._rows)
            ids, scores = jax.device_get(self._decode(params, self._place(tokens)))
            done.append((ids[: len(group)], scores[: len(group)]))
        return tuple(map(np.concatenate, zip(*done)))

    def _scored(self, params: dict, groups: Iterable[list[dict]]) -> np.ndarray:
        """Log-probability of the targets of each example [N]."""
        done = []
        for group in groups:
            batch = pairs_batch([(e["inputs"], e["targets"]) for e in group], self._rows, self._convert)
            by_token, _ = jax.device_get(self._score(params, {name: self._place(a) for name, a in batch.items()}))
            done.append(by_token[: len(group)].sum(axis=-1))
        return np.concatenate(done)

    def _place(self, array: np.ndarray) -> jax.Array:
        return jax.device_put(array, self._sharding)

    def _values(self, outputs: dict) -> dict:
        """What the metric functions return, as in seqio's Evaluator."""
        from seqio.metrics import CollectingMetric

        features, values = self._task.output_features, {}
        for metric in self._task.metric_objs:
            try:
                measured = metric.from_model_output(
                    self._examples, outputs[metric.model_output_type], features, "targets"
                )
                if isinstance(measured, CollectingMetric):
                    found, inferred = measured.actual_compute(self._examples, features, "targets", self._targets)
                    self._targets = inferred["targets"]
                else:
                    found = measured.compute()
            except Exception as error:
                # Whatever a user's function raises is about that function.
                raise UserError(
                    f"a metric function of {self._task.name} failed",
                    f"{type(error).__name__}: {error}",
                    "correct it; --traceback shows where",
                ) from error
            if twice := sorted(values.keys() & found.keys()):
                raise UserError(
                    f"two metric functions of {self._task.name} give {twice[0]}",
                    "only one of the two could be written",
                    "rename one",
                )
            values |= found
        return values

    def _lines(self, outputs: dict) -> Iterable[dict[str, str | float]]:
        from seqio.metrics import ModelOutputType as Kind

        features = self._task.output_features
        for number, example in enumerate(self._examples):
            line = {name: features[name].vocabulary.decode(example[name].tolist()) for name in ("inputs", "targets")}
            if Kind.PREDICTION in outputs:
                line["prediction"] = self._vocabulary.decode(outputs[Kind.PREDICTION][number].tolist())
            if Kind.SCORE in outputs:
                line["score"] = float(outputs[Kind.SCORE][number])
            yield line


def averages(results: Mapping[str, Mapping[str, float | str]]) -> dict[str, float]:
    """The averages over the benchmarks (tasks/metrics/averages.py) whose tasks are all among the results.

    Args:
      results: for each task a line of results, of one step and split.

    Returns:
      "glue_average" and "super_glue_average" in percent, as far as there are any.
    """
    from t5x_lite.tasks.metrics import averages as of

    scores: dict[str, dict[str, float]] = {}
    for task, line in results.items():
        # A metric that is called like a part of the line has a prefix there.
        own = {name.removeprefix("task_"): value for name, value in line.items() if name not in RESERVED}
        scores[task.replace("_1_sentinel", "")] = {k: v for k, v in own.items() if not isinstance(v, str)}
    return {name: of.average(name, scores) for name in of.BENCHMARKS if not of.missing(name, scores)}


def plain(values: Mapping) -> tuple[dict[str, float | str], dict[str, str]]:
    """What metric functions return, as numbers and texts.

    Args:
      values: numbers of any library, texts, or seqio.metrics.MetricValue, by name.

    Returns:
      Floats and strings by name, and the type's name of each value that is neither.
    """
    from seqio.metrics import Scalar, Text

    kept: dict[str, float | str] = {}
    others: dict[str, str] = {}
    for name, value in values.items():
        held = value.value if isinstance(value, Scalar) else value.textdata if isinstance(value, Text) else value
        if isinstance(held, str | bytes):
            kept[name] = held.decode(errors="replace") if isinstance(held, bytes) else held
        elif not isinstance(held, list | tuple | dict) and np.ndim(held) == 0 and np.asarray(held).dtype.kind in "biuf":
            kept[name] = float(held)
        else:
            others[name] = type(value).__name__
    return kept, others
