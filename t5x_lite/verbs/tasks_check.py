"""t5x_lite tasks check: a module's tasks on a few records, and what is wrong with them."""

import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from t5x_lite.data import examples as reading
from t5x_lite.errors import UserError
from t5x_lite.verbs import tasks
from t5x_lite.verbs.tasks_finding import Finding, Stop, warning, wrong
from t5x_lite.verbs.tasks_metrics import measure

# Rows of a training stream that are compared.
_ROWS = 2


def main(args) -> None:
    """The verb: a line for each finding and a summary of each task; it fails where anything is wrong."""
    data = tasks.load(args)
    _, own = tasks.registered(data)
    import seqio  # which is loaded by now, without its remarks on the machine

    if not own:
        raise UserError(
            f"the module {args.module} registers nothing",
            "after its import seqio knows no more tasks and mixtures than before",
            "call seqio.TaskRegistry.add or seqio.MixtureRegistry.add when it is imported",
        )
    mixtures = own & set(seqio.MixtureRegistry.names())
    members = [seqio.get_mixture_or_task(name) for name in sorted(own - mixtures)]
    tasks.check_vocabulary(data, members)
    spoilt, count = set(), 0
    for name in [*sorted(own - mixtures), *sorted(mixtures)]:
        provider = seqio.get_mixture_or_task(name)
        if name in mixtures:
            findings, summary = check_mixture(provider, data, spoilt)
        else:
            findings, summary = check_task(provider, data, args.n)
        bad = sum(finding.wrong for finding in findings)
        if bad:
            spoilt.add(name)
        count += bad
        for finding in findings:
            print(f"{name}: {'error' if finding.wrong else 'warning'}: {finding.text}")
        print(f"{name}: {'; '.join([_verdict(findings), *summary])}", flush=True)
    if count:
        raise UserError(
            f"{args.module} has {_number(count, 'error')}", "each is named above", "correct them and check again"
        )


def _verdict(findings: list[Finding]) -> str:
    bad = sum(finding.wrong for finding in findings)
    counts = {"error": bad, "warning": len(findings) - bad}
    return ", ".join(_number(count, kind) for kind, count in counts.items() if count) or "ok"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def check_task(task, data: tasks.Data, count: int) -> tuple[list[Finding], list[str]]:
    """Runs a task through source, preprocessors, packing, postprocessor and metrics.

    Args:
      task: seqio task.
      data: lengths, vocabulary and the like.
      count: records of each split that are read.

    Returns:
      What was found, and what is known of it in a few words.
    """
    findings: list[Finding] = []
    summary: list[str] = []
    try:
        findings += _features(task, data)
        if any(finding.wrong for finding in findings):
            return findings, summary
        made = {}
        for split in _splits(task, findings):
            made[split] = _examples(task, data, split, count, findings)
        summary += [f"{split} {_number(len(found), 'example')}" for split, found in made.items()]
        if made:
            summary += [_lengths(name, [len(e[name]) for es in made.values() for e in es]) for name in _SIDES]
        if "train" in made and not any(finding.wrong for finding in findings):
            findings += _stream(task, data)
        if task_examples := made.get("validation") or made.get("train"):
            summary += measure(task, task_examples, findings)
    except Stop as stop:
        findings.append(stop.finding)
    return findings, summary


_SIDES = ("inputs", "targets")


def _lengths(name: str, sizes: list[int]) -> str:
    return f"{name} {min(sizes)} to {max(sizes)} tokens"


def _features(task, data: tasks.Data) -> Iterator[Finding]:
    """What can be said of the feature map alone."""
    for name in _SIDES:
        feature = task.output_features.get(name)
        if feature is None:
            yield wrong(
                f"there is no feature {name}",
                f"an encoder-decoder reads inputs and targets, and this task has {', '.join(task.output_features)}",
                "name it in output_features",
            )
            continue
        if not feature.dtype.is_integer or feature.rank != 1:
            yield wrong(
                f"the feature {name} is {feature.dtype.name} of rank {feature.rank}",
                "a model reads a list of token ids",
                "leave dtype and rank of seqio.Feature out",
            )
        if not getattr(feature, "add_eos", False):
            found = wrong if name == "targets" else warning
            yield found(
                f"the feature {name} is made with add_eos=False",
                "no example ends with the end token, by which a model learns to stop"
                if name == "targets"
                else "T5's inputs end with the end token",
                "use seqio.Feature(..., add_eos=True)",
            )
        table = data.model and data.model.vocab_size
        if table and feature.vocabulary.vocab_size > table:
            yield wrong(
                f"the vocabulary of {name} has {feature.vocabulary.vocab_size} ids, the model's table {table} rows",
                "ids past the table would be read as its last row",
                "use the model's own vocabulary, or set --gin.architecture.Architecture.vocab_size",
            )


def _splits(task, findings: list[Finding]) -> list[str]:
    """The splits that are checked."""
    try:
        known = list(task.splits)
    except Exception as error:
        # TFDS has a dozen ways to say that it does not find a data set whose splits are not named.
        raise Stop(
            wrong("the splits cannot be told", tasks.reason(error), "name them in the source: splits=")
        ) from error
    for split, found, purpose in (("train", wrong, "to train on"), ("validation", warning, "to evaluate on")):
        if split not in known:
            findings.append(
                found(f"there is no split {split}", f"it is there {purpose}; there is {', '.join(known)}", "add one")
            )
    return [split for split in ("train", "validation") if split in known]


def _examples(task, data: tasks.Data, split: str, count: int, findings: list[Finding]) -> list[dict]:
    """The examples of the first records of a split, looked through."""
    import seqio

    try:
        if isinstance(task.source, seqio.TfdsDataSource):
            tasks.prepare(data, task.name)  # says what is not there
        raw = task.source.get_dataset(split=split, shuffle=False, seed=data.seed)
        records = list(raw.take(count))
    except Exception as error:
        raise Stop(_source_fails(task, split, error)) from error
    if not records:
        raise Stop(
            wrong(f"the split {split} has no examples", "its source gives no record", "correct the source of the task")
        )
    given = list(records)
    try:
        dataset = tasks.over(task, given, raw.element_spec, data.feature_lengths, split, data.seed)
        made = _read(dataset)
    except Exception as error:
        raise Stop(_preprocessor_fails(task, data, records, raw.element_spec, error)) from error
    if not made:
        raise Stop(
            wrong(
                f"{_number(len(records), 'record')} of the split {split} give no example",
                "the preprocessors leave all of them out",
                "correct their filters, or look at more records with --n",
            )
        )
    whole = _untrimmed(task, data, given, raw.element_spec, split)
    if whole is None or len(whole) != len(made):
        whole = made  # an objective cuts text to the lengths on purpose
    findings += _trimmed(whole, data.feature_lengths, split)
    findings += _tokens(task, data, whole, split)
    return made


def _read(dataset) -> list[dict]:
    import tensorflow_datasets as tfds

    return list(tfds.as_numpy(dataset))


def _untrimmed(task, data: tasks.Data, records: list, spec, split: str) -> list[dict] | None:
    try:
        return _read(tasks.over(task, records, spec, None, split, data.seed))
    except Exception:
        return None  # a preprocessor that needs the lengths


def _source_fails(task, split: str, error: Exception) -> Finding:
    from t5x_lite.tasks import sources

    if known := error if isinstance(error, UserError) else sources.explain(error):
        return Finding(str(known))
    reason = tasks.reason(error)
    if "must have initial args" in reason and "'seed')" in reason:
        return wrong(
            "the function of the source takes no seed",
            "training gives it one",
            "add the argument: def function(split, shuffle_files, seed=None)",
        )
    return wrong(f"the split {split} cannot be read", reason, "correct the source of the task")


def _preprocessor_fails(task, data: tasks.Data, records: list, spec, error: Exception) -> Finding:
    """Which preprocessor fails, and on which record."""
    import seqio

    from t5x_lite.tasks import sources

    if known := error if isinstance(error, UserError) else sources.explain(error):
        return Finding(str(known))
    reason = tasks.reason(error)
    if missing := re.search(r"missing expected output feature after preprocessing: (\w+)", reason):
        return wrong(
            f"the preprocessors give no {missing[1]}",
            "output_features names it, and the examples lack it",
            f"let a preprocessor make it, or rename what is there to {missing[1]} with seqio.preprocessors.rekey",
        )
    if unlike := re.search(r"incorrect (type|rank) for feature '(\w+)' after preprocessing: (.*)", reason):
        return wrong(
            f"the preprocessors give {unlike[2]} of a wrong {unlike[1]}",
            unlike[3],
            "put seqio.preprocessors.tokenize among the preprocessors, or correct the seqio.Feature",
        )
    for record in [None, *records]:
        for k, function in enumerate(task.preprocessors):
            name = seqio.utils.function_name(function)
            try:
                _read_through(task, data, task.preprocessors[: k + 1], [] if record is None else [record], spec)
            except Exception as failed:
                if record is None:  # it fails before any record
                    return wrong(f"the preprocessor {name} fails", tasks.reason(failed), "correct it")
                return wrong(
                    f"the preprocessor {name} fails on the record {tasks.short(record)}",
                    tasks.reason(failed),
                    "correct it, or the record",
                )
    return wrong("the preprocessors fail", reason, "correct them")


def _read_through(task, data: tasks.Data, preprocessors: Iterable, records: list, spec) -> None:
    """Passes records through some of the task's preprocessors."""
    import seqio
    import tensorflow as tf

    dataset = tf.data.Dataset.from_generator(lambda: iter(records), output_signature=spec)
    with seqio.map_seed_manager(data.seed):
        for function in preprocessors:
            function = seqio.utils.add_kwargs_to_transform(
                function, sequence_length=data.feature_lengths, output_features=task.output_features
            )
            dataset = function(dataset)
    for _ in dataset:
        pass


def _trimmed(examples: list[dict], lengths: Mapping[str, int], split: str) -> Iterator[Finding]:
    for name, length in lengths.items():
        sizes = [len(example[name]) for example in examples]
        if long := sum(size > length for size in sizes):
            yield warning(
                f"{long / len(sizes):.0%} of the {name} of the split {split} are cut to {length} tokens",
                f"of {len(sizes)} examples {long} have more, up to {max(sizes)}",
                "raise --gin.TASK_FEATURE_LENGTHS where that matters",
            )


def _tokens(task, data: tasks.Data, examples: list[dict], split: str) -> Iterator[Finding]:
    """What is wrong with the tokens of examples."""
    for name in _SIDES:
        vocabulary = task.output_features[name].vocabulary
        rows = [example[name] for example in examples]
        outside = [int(i) for row in rows for i in row if not 0 <= i < vocabulary.vocab_size]
        if outside:
            yield wrong(
                f"the {name} of the split {split} have the token {outside[0]}",
                f"the vocabulary has the ids 0 to {vocabulary.vocab_size - 1}",
                "encode with the vocabulary of output_features, as seqio.preprocessors.tokenize does",
            )
        padded = sum(bool((np.asarray(row) == vocabulary.pad_id).any()) for row in rows)
        if padded:
            yield warning(
                f"{padded} of {len(rows)} {name} of the split {split} hold the padding id {vocabulary.pad_id}",
                "rows are filled up later; inside an example padding is learned like a word",
                "leave it out, unless it means something",
            )
        endless = sum(not len(row) or row[-1] != vocabulary.eos_id for row in rows)
        if task.output_features[name].add_eos and endless:
            yield wrong(
                f"{endless} of {len(rows)} {name} of the split {split} do not end with the end token",
                "output_features asks for it, and a model learns by it to stop",
                "put seqio.preprocessors.append_eos_after_trim last among the preprocessors",
            )
    empty = [k for k, e in enumerate(examples) if not set(e["targets"].tolist()) - {0, vocabulary.eos_id}]
    if empty:
        inputs = task.output_features["inputs"].vocabulary.decode(examples[empty[0]]["inputs"].tolist())
        yield wrong(
            f"{len(empty)} of {len(examples)} targets of the split {split} are empty",
            f"there is nothing to learn from them, as with the inputs {tasks.short(inputs)}",
            "leave such records out with a filter, or correct them",
        )


def _stream(task, data: tasks.Data) -> Iterator[Finding]:
    """Whether two passes of training see the same rows, and one that goes on from a saved position."""
    from t5x_lite.tasks import sources

    task = tasks.uncached(task)
    opened = []

    def stream():
        streams = reading.train_streams(
            task, [0], 1, data.feature_lengths, data.pack, data.seed, False, sources.explain
        )
        opened.append(streams[0])
        return streams[0]

    try:
        first, second = stream(), stream()
        if _rows(first) != _rows(second):
            yield wrong(
                "two passes with one seed give other examples",
                "something draws numbers that do not come from the seed, so no run could be repeated",
                "draw with tf.random.stateless_* from the seed of seqio.map_over_dataset, and shuffle with the seed",
            )
            return
        position, later, third = first.position(), _rows(first), stream()
        third.restore(position)
        if _rows(third) != later:
            yield wrong(
                "a pass that goes on from a saved position gives other examples",
                "something keeps a state that is not saved, so no run could be resumed exactly",
                "let the source and the preprocessors depend on their record and seed alone",
            )
    except UserError as error:
        yield Finding(str(error))
    except Exception as error:
        # Whatever the user's functions raise, or TensorFlow, which cannot save the state of a Python generator.
        yield wrong(
            "the training split cannot be streamed and saved",
            tasks.reason(error),
            "read files with seqio.TextLineDataSource or t5x_lite.tasks.sources, and call Python with "
            "t5x_lite.tasks.in_python: their positions can be saved",
        )
    finally:
        for each in opened:
            each.close()


def _rows(stream) -> list:
    return [[{name: ids.tolist() for name, ids in e.items()} for e in row] for row in stream.take(_ROWS)]


def check_mixture(mixture, data: tasks.Data, spoilt: set[str]) -> tuple[list[Finding], list[str]]:
    """Looks at the rates of a mixture and at whether its tasks go together; `spoilt` are those with errors."""
    summary = [_number(len(mixture.tasks), "task")]
    findings = []
    try:
        rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    except Exception as error:
        # Whatever a rate function of the user's own raises.
        return [
            wrong("its rates cannot be told", tasks.reason(error), "give each task a number, or correct the function")
        ], summary
    if negative := [name for name, rate in rates.items() if not rate >= 0]:
        findings.append(wrong(f"{negative[0]} has the rate {rates[negative[0]]}", "rates are positive", "correct it"))
    elif not sum(rates.values()):
        findings.append(wrong("all its rates are 0", "nothing would be drawn", "give a task a rate above 0"))
    else:
        findings += [
            warning(
                f"{name} has the rate 0", "it is evaluated, and never trained on", "give it a rate above 0 or leave it"
            )
            for name, rate in rates.items()
            if not rate
        ]
        if not spoilt & set(rates):
            findings += _together(mixture, data)
    if bad := sorted(spoilt & set(rates)):
        summary.append(f"not tried, for the errors of {', '.join(bad)}")
    return findings, summary


def _together(mixture, data: tasks.Data) -> Iterator[Finding]:
    try:
        mixture.get_dataset(dict(data.feature_lengths), split="train", shuffle=False, seed=data.seed)
    except Exception as error:
        yield wrong(
            "its tasks do not go together",
            tasks.reason(error),
            "give all of them the same output_features",
        )
