"""t5x_lite eval: teacher-forced loss and accuracy, and the metrics of each task over decoded outputs."""

import dataclasses
import json
from collections.abc import Iterable
from functools import partial

import jax
import numpy as np
from etils import epath

from t5x_lite import model_dir
from t5x_lite.data import batches as batching
from t5x_lite.data import examples
from t5x_lite.data.requests import grouped, inputs_batch, pairs_batch
from t5x_lite.errors import UserError
from t5x_lite.program import eval_step, greedy_step, score_step
from t5x_lite.train import evaluation
from t5x_lite.train.metrics import append_result, say
from t5x_lite.verbs.train import open_task


def main(args) -> None:
    """The verb: a table on stdout, lines in eval/results.jsonl, predictions in eval/."""
    with model_dir.restored(args.checkpoint, args.gin_file, args.gin) as model:
        if args.mixture_or_task:
            job = dataclasses.replace(model.job, mixture_or_task_name=args.mixture_or_task)
            model = dataclasses.replace(model, job=job)
        output = epath.Path(args.output_dir or model.directory / "eval")
        results = evaluate(model, args.split, args.num_examples, output, args.batch_size)
    for name, result in results.items():
        shown = "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items())
        print(f"{name}  step {model.step}  {shown}")


def evaluate(
    model: model_dir.Restored, split: str, num_examples: int | None, output: epath.Path, batch_size: int
) -> dict[str, dict[str, float]]:
    """Evaluates every task of the job's mixture that has the split.

    Args:
      model: the restored model.
      split: of the tasks.
      num_examples: most examples of each task; None: all.
      output: folder for results.jsonl and, of tasks with metrics, STEP-TASK-SPLIT.jsonl with predictions.
      batch_size: rows computed together.

    Returns:
      For each task its `loss` (nats a target token), `accuracy` (share of target tokens), `tokens`, and
      what its own metric functions say.

    Raises:
      UserError: no task has the split, or it is empty.
    """
    job = model.job
    task, explain = open_task(job)
    if not examples.members(task, split):
        raise UserError(
            f"--split={split} is in no task of {job.mixture_or_task_name}",
            f"it has {', '.join(sorted({s for t in examples.members(task, None) for s in t.splits}))}",
            "choose one with --split",
        )
    sums_of, rows = eval_step(model.program), model.rows(batch_size)
    own_metrics = task_metrics(model, task, split, num_examples, output, rows)
    results = {}
    for name, stream in examples.evaluation_streams(
        task, split, job.feature_lengths, False, job.seed, job.use_cached_tasks, explain, num_examples
    ):
        features = batching.eval_batches(stream, job.feature_lengths, rows, False, None, (0, 1))
        placed = ({k: model.place(v) for k, v in batch.items()} for batch in features)
        result = evaluation.teacher_forced(sums_of, model.params, placed)
        if not result["tokens"]:
            raise UserError(
                f"the split {split} of {name} has no examples", "there is nothing to evaluate", "choose another --split"
            )
        results[name] = result | own_metrics.get(name, {})
        append_result(output, {"step": model.step, "task": name, "split": split, **results[name]})
    return results


def task_metrics(
    model: model_dir.Restored, task, split: str, num_examples: int | None, output: epath.Path, rows: int
) -> dict[str, dict[str, float]]:
    """The seqio metrics of each task that has any, by seqio's own Evaluator."""
    import seqio

    job = model.job
    with_metrics = [t for t in examples.members(task, split) if t.metric_objs]
    if not with_metrics:
        return {}
    found: dict[str, dict[str, float]] = {}
    for member in with_metrics:
        say(f"decoding {member.name}")
        evaluator = seqio.Evaluator(
            member.name,
            feature_converter=seqio.EncDecFeatureConverter(pack=False),
            eval_split=split,
            use_cached=job.use_cached_tasks,
            seed=job.seed,
            sequence_length=dict(job.feature_lengths),
            num_examples=num_examples,
            logger_cls=(),
        )
        metrics, outputs = evaluator.evaluate(
            compute_metrics=True,
            step=model.step,
            predict_fn=partial(_predict, model, member, rows),
            score_fn=partial(_score, model, rows),
        )
        found[member.name] = {k: float(v) for k, v in metrics.result()[member.name].items() if np.ndim(v) == 0}
        _write_predictions(
            output / f"{model.step}-{member.name}-{split}.jsonl", member, evaluator, outputs[member.name]
        )
    return found


def _predict(model: model_dir.Restored, member, rows: int, dataset) -> list[tuple[int, list[int]]]:
    """(index, ids) of each example, in order: of one length, as seqio wants them, which cuts them at the end token."""
    vocabulary = member.output_features["targets"].vocabulary
    decode = greedy_step(model.program, model.job.feature_lengths["targets"], vocabulary.eos_id)
    results = []
    for group in grouped(_examples(dataset), rows):
        tokens = inputs_batch([_unpadded(e["encoder_input_tokens"]) for _, e in group], rows)
        ids = jax.device_get(decode(model.params, model.place(tokens))[0])
        results += [(index, row.tolist()) for (index, _), row in zip(group, ids)]
    return results


def _score(model: model_dir.Restored, rows: int, dataset) -> list[tuple[int, float]]:
    """(index, log-probability of the targets) of each example, in order."""
    score, results = score_step(model.program), []
    for group in grouped(_examples(dataset), rows):
        pairs = [(_unpadded(e["encoder_input_tokens"]), _unpadded(e["decoder_target_tokens"])) for _, e in group]
        batch = {name: model.place(array) for name, array in pairs_batch(pairs, rows).items()}
        log_probabilities, _ = jax.device_get(score(model.params, batch))
        results += [(index, float(row.sum())) for (index, _), row in zip(group, log_probabilities)]
    return results


def _examples(dataset) -> Iterable[tuple[int, dict]]:
    return ((int(index), example) for index, example in dataset.as_numpy_iterator())


def _unpadded(ids: np.ndarray) -> np.ndarray:
    """Ids without the padding behind the last token."""
    kept = np.flatnonzero(ids)
    return ids[: kept[-1] + 1 if len(kept) else 1]


def _write_predictions(path: epath.Path, member, evaluator, outputs: dict) -> None:
    """A line for each example: its inputs and targets as text, and what the model gave."""
    features = member.output_features
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for index, example in enumerate(evaluator.cached_task_datasets[member.name].as_numpy_iterator()):
            line = {name: features[name].vocabulary.decode(example[name].tolist()) for name in ("inputs", "targets")}
            for kind, values in outputs.items():
                value = values[index]
                name = kind.name.lower()
                line[name] = (
                    features["targets"].vocabulary.decode(list(value)) if name == "prediction" else float(value)
                )
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
