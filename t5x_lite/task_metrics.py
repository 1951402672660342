"""The metric functions of a seqio task, on what a model decodes and on how probable it finds the targets."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import numpy as np
from etils import epath

from t5x_lite import completion
from t5x_lite.data import examples
from t5x_lite.errors import UserError
from t5x_lite.job import Job
from t5x_lite.model.decoding import Strategy
from t5x_lite.output import write_lines
from t5x_lite.parallel import hosts
from t5x_lite.program import Program
from t5x_lite.train.metrics import say
from t5x_lite.train.results import RESERVED


class Stopped(Exception):
    """The evaluation was asked to end before it was done; nothing of it was written."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How outputs are made for metric functions.

    Args:
      strategy, seed: see `completion.Completer`; the best output counts.
      length: the most tokens of an output; None: those of TASK_FEATURE_LENGTHS.
    """

    strategy: Strategy = Strategy()
    length: int | None = None
    seed: int = 0

    def __str__(self) -> str:
        length = "" if self.length is None else f" max_decode_length={self.length}"
        return completion.label(self.strategy, self.seed) + length


def by_task(
    task,
    split: str,
    job: Job,
    programs: tuple[Program, ...],
    rows: int,
    explain: Callable[[Exception], Exception | None],
    num_examples: int | None = None,
    decoding: Decoding = Decoding(),  # noqa: B008 (it cannot change)
) -> dict[str, "TaskMetrics"]:
    """The metrics of each task of a mixture (or of the task itself) that has the split and any metric function.

    Args:
      task: seqio task or mixture.
      others: see `TaskMetrics`.

    Raises:
      UserError: as `TaskMetrics`.
    """
    return {
        member.name: TaskMetrics(member, split, job, programs, rows, explain, num_examples, decoding)
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

    It can be called with the parameters of any step, under the programs' mesh, by all hosts together.

    Args:
      task: seqio task.
      split: of the task.
      job: lengths of the features, seed, and whether seqio's offline cache is read.
      programs: the job laid out; several are an ensemble.
      rows: of a batch; they divide over the devices.
      explain: turns an error of the data into a UserError, or returns None.
      num_examples: the first so many examples; None: all.
      decoding: how outputs are made.

    Raises:
      UserError: a metric function wants what is not computed.
    """

    def __init__(
        self,
        task,
        split: str,
        job: Job,
        programs: tuple[Program, ...],
        rows: int,
        explain: Callable[[Exception], Exception | None],
        num_examples: int | None = None,
        decoding: Decoding = Decoding(),  # noqa: B008
    ):
        check(task)
        self._task, self._split, self._job, self._explain, self._num_examples = task, split, job, explain, num_examples
        self._kinds = {metric.model_output_type for metric in task.metric_objs}
        self._rows, self._decoding = rows, decoding
        self._vocabulary = task.output_features["targets"].vocabulary
        length = decoding.length or job.feature_lengths["targets"]
        self._complete = completion.Completer(
            programs, decoding.strategy, length, self._vocabulary.eos_id, decoding.seed
        )
        self._score = completion.Scorer(programs)
        self._targets = None  # as the task's postprocessor gives them

    def __call__(
        self, params: tuple[dict, ...], step: int, folder: epath.Path, stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, float | str]:
        """Computes the metrics; the first host writes FOLDER/STEP-TASK-SPLIT.jsonl: inputs, targets, outputs as text.

        Where outputs are not greedy, how they are made is part of the name.

        Args:
          params: of each program.
          step: that they are of.
          folder: is made where it is not there.
          stopped: is asked before each batch whether to end.

        Returns:
          Numbers and texts by name, and the `score` of a task whose several metrics count with their mean. Values of
          other kinds are named on stderr; without examples there are none.

        Raises:
          UserError: the data cannot be read, or a metric function failed.
          RunError: the file cannot be written.
          Stopped: as `stopped` says.
        """
        if not self._examples:
            return {}
        outputs = self._outputs(params, stopped)
        how = "" if str(self._decoding) == "greedy" else f"-{str(self._decoding).replace(' ', '-')}"
        if hosts.is_first():
            folder.mkdir(parents=True, exist_ok=True)
            write_lines(folder / f"{step}-{self._task.name}-{self._split}{how}.jsonl", self._lines(outputs))
        kept, others = plain(self._values(outputs))
        for name, kind in others.items():
            say(f"{self._task.name}: the metric {name} is {kind}, neither a number nor a text: left out")
        found = scored(self._task.name, kept)
        return {f"task_{name}" if name in RESERVED else name: value for name, value in found.items()}

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

    def _outputs(self, params: tuple[dict, ...], stopped: Callable[[], bool]) -> dict:
        """What the metric functions need, by seqio's kind: ids [N, T], and log-probabilities [N] in nats."""
        from seqio.metrics import ModelOutputType as Kind

        def check() -> None:
            if stopped():
                raise Stopped

        outputs = {}
        if self._kinds & {Kind.PREDICTION, Kind.PREDICTION_WITH_AUX}:
            found = self._complete(params, self._examples, lambda e: e["inputs"], self._rows, check=check)
            ids, scores = zip(*((one.ids[0], one.scores[0]) for _, one in found))
            ids, scores = np.stack(ids), np.stack(scores)
            outputs |= {Kind.PREDICTION: ids, Kind.PREDICTION_WITH_AUX: (ids, {"scores": scores})}
        if Kind.SCORE in self._kinds:
            found = self._score(params, self._examples, lambda e: (e["inputs"], e["targets"]), self._rows, check=check)
            outputs[Kind.SCORE] = np.array([score for _, score in found], np.float32)
        return outputs

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


def scored(task: str, values: Mapping[str, float | str]) -> dict[str, float | str]:
    """Metrics of a task, and `score` where their mean is what it counts with (tasks/metrics/averages.py)."""
    from t5x_lite.tasks.metrics import averages as of

    score = of.score(task, values)
    return {**values} if score is None else {**values, "score": score}


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
        scores[of.plain_name(task)] = {k: v for k, v in own.items() if not isinstance(v, str)}
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
