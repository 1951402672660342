"""t5x_lite eval: teacher-forced loss and accuracy, and the metrics of each task over decoded outputs.

Of one checkpoint, of several as one, of all of a model directory, or of each as it appears.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from etils import epath

from t5x_lite import completion, model_dir, output, task_metrics
from t5x_lite.data import buckets, examples
from t5x_lite.data.packing import Example
from t5x_lite.data.tokens import Tokens
from t5x_lite.errors import RunError, UserError
from t5x_lite.interruption import preemptible
from t5x_lite.job import Job
from t5x_lite.program import Program, ensemble_eval_step
from t5x_lite.task import open_split
from t5x_lite.task_metrics import Decoding
from t5x_lite.train import evaluation, results
from t5x_lite.train.events import EventFile, open_events
from t5x_lite.train.metrics import RESULTS, append_result, read_jsonl, say, write_whole
from t5x_lite.verbs import evaluate_steps

TABLE = "table.txt"


def main(args) -> None:
    """The verb: a line for each task and a table on stdout, the same in eval/results.jsonl, predictions in eval/."""
    decoding = Decoding(completion.strategy(args), args.max_decode_length, args.seed or 0)
    plan = evaluate_steps.plan(args)
    bindings = [*args.gin, *([f"MIXTURE_OR_TASK_NAME={args.mixture_or_task}"] if args.mixture_or_task else [])]
    with preemptible(lambda: "what has been evaluated is written; the same command goes on") as check:
        plan.wait_for_first()
        opened = model_dir.open_together(plan.references, args.gin_file, bindings)
        directory, step, job = opened[0]
        folder = epath.Path(args.output_dir or directory / "eval")
        # What can be wrong with the input is found before the parameters are read.
        output.check_folder(folder, "--output_dir")
        task, explain = open_split(job, args.split, directory)
        with contextlib.ExitStack() as ending:
            if plan.several_steps:
                model = ending.enter_context(model_dir.laid_out(directory, job))
                programs, members = (model.program,), None
            else:
                models = ending.enter_context(model_dir.ensemble(opened))
                programs, members = models.programs, model_dir.identities(opened) if len(opened) > 1 else None
            evaluate = Evaluation(
                programs, job, task, explain, args.split, args.num_examples, folder, args.batch_size, decoding,
                " ".join([*args.gin_file, *args.gin]) or None, directory, members,
            )  # fmt: skip
            ending.callback(evaluate.close)
            if plan.several_steps:
                for step in plan.steps(directory, job.save_period, evaluate.finished):
                    check()
                    skip = set() if args.overwrite else evaluate.known(step)
                    if evaluate.tasks <= skip:
                        _show(evaluate.averages(step, again=False))
                        say(f"step {step} has been evaluated: see {folder / RESULTS}")
                    elif (restored := evaluate_steps.restored(model, step, plan.follow)) is not None:
                        _show(evaluate((restored.params,), step, skip))
                        del restored  # the next parameters need its place
            else:
                _show(evaluate(models.params, step))
        _show_table(evaluate, plan.several_steps)


def _show(found: Iterable[tuple[str, int, dict]]) -> None:
    for name, step, result in found:
        texts = (_shown(n, v) for n, v in result.items() if not (isinstance(v, str) and "\n" in v))
        print(f"{name}  step {step}  {'  '.join(texts)}", flush=True)


def _shown(name: str, value) -> str:
    return f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"


def _show_table(evaluate: "Evaluation", several_steps: bool) -> None:
    rows = results.rows(evaluate.lines())
    table = results.table(rows)
    if rows:
        write_whole(evaluate.folder / TABLE, table.encode())
    if len(rows) > 1 or len(evaluate.tasks) > 1:
        print(f"\n{table}", end="", flush=True)
    if several_steps and len(rows) > 1 and (best := results.best(rows)) is not None:
        say(f"best: step {best.step}, which @best names where these results are in the model directory's eval/")


class Evaluation:
    """Evaluates every task of a mixture that has the split; what is compiled for one step serves all.

    Each result is written as soon as it is known: a line of FOLDER/results.jsonl, TensorBoard scalars
    eval/TASK/NAME, and, of tasks with metrics, predictions (see `task_metrics.TaskMetrics`).

    Args:
      programs: the model laid out; several are an ensemble.
      job: lengths of the features.
      task, explain: from `open_split`.
      split: of the tasks.
      num_examples: most examples of each task; None: all.
      folder: to write to.
      batch_size: rows computed together.
      decoding: how outputs are made.
      overrides: gin files and bindings of the command line, which may change data and model; None: none.
      directory: of the model. When each checkpoint was committed stands in its lines: another of the same step is new.
      members: the checkpoints of an ensemble, which then stand in each line.
    """

    def __init__(
        self,
        programs: tuple[Program, ...],
        job: Job,
        task,
        explain: examples.Explain,
        split: str,
        num_examples: int | None,
        folder: epath.Path,
        batch_size: int,
        decoding: Decoding,
        overrides: str | None,
        directory: epath.Path,
        members: Sequence[str] | None = None,
    ):
        self.folder = folder
        self._program, self._job, self._task, self._explain = programs[0], job, task, explain
        self._split, self._num_examples = split, num_examples
        self._rows = model_dir.rows(programs[0], batch_size)
        self._metrics = task_metrics.by_task(task, split, job, programs, self._rows, explain, num_examples, decoding)
        self._sums_of = ensemble_eval_step(programs)
        members_of = examples.members(task, split)
        self._eos = {member.name: _end(member) for member in members_of}
        self.tasks = {member.name for member in members_of}
        lengths = "/".join(str(job.feature_lengths[name]) for name in ("inputs", "targets"))
        self._setting = {
            "split": split, "decode": str(decoding), "num_examples": num_examples, "lengths": lengths,
            "overrides": overrides,
        }  # fmt: skip
        self._directory = directory
        self._members = {} if members is None else {"checkpoints": list(members)}
        self._said: set[str] = set()

    @cached_property
    def _events(self) -> EventFile | None:
        """Opened for the first result: a command that has none leaves nothing behind."""
        return open_events(self.folder)

    def close(self) -> None:
        if (events := self.__dict__.get("_events")) is not None:
            events.close()

    def lines(self) -> list[Mapping]:
        """What the folder holds of these tasks, of averages over them, and of this setting."""
        wanted = results.setting(self._setting), self._members.get("checkpoints")
        found = read_jsonl(self.folder / RESULTS)
        return [
            line for line in found
            if (results.setting(line), line.get("checkpoints")) == wanted
            and (not results.is_evaluation(line) or line["task"] in self.tasks)
        ]  # fmt: skip

    def known(self, step: int) -> set[str]:
        """The tasks that have been evaluated at a step, under this setting."""
        return self._known().get(step, set())

    def finished(self) -> set[int]:
        """The steps at which all tasks have been evaluated, under this setting."""
        return {step for step, tasks in self._known().items() if self.tasks <= tasks}

    def _known(self) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for line in filter(results.is_evaluation, self.lines()):
            if self._is_current(line):
                found.setdefault(line["step"], set()).add(line["task"])
        return found

    def _is_current(self, line: Mapping) -> bool:
        """Whether it is of the checkpoint of its step that is there, and not of one that another replaced."""
        committed = model_dir.committed(self._directory, line["step"])
        return not committed or line.get("committed") == committed

    def __call__(
        self, params: tuple[dict, ...], step: int, skip: set[str] = frozenset()
    ) -> Iterator[tuple[str, int, dict[str, float | int | str]]]:
        """Evaluates one step.

        Args:
          params: of each program, on its mesh, which is the current one.
          step: that they are of.
          skip: tasks that are left out.

        Yields:
          The name of a task and the step with its `loss` (nats a target token), `accuracy` (share of target tokens),
          `tokens`, and what its own metric functions say; at the end the `score` of each benchmark all tasks of which
          are there.

        Raises:
          UserError: a split is empty or cannot be read, or a metric function failed.
          RunError: a result cannot be written.
        """
        job, split = self._job, self._split
        for name, stream in examples.evaluation_streams(
            self._task, split, job.feature_lengths, False, job.seed, job.use_cached_tasks, self._explain,
            self._num_examples,
        ):  # fmt: skip
            if name in skip:
                stream.close()
                continue
            result, whole = self._teacher_forced(name, stream, params), False
            try:
                if name in self._metrics:
                    say(f"decoding {name}")
                    result |= self._metrics[name](params, step, self.folder)
                whole = True
            finally:
                # A metric function that fails loses nothing of what is known.
                self._record(step, name, result | ({} if whole else {"incomplete": True}))
            yield name, step, result
        yield from self.averages(step)

    def averages(self, step: int, again: bool = True) -> Iterator[tuple[str, int, dict[str, float]]]:
        """The `score` of each benchmark all tasks of which are known at a step.

        Args:
          step: of the checkpoint.
          again: those too that are written already.
        """
        lines = [line for line in self.lines() if line["step"] == step and self._is_current(line)]
        written = {line["task"] for line in lines if not results.is_evaluation(line)}
        known = {line["task"]: _numbers(line) for line in lines if results.is_evaluation(line)}
        for name, score in task_metrics.averages(known).items():
            if again or name not in written:
                self._record(step, name, {"score": score})
                yield name, step, {"score": score}

    def _teacher_forced(self, name: str, stream, params: tuple[dict, ...]) -> dict[str, float | int]:
        job, program = self._job, self._program
        tally = Counter()
        pairs = _tallied(stream.examples(), self._eos[name], job.feature_lengths["targets"], tally)
        planned = buckets.batches(pairs, lambda pair: tuple(map(len, pair)), self._rows)
        batches = (buckets.pairs_batch([p for _, p in batch], self._rows, program.convert) for batch in planned)
        placed = ({k: model_dir.place(program, v) for k, v in batch.items()} for batch in batches)
        try:
            result = evaluation.teacher_forced(self._sums_of, params, placed)
        finally:
            stream.close()
        if not result["tokens"]:
            raise UserError(
                f"the split {self._split} of {name} has no examples",
                "there is nothing to evaluate",
                "choose another --split",
            )
        if name not in self._said:
            self._said.add(name)
            _say_cut(name, tally, job.feature_lengths["targets"])
        return result

    def _record(self, step: int, name: str, result: Mapping[str, float | int | str]) -> None:
        """Writes one result.

        Raises:
          RunError: it cannot be written.
        """
        try:
            committed = model_dir.committed(self._directory, step)
            about = {"step": step, "committed": committed, "task": name, **self._setting, **self._members}
            append_result(self.folder, about | result)
            numbers = {f"eval/{name}/{k}": v for k, v in result.items() if not isinstance(v, str | bool)}
            if self._events is not None:
                self._events.scalars(step, numbers)
        except OSError as error:
            raise RunError(
                f"{self.folder / RESULTS} could not be written: {error.strerror or error}",
                f"it holds the results of the tasks before {name}",
                "make room there or name another folder with --output_dir, and evaluate again",
            ) from error


def _numbers(line: Mapping) -> dict:
    """A line read back: what was not finite is null there."""
    return {name: float("nan") if value is None else value for name, value in line.items()}


def _tallied(
    found: Iterable[Example], eos: int | None, length: int, tally: Counter
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of each example; counts `targets`, and which are `cut`: full without their end token."""
    for example in found:
        targets = example["targets"]
        tally["targets"] += 1
        tally["cut"] += eos is not None and len(targets) == length and targets[-1] not in (0, eos)
        yield example["inputs"], targets


def _end(member) -> int | None:
    """The id that the targets of a task end in, None where they need not or cannot do otherwise."""
    feature = None if isinstance(member, Tokens) else member.output_features["targets"]
    return feature.vocabulary.eos_id if feature is not None and feature.add_eos else None


def _say_cut(name: str, tally: Counter, length: int) -> None:
    if tally["cut"]:
        say(
            f"{tally['cut']} of {tally['targets']} targets of {name} were cut to the {length} tokens of "
            "TASK_FEATURE_LENGTHS, here and in the metrics: --gin_file=runs/eval.gin makes room for 512"
        )
