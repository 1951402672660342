"""t5x_lite score: log-probabilities of given targets, by a checkpoint or by several as one."""

from collections import Counter
from collections.abc import Iterator

from t5x_lite import model_dir, output, resumable
from t5x_lite.completion import Scorer
from t5x_lite.data import requests
from t5x_lite.data.requests import Source
from t5x_lite.interruption import preemptible
from t5x_lite.progress import counted, watched
from t5x_lite.train.metrics import say
from t5x_lite.verbs.infer import digest, of_records, say_replaced


def main(args) -> None:
    """The verb: writes a JSON line for each line of --input."""
    found = requests.survey(args.input, ("inputs", "targets"))
    say_replaced(found, {"score", "tokens"})
    output.check_file(args.output, "--output", args.input)
    opened = model_dir.open_together(args.checkpoint, args.gin_file, args.gin)
    job = opened[0][2]
    source = of_records(job.vocabulary, found, found.count, str(found))
    command = {
        "verb": "score",
        "checkpoint": model_dir.identities(opened),
        "input": source.identity,
        "configuration": [*args.gin_file, *args.gin],
        "content of the configuration": digest([job for _, _, job in opened], with_task=False),
    }
    with resumable.opened(args.output, command, args.overwrite) as answers, preemptible(answers.state) as check:
        if resumable.is_finished(answers):
            return
        tally = Counter()
        with model_dir.ensemble(opened) as models:
            lines = scored(models, source, args.batch_size, answers.done, tally)
            shown = watched(lines, answers.done, source.count, "targets", check, bar=args.output is not None)
            resumable.say_done("targets scored", answers.write(shown), source.count, models)
    for name, length in job.feature_lengths.items():
        if tally[name]:
            long = counted(tally[name], name.removesuffix("s"))
            say(f"{long} of more than the {length} tokens that the model was trained with: not cut")


def scored(
    models: model_dir.Ensemble, source: Source, batch_size: int, done: int = 0, tally: Counter | None = None
) -> Iterator[dict]:
    """Each record with `score`, its targets' log-probability in nats, end token included, and their `tokens`.

    Inputs and targets count whole, however long the model was trained with: unlike `eval`, which cuts both to
    TASK_FEATURE_LENGTHS.

    Args:
      models: the restored models.
      source: the requests, which have targets.
      batch_size: rows computed together.
      done: requests that are passed over.
      tally: counts `inputs` and `targets` of more tokens than trained with.
    """
    tally = Counter() if tally is None else tally
    score = Scorer(models.programs)
    rows = models.rows(batch_size if source.count is None else min(batch_size, source.count))
    for request, found in score(models.params, source.requests, lambda r: (r.inputs, r.targets), rows, done):
        for name, length in models.job.feature_lengths.items():
            tally[name] += len(getattr(request, name)) > length
        yield request.record | {"score": found, "tokens": len(request.targets)}
