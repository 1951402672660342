"""t5x_lite tasks show: raw records, and the inputs, targets and tokens that a task makes of them."""

import itertools
import json
import os
import re
import sys
from collections.abc import Iterator

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.verbs import tasks

# Records in which n examples are looked for one by one.
_RECORDS = 20

# Records that an objective gets together: it runs 128 documents into one another.
_TOGETHER = 256

# Characters of one field of a record.
_LONGEST = 1000

_SENTINEL = re.compile(r"<extra_id_(\d+)>")
_AROUND_SENTINELS = re.compile(r"(<extra_id_\d+>)")


def main(args) -> None:
    """The verb: prints n examples of a task, or of the tasks of a mixture in its proportions."""
    data = tasks.load(args)
    name = args.name or data.mixture_or_task_name
    if name is None:
        raise UserError(
            "no task is named",
            "neither the command nor a gin file says which to show",
            "write `t5x_lite tasks show NAME`, or give a --gin_file that sets MIXTURE_OR_TASK_NAME",
        )
    provider = tasks.opened(data, name)
    seed = data.seed if args.seed is None else args.seed
    members = chosen(provider, args.split, args.n, seed)
    tasks.check_vocabulary(data, [task for task, _ in members])
    for task, count in members:
        print(f"{task.name}, {args.split}: {tasks.place_of(task.source, args.split, data.data_dir)}")
        for line in shown(task, data, args.split, count, seed, shuffle=args.seed is not None):
            print(line)


def chosen(provider, split: str, count: int, seed: int) -> list[tuple]:
    """(task, how many examples) of the task, or of tasks of the mixture drawn by its rates.

    Raises:
      UserError: no task has the split.
    """
    import seqio

    members = seqio.get_subtasks(provider)
    having = [task for task in members if split in task.splits]
    if not having:
        known = sorted({s for task in members for s in task.splits})
        raise UserError(
            f"--split={split} is no split of {provider.name}", f"it has {', '.join(known)}", "choose one with --split"
        )
    if not isinstance(provider, seqio.Mixture):
        return [(provider, count)]
    rates = np.array([provider.get_rate(task) for task in having], float)
    # Tasks that are only evaluated have the rate 0.
    rates = rates if rates.sum() else np.ones(len(having))
    counts = np.random.default_rng(seed).multinomial(count, rates / rates.sum())
    return [(task, int(n)) for task, n in zip(having, counts) if n]


def shown(task, data: tasks.Data, split: str, count: int, seed: int, shuffle: bool) -> Iterator[str]:
    """The lines of `count` examples: each below its record where a record makes its examples alone.

    Raises:
      UserError: the data cannot be read, or makes no examples.
    """
    try:
        if data.use_cached_tasks and task.cache_dir:
            yield from _shown_from_cache(task, data, split, count, seed, shuffle)
        else:
            yield from _shown_from_source(task, data, split, count, seed, shuffle)
    except UserError:
        raise
    except Exception as error:
        from t5x_lite.tasks import sources

        # Whatever the functions of a task raise, in Python or inside tf.data.
        raise sources.explain(error) or UserError(
            f"{task.name} cannot make its examples",
            tasks.reason(error),
            "`t5x_lite tasks check MODULE` says which function fails, and on which record",
        ) from error


def _shown_from_cache(task, data: tasks.Data, split: str, count: int, seed: int, shuffle: bool) -> Iterator[str]:
    yield f"\nread from the cache {task.cache_dir}, which holds no raw records"
    dataset = task.get_dataset(data.feature_lengths, split=split, use_cached=True, shuffle=shuffle, seed=seed)
    for number, example in enumerate(_read(dataset.take(count)), start=1):
        yield from _example(task, data, number, example)


def _shown_from_source(task, data: tasks.Data, split: str, count: int, seed: int, shuffle: bool) -> Iterator[str]:
    raw = task.source.get_dataset(split=split, shuffle=shuffle, seed=seed if shuffle else None)
    stream = iter(raw.take(_TOGETHER))
    given: list = []
    examples = tasks.over(task, given, raw.element_spec, data.feature_lengths, split, seed)

    def of(records: list) -> list[dict]:
        given[:] = records
        return _read(examples.take(count))

    # Two at least: one document alone does not show what an objective does with many.
    records = list(itertools.islice(stream, max(count, 2)))
    if not records:
        raise UserError(
            f"the split {split} of {task.name} has no records", "its source gives none", "choose another --split"
        )
    alone = [of([record]) for record in records]
    if _tokens(itertools.chain(*alone))[:count] != _tokens(of(records)):
        for number, record in enumerate(records[:count], start=1):
            yield from _record(number, record)
        records += stream
        yield f"\n{len(records)} records make these examples together"
        for number, example in enumerate(of(records), start=1):
            yield from _example(task, data, number, example)
        return
    # Some records may give no example.
    more = itertools.islice(stream, max(0, _RECORDS - len(records)))
    pairs = itertools.chain(zip(records, alone), ((record, of([record])) for record in more))
    shown = 0
    for number, (record, made) in enumerate(pairs, start=1):
        yield from _record(number, record)
        if not made:
            yield "  (it gives no example)"
        for example in made[: count - shown]:
            shown += 1
            yield from _example(task, data, shown, example)
        if shown == count:
            return


def _read(dataset) -> list[dict]:
    import tensorflow_datasets as tfds

    return list(tfds.as_numpy(dataset))


def _tokens(examples) -> list:
    return [[np.asarray(example[name]).tolist() for name in _coded(example)] for example in examples]


def _coded(example) -> list[str]:
    """The features that are tokens: inputs and targets, or what a model takes where a task makes that itself."""
    return [name for name in ("inputs", "targets") if name in example] or [n for n in example if n.endswith("_tokens")]


def _record(number: int, record) -> Iterator[str]:
    yield f"\nrecord {number}"
    fields = tasks.plain(record)
    if not isinstance(fields, dict):
        yield f"  {_bounded(fields)}"
        return
    for name, value in _flat(fields):
        yield f"  {name}: {_bounded(value)}"


def _bounded(value) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:_LONGEST] + (f"… ({len(text):,} characters)" if len(text) > _LONGEST else "")


def _flat(fields: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _example(task, data: tasks.Data, number: int, example: dict) -> Iterator[str]:
    """Text of inputs and targets, then their tokens as id:piece. What else a model takes is numbers."""
    yield f"\nexample {number}"
    coded = {name: (_vocabulary(task, data, name), example[name].tolist()) for name in _coded(example)}
    for name, (vocabulary, ids) in coded.items():
        parts = _AROUND_SENTINELS.split(text(vocabulary, ids))
        yield f"  {name}: {''.join(coloured(parts, name == 'targets'))}"
    for name, (vocabulary, ids) in coded.items():
        parts = [f"{i}:{piece}" for i, piece in zip(ids, pieces(vocabulary, ids))]
        yield f"  {name} in {len(ids)} tokens: {' '.join(coloured(parts, name == 'targets'))}"
    for name in task.output_features:
        if name in example and name not in coded:
            yield f"  {name}: {' '.join(map(str, example[name].tolist()))}"


def _vocabulary(task, data: tasks.Data, name: str):
    from t5x_lite.tasks import vocabulary

    found = task.output_features[name].vocabulary
    return vocabulary.load(data.vocabulary) if found is vocabulary.chosen() else found


def text(vocabulary, ids: list[int]) -> str:
    """Ids as text with sentinels as <extra_id_0>, ..."""
    import seqio

    from t5x_lite.tasks import codec

    # seqio decodes the sentinels of bytes to nothing.
    return codec.load("bytes").decode(ids) if isinstance(vocabulary, seqio.ByteVocabulary) else vocabulary.decode(ids)


def pieces(vocabulary, ids: list[int]) -> list[str]:
    """What each id stands for in the vocabulary."""
    import seqio

    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        model = vocabulary.tokenizer
        return [model.id_to_piece(i) if i < model.get_piece_size() else "?" for i in ids]
    if isinstance(vocabulary, seqio.ByteVocabulary):
        special = ("<pad>", "</s>", "<unk>")
        return [special[i] if i < 3 else chr(i - 3) if 35 < i < 130 else f"<{i - 3:02X}>" for i in ids]
    return [str(vocabulary.decode([i])) for i in ids]


def coloured(parts: list[str], spans: bool) -> Iterator[str]:
    """The parts of a text, on a terminal a sentinel and, in targets, the span behind it in one of six colours.

    Args:
      parts: of a text, each sentinel by itself.
      spans: whether what follows a sentinel belongs to it.
    """
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR")
    number = None
    for part in parts:
        sentinel = _SENTINEL.search(part)
        number = int(sentinel[1]) if sentinel else number if spans else None
        yield part if plain or number is None else f"\x1b[{31 + number % 6}m{part}\x1b[0m"
