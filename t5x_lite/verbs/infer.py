"""t5x_lite infer: complete texts with a checkpoint, or with several as one."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

from etils import epath

from t5x_lite import completion, model_dir, output, resumable
from t5x_lite.data import requests
from t5x_lite.data.buckets import until_end
from t5x_lite.data.requests import Request, Source
from t5x_lite.errors import UserError
from t5x_lite.interruption import preemptible
from t5x_lite.job import Job
from t5x_lite.model.decoding import Strategy
from t5x_lite.progress import counted, watched
from t5x_lite.train.metrics import say


def main(args) -> None:
    """The verb: prints the completion of --text, or writes a JSON line for each input."""
    strategy, seed = completion.strategy(args), args.seed or 0
    _check_flags(args)
    found = None if args.input is None else requests.survey(args.input, ("inputs",))
    output.check_file(args.output, "--output", args.input)
    task = [f"MIXTURE_OR_TASK_NAME={args.mixture_or_task}"] if args.mixture_or_task else []
    opened = model_dir.open_together(args.checkpoint, args.gin_file, [*args.gin, *task])
    directory, _, job = opened[0]
    if args.mixture_or_task:
        from t5x_lite.verbs import infer_task

        source = infer_task.source(job, args.split or "validation", args.num_examples, directory)
    elif found is not None:
        say_replaced(found, {"prediction", "score", *(["predictions"] if strategy.num_return > 1 else [])})
        source = of_records(job.vocabulary, found, found.count, str(found))
    else:
        source = of_records(job.vocabulary, [{"inputs": args.text}], 1, f"the text {args.text!r}")
    length = args.max_decode_length or job.feature_lengths["targets"]
    command = {
        "verb": "infer",
        "checkpoint": model_dir.identities(opened),
        "input": source.identity,
        "strategy": completion.label(strategy, seed),
        "longest completion": length,
        "configuration": [*args.gin_file, *args.gin],
        "content of the configuration": digest([job for _, _, job in opened], bool(args.mixture_or_task)),
    }
    with resumable.opened(args.output, command, args.overwrite) as answers, preemptible(answers.state) as check:
        if resumable.is_finished(answers):
            return
        tally = Counter()
        with model_dir.ensemble(opened) as models:
            lines = complete(models, source, strategy, length, args.batch_size, seed, answers.done, tally)
            if args.text is not None and args.output is None:
                [line] = lines
                print("\n".join(p["prediction"] for p in line.get("predictions", [line])))
            else:
                before = answers.done
                shown = watched(lines, before, source.count, "inputs", check, bar=args.output is not None)
                count = answers.write(shown)
                total = source.count if before + count == source.count else None  # a task may have fewer
                resumable.say_done("inputs completed", count, total, models)
    _say_lengths(tally, job.feature_lengths["inputs"], length, source.is_cut)


def _check_flags(args) -> None:
    for name in ("split", "num_examples", "module"):
        value = getattr(args, name)
        if value is not None and not args.mixture_or_task:
            raise UserError(
                f"--{name}={value} is given without --mixture_or_task", "it is about a task", "leave it out"
            )


def _say_lengths(tally: Counter, inputs: int, completion: int, are_cut: bool) -> None:
    long, unended = counted(tally["long"], "input"), counted(tally["unended"], "completion")
    if tally["long"] and are_cut:
        say(f"{long} of {inputs} tokens, the most that TASK_FEATURE_LENGTHS leaves: what was longer is cut")
    elif tally["long"]:
        say(f"{long} of more than the {inputs} tokens that the model was trained with: not cut")
    if tally["unended"]:
        say(f"{unended} cut off at {completion} tokens: --max_decode_length gives more")


# What decides the answers of a model, and besides what it is asked by a task.
_OF_MODEL = ("model", "partition", "feature_lengths")
_OF_TASK = (
    "mixture_or_task_name", "mixture_or_task_module", "seed", "use_cached_tasks", "mixture_maximum",
    "mixture_temperature", "mixture_unsupervised_rate", "mixture_fixed_weights",
)  # fmt: skip


def digest(jobs: Iterable[Job], with_task: bool) -> str:
    """Of what configurations, resolved, say about answers: not of how a model is trained, nor where its data lies.

    Args:
      jobs: of the models.
      with_task: the inputs are those of a task.
    """
    names = (*_OF_MODEL, *(_OF_TASK if with_task else ()))
    found = [[(name, getattr(job, name)) for name in names] + [_vocabulary(job.vocabulary)] for job in jobs]
    return f"digest {hashlib.blake2b(repr(found).encode(), digest_size=16).hexdigest()}"


def _vocabulary(name: str | None) -> str:
    from t5x_lite.tasks.codec import model_file

    path = model_file(name)
    return hashlib.blake2b(epath.Path(path).read_bytes()).hexdigest() if path else "bytes"


def say_replaced(found: requests.Requests, own: set[str]) -> None:
    """Says which fields of the input give way to those of the output."""
    if taken := sorted(own & found.names):
        say(f"the input has the field {' and '.join(taken)} already: in the output it is replaced")


def of_records(vocabulary: str | None, records: Iterable[dict], count: int | None, identity: str) -> Source:
    """Requests whose texts are encoded by a vocabulary.

    Raises:
      UserError: there is no such vocabulary.
    """
    from t5x_lite.tasks.codec import load

    codec = load(vocabulary)

    def encode(text: str) -> list[int]:
        return [*codec.encode(text), codec.eos_id]

    return Source((Request(record, encode) for record in records), count, identity, codec.decode, codec.eos_id)


def complete(
    models: model_dir.Ensemble,
    source: Source,
    strategy: Strategy,
    length: int,
    batch_size: int,
    seed: int = 0,
    done: int = 0,
    tally: Counter | None = None,
) -> Iterator[dict]:
    """Completions in the order of the requests.

    Args:
      models: the restored models.
      source: the requests.
      strategy, length, seed: see `completion.Completer`.
      batch_size: rows computed together.
      done: requests that are passed over.
      tally: counts inputs of more tokens than trained with as `long`, best completions without an end as `unended`.

    Yields:
      Each record with `prediction` and `score`, its log-probability in nats, end token included; where several are
      asked for also `predictions`, a list of the same for each, of a beam with the `ranking` that orders them.
    """
    tally = Counter() if tally is None else tally
    complete = completion.Completer(models.programs, strategy, length, source.eos, seed)
    rows = models.rows(batch_size if source.count is None else min(batch_size, source.count))
    longest = models.job.feature_lengths["inputs"] - source.is_cut
    for request, found in complete(models.params, source.requests, lambda request: request.inputs, rows, done):
        tally["long"] += len(request.inputs) > longest
        tally["unended"] += source.eos not in found.ids[0]
        predictions = [
            {"prediction": source.decode(until_end(ids, source.eos)), "score": float(score), "ranking": float(ranking)}
            for ids, score, ranking in zip(found.ids, found.scores, found.ranking)
        ]
        for prediction in predictions if strategy.method != "beam" else ():
            del prediction["ranking"]
        best = {name: predictions[0][name] for name in ("prediction", "score")}
        yield request.record | best | ({"predictions": predictions} if strategy.num_return > 1 else {})
