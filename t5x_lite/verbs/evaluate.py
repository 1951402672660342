"""t5x_lite eval: teacher-forced loss and accuracy, and the metrics of each task over decoded outputs."""

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath

from t5x_lite import model_dir, output, task_metrics
from t5x_lite.data import batches as batching
from t5x_lite.data import examples
from t5x_lite.data.tokens import Tokens
from t5x_lite.errors import RunError, UserError
from t5x_lite.job import Job
from t5x_lite.program import eval_step
from t5x_lite.task import open_task
from t5x_lite.train import evaluation
from t5x_lite.train.events import EventFile, open_events
from t5x_lite.train.metrics import RESULTS, append_result, say


def main(args) -> None:
    """The verb: a line for each task on stdout, the same in eval/results.jsonl, predictions in eval/."""
    bindings = [*args.gin, *([f"MIXTURE_OR_TASK_NAME={args.mixture_or_task}"] if args.mixture_or_task else [])]
    directory, _, job = model_dir.open_job(args.checkpoint, args.gin_file, bindings)
    folder = epath.Path(args.output_dir or directory / "eval")
    # What can be wrong with the input is found before the parameters are read.
    output.check_folder(folder, "--output_dir")
    task, explain = _open(job, directory, args.split)
    with model_dir.restored(args.checkpoint, args.gin_file, bindings) as model:
        for name, result in evaluate(model, task, explain, args.split, args.num_examples, folder, args.batch_size):
            print(f"{name}  step {model.step}  {'  '.join(_shown(result))}", flush=True)


def _open(job: Job, directory: epath.Path, split: str):
    """The job's task, which has the split somewhere, and what explains its errors."""
    if job.mixture_or_task_name is None:
        raise UserError(
            "no --mixture_or_task is given",
            f"the model in {directory} was converted: it was trained on no task that is known here",
            "give --mixture_or_task=NAME, and where it is your own --module",
        )
    task, explain = open_task(job)
    if not examples.members(task, split):
        known = sorted({s for member in examples.members(task, None) for s in member.splits})
        raise UserError(
            f"--split={split} is in no task of {job.mixture_or_task_name}",
            f"it has {', '.join(known)}",
            "choose one with --split",
        )
    return task, explain


def _shown(result: dict) -> Iterator[str]:
    for name, value in result.items():
        if not isinstance(value, str):
            yield f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        elif "\n" not in value:
            yield f"{name} {value}"


def evaluate(
    model: model_dir.Restored,
    task,
    explain: examples.Explain,
    split: str,
    num_examples: int | None,
    folder: epath.Path,
    batch_size: int,
) -> Iterator[tuple[str, dict[str, float | int | str]]]:
    """Evaluates every task of a mixture that has the split, one after the other.

    Each result is written as soon as it is known: a line of FOLDER/results.jsonl, TensorBoard scalars
    eval/TASK/NAME, and, of tasks with metrics, FOLDER/STEP-TASK-SPLIT.jsonl with predictions.

    Args:
      model: the restored model.
      task, explain: from `open_task`.
      split: of the tasks.
      num_examples: most examples of each task; None: all.
      folder: to write to.
      batch_size: rows computed together.

    Yields:
      The name of a task with its `loss` (nats a target token), `accuracy` (share of target tokens), `tokens`, and
      what its own metric functions say; at the end the `score` of each benchmark that all tasks of are there.

    Raises:
      UserError: a split is empty or cannot be read, or a metric function failed.
      RunError: a result cannot be written.
    """
    job, rows = model.job, model.rows(batch_size)
    own_metrics = task_metrics.by_task(task, split, job, model.program, rows, explain, num_examples)
    eos = {member.name: _end(member) for member in examples.members(task, split)}
    sums_of = eval_step(model.program)
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    with contextlib.ExitStack() as ending:
        if (events := open_events(folder)) is not None:
            ending.callback(events.close)
        for name, stream in examples.evaluation_streams(
            task, split, job.feature_lengths, False, job.seed, job.use_cached_tasks, explain, num_examples
        ):
            ends: list[np.ndarray] = []
            batches = _watched(batching.eval_batches(stream, job.feature_lengths, rows, False, model.program.convert, None, (0, 1)), ends)
            placed = ({k: model.place(v) for k, v in batch.items()} for batch in batches)
            result = evaluation.teacher_forced(sums_of, model.params, placed)
            stream.close()
            if not result["tokens"]:
                raise UserError(
                    f"the split {split} of {name} has no examples",
                    "there is nothing to evaluate",
                    "choose another --split",
                )
            _say_cut(name, eos[name], np.concatenate(ends), job.feature_lengths["targets"])
            try:
                if name in own_metrics:
                    say(f"decoding {name}")
                    result |= own_metrics[name](model.params, model.step, folder)
            finally:
                # A metric function that fails loses nothing of what is known.
                _record(folder, events, {"step": model.step, "task": name, "split": split, **result})
            results[name] = result
            yield name, result
        for name, score in task_metrics.averages(results).items():
            _record(folder, events, {"step": model.step, "task": name, "split": split, "score": score})
            yield name, {"score": score}


def _watched(batches: Iterable[dict], ends: list[np.ndarray]) -> Iterator[dict]:
    """The batches; the last of the target ids of each row that is not empty is added to `ends`."""
    for batch in batches:
        ends.append(batch["decoder_target_tokens"][batch["decoder_loss_weights"][:, 0] > 0, -1])
        yield batch


def _end(member) -> int | None:
    """The id that the targets of a task end in, None where they need not or cannot do otherwise."""
    feature = None if isinstance(member, Tokens) else member.output_features["targets"]
    return feature.vocabulary.eos_id if feature is not None and feature.add_eos else None


def _say_cut(name: str, eos: int | None, ends: np.ndarray, length: int) -> None:
    """Says how many targets fill their row without an end token, where they should have one: those were cut."""
    cut = 0 if eos is None else int(np.isin(ends, (0, eos), invert=True).sum())
    if cut:
        say(
            f"{cut} of {len(ends)} targets of {name} were cut to the {length} tokens of TASK_FEATURE_LENGTHS, here and "
            "in the metrics: --gin_file=runs/eval.gin makes room for 512"
        )


def _record(folder: epath.Path, events: EventFile | None, line: dict) -> None:
    """Writes one result.

    Raises:
      RunError: it cannot be written.
    """
    try:
        append_result(folder, line)
        numbers = {k: v for k, v in line.items() if k != "step" and not isinstance(v, str)}
        if events is not None:
            events.scalars(line["step"], {f"eval/{line['task']}/{k}": v for k, v in numbers.items()})
    except OSError as error:
        raise RunError(
            f"{folder / RESULTS} could not be written: {error.strerror or error}",
            f"it holds the results of the tasks before {line['task']}",
            "make room there or name another folder with --output_dir, and evaluate again",
        ) from error
