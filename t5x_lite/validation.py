"""Evaluation while a job trains: loss, accuracy and the tasks' own metrics on the validation split."""

import itertools
from collections.abc import Callable, Sequence

from etils import epath

from t5x_lite import task_metrics
from t5x_lite.data import batches as batching
from t5x_lite.data import examples
from t5x_lite.job import Job
from t5x_lite.parallel import hosts
from t5x_lite.program import Program, eval_step
from t5x_lite.train import evaluation
from t5x_lite.train.metrics import RESULTS, MetricsWriter, append_result, read_jsonl, say

_SPLIT = "validation"


def check(job: Job, task) -> None:
    """Raises what is wrong with the validation split before it is due, and says where there is none."""
    if not job.eval_period:
        return
    if members := examples.members(task, _SPLIT):
        examples.check_split(task, _SPLIT, job.use_cached_tasks)
        for member in members:
            task_metrics.check(member)
    else:
        say(f"t5x_lite: {job.mixture_or_task_name} has no validation split: nothing is evaluated during training")


def is_missing(job: Job, task, step: int) -> bool:
    """Whether the evaluation that was due last, at or before a step that a run goes on from, was cut off."""
    if not job.eval_period:
        return False
    due = step if step == job.train_steps else step // job.eval_period * job.eval_period
    results = read_jsonl(epath.Path(job.model_dir) / "eval" / RESULTS)
    done = {r["task"] for r in results if due <= r["step"] <= step and r["split"] == _SPLIT and "loss" in r}
    return 0 < due and not done.issuperset(member.name for member in examples.members(task, _SPLIT))


def evaluator(
    job: Job,
    program: Program,
    task,
    explain,
    writer: MetricsWriter,
    place: Callable,
    rows: Sequence[int],
    stopped: Callable[[], bool],
) -> Callable[[dict, int], bool]:
    """A function of parameters and their step that writes to the terminal, eval/ and TensorBoard.

    It returns whether it was finished: a run that is asked to stop leaves it, and then nothing is written. The
    metric functions of tasks see as many examples as the loss. All hosts call it, and the first one writes.

    Args:
      job: what to evaluate on, and for how many batches.
      program: the job laid out.
      task: seqio task or mixture.
      explain: turns an error of the data into a UserError, or returns None.
      writer: of TensorBoard events.
      place: puts this host's rows onto the devices.
      rows: the numbers of this host's rows in a batch.
      stopped: whether the run has been asked to stop, the same on all hosts, which ask in the same order.
    """
    sums_of, folder = eval_step(program), epath.Path(job.model_dir) / "eval"
    own_metrics = {}
    if job.eval_period:
        count = job.eval_batches * job.batch_size
        own_metrics = task_metrics.by_task(task, _SPLIT, job, (program,), job.batch_size, explain, count)

    def results_of(params: dict, step: int):
        for name, stream in examples.evaluation_streams(
            task, _SPLIT, job.feature_lengths, job.pack, job.seed, job.use_cached_tasks, explain
        ):
            batches = batching.eval_batches(
                stream, job.feature_lengths, job.batch_size, job.pack, program.convert, job.eval_batches, rows
            )
            batches = itertools.takewhile(lambda _: not stopped(), batches)
            result = evaluation.teacher_forced(sums_of, params, map(place, batches))
            stream.close()
            if stopped():
                raise task_metrics.Stopped
            if name in own_metrics:
                result |= own_metrics[name]((params,), step, folder, stopped)
            yield name, result

    def evaluate(params: dict, step: int) -> bool:
        try:
            results = list(results_of(params, step))
        except task_metrics.Stopped:
            return False
        for name, result in results if hosts.is_first() else ():
            if not result["tokens"]:
                say(f"step {step}  eval {name}: its validation split is empty")
                continue
            append_result(folder, {"step": step, "task": name, "split": _SPLIT, **result})
            writer.scalars(step, {f"eval/{name}/{k}": v for k, v in result.items() if not isinstance(v, str)})
            say(f"step {step}  eval {name}: {_shown(result)}")
        for name, score in task_metrics.averages(dict(results)).items() if hosts.is_first() else ():
            append_result(folder, {"step": step, "task": name, "split": _SPLIT, "score": score})
            writer.scalars(step, {f"eval/{name}/score": score})
            say(f"step {step}  eval {name}: {score:.3f}")
        return True

    return evaluate


def _shown(result: dict) -> str:
    """The numbers but for the count of tokens."""
    return "  ".join(f"{k} {v:.3f}" for k, v in result.items() if isinstance(v, float))
