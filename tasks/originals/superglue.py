"""SuperGLUE as super.gluebenchmark.com publishes it: a folder of JSON files, an object a line, for each task.

Names, types and label ids are those of TFDS (text/super_glue.py). Test files have no labels, which are read as -1.
"""

import functools
from collections.abc import Callable

from t5x_lite.tasks.originals.reading import (
    LABEL,
    NUMBER,
    TEXT,
    TEXTS,
    DataSet,
    Files,
    Format,
    Record,
    field,
    json_object,
    label_id,
    lines,
)

_URL = "https://dl.fbaipublicfiles.com/glue/superglue/data/v2/"
_BOOLEAN = ("False", "True")
_ENTAILMENT = ("entailment", "not_entailment")
# Subjects with other words between them in the text: no span of the text is them.
_APART = ("Kamenev and Zinoviev", "Kamenev, Zinoviev, and Stalin")


def _label(row: Record, names: tuple[str, ...], secret: bool) -> int:
    if "label" not in row and secret:
        return -1
    return label_id(field(row, "label", str | int | bool), names, secret)


def _plain(row: Record, *, kinds: dict[str, type], names: tuple[str, ...], secret: bool) -> list[Record]:
    """A record whose features are fields of the object."""
    return [
        {
            **{name: field(row, name, kind) for name, kind in kinds.items()},
            "label": _label(row, names, secret),
            "idx": field(row, "idx", int),
        }
    ]


def _multirc(row: Record, *, secret: bool) -> list[Record]:
    """A record for each answer of each question of a passage."""
    passage, index = field(row, "passage", dict), field(row, "idx", int)
    return [
        {
            "paragraph": field(passage, "text", str),
            "question": field(question, "question", str),
            "answer": field(answer, "text", str),
            "label": _label(answer, _BOOLEAN, secret),
            "idx": {"paragraph": index, "question": field(question, "idx", int), "answer": field(answer, "idx", int)},
        }
        for question in field(passage, "questions", list)
        for answer in field(question, "answers", list)
    ]


def _record(row: Record, *, secret: bool) -> list[Record]:
    """A record for each query of a passage. Entities and answers are sorted, each once."""
    passage, index = field(row, "passage", dict), field(row, "idx", int)
    text = field(passage, "text", str)
    entities = {_entity(text, entity) for entity in field(passage, "entities", list)}

    def answers(query: Record) -> set[str]:
        if "answers" not in query and secret:
            return set()
        found = {field(answer, "text", str) for answer in field(query, "answers", list)}
        if not found and not secret:
            raise ValueError("one of its queries has no answers: only files of a test split have such ones")
        return found

    return [
        {
            "passage": text,
            "query": field(query, "query", str),
            "entities": sorted(entities),
            "answers": sorted(answers(query)),
            "idx": {"passage": index, "query": field(query, "idx", int)},
        }
        for query in field(row, "qas", list)
    ]


def _entity(text: str, entity: Record) -> str:
    start, end = field(entity, "start", int), field(entity, "end", int)
    if not 0 <= start <= end or not text[start : end + 1]:
        raise ValueError(f"it has an entity from {start} to {end}, and its text has {len(text)} characters")
    return text[start : end + 1]


def _wsc(row: Record, *, repaired: bool, names: tuple[str, ...], secret: bool) -> list[Record]:
    target = field(row, "target", dict)
    record = {
        "text": field(row, "text", str),
        "span1_index": field(target, "span1_index", int),
        "span2_index": field(target, "span2_index", int),
        "span1_text": field(target, "span1_text", str),
        "span2_text": field(target, "span2_text", str),
    }
    if repaired:
        for span in ("span1", "span2"):
            _repair(record, span)
    return [{**record, "label": _label(row, names, secret), "idx": field(row, "idx", int)}]


def _repair(record: Record, span: str) -> None:
    """Makes a span a part of the text, as TFDS's wsc.fixed does: letter case, final periods and line breaks."""
    text, words, index = record[f"{span}_text"], record["text"].split(), record[f"{span}_index"]
    if text in record["text"] or text in _APART:
        return
    if "theyscold" in text:
        record["span2_index"] = 10
    if not 0 <= index < len(words) or not text:
        raise ValueError(f"its {span}_text {text!r} is not in the text, which has no word {index}")
    first = text[0].lower() if words[index][0].islower() else text[0].upper()
    text = (first + text[1:]).rstrip(".").replace("\n", " ")
    if text not in record["text"]:
        raise ValueError(f"its {span}_text {text!r} is not in the text")
    record[f"{span}_text"] = text


def _parse(line: bytes, number: int, *, records: Callable[[Record], list[Record]]) -> list[Record]:
    del number
    row = json_object(line)
    return [] if row is None else records(row)


def _data_set(folder: str, features, records: Callable[..., list[Record]], test_only: str = "") -> DataSet:
    """A task.

    Args:
      folder: as in the zip file, which is called the same.
      features: of its records.
      records: object, secret (whether labels may be absent) -> records.
      test_only: the name of the only file of a task without training data.
    """

    def files(*stems: str, secret: bool) -> tuple[tuple[Files, ...], ...]:
        form = Format(lines, functools.partial(_parse, records=functools.partial(records, secret=secret)))
        return tuple((Files((f"{stem}.jsonl",), form),) for stem in stems)

    if test_only:
        splits = {"test": files(test_only, "test", secret=True)}
    else:
        splits = {
            "train": files("train", secret=False),
            "validation": files("val", "dev", "validation", secret=False),
            "test": files("test", secret=True),
        }
    parents = ("", "superglue/", "super_glue/", "SuperGLUE/")
    return DataSet(
        features=features,
        splits=splits,
        folders=tuple(f"{parent}{spelt}" for spelt in (folder, folder.lower()) for parent in parents),
        download=f"{_URL}{folder}.zip",
    )


def _task(folder, texts, names, numbers=(), test_only="") -> DataSet:
    """A task with one record a line."""
    kinds = {**dict.fromkeys(texts, str), **dict.fromkeys(numbers, int)}
    features = {**dict.fromkeys(texts, TEXT), **dict.fromkeys(numbers, NUMBER), "label": LABEL, "idx": NUMBER}
    return _data_set(folder, features, functools.partial(_plain, kinds=kinds, names=names), test_only)


def _winograd(repaired: bool) -> DataSet:
    features = {"text": TEXT, "span1_index": NUMBER, "span2_index": NUMBER, "span1_text": TEXT, "span2_text": TEXT}
    records = functools.partial(_wsc, repaired=repaired, names=_BOOLEAN)
    return _data_set("WSC", {**features, "label": LABEL, "idx": NUMBER}, records)


_MULTIRC = {
    "paragraph": TEXT, "question": TEXT, "answer": TEXT, "label": LABEL,
    "idx": {"paragraph": NUMBER, "question": NUMBER, "answer": NUMBER},
}  # fmt: skip
_RECORD = {
    "passage": TEXT, "query": TEXT, "entities": TEXTS, "answers": TEXTS, "idx": {"passage": NUMBER, "query": NUMBER},
}  # fmt: skip
_SPANS = ("start1", "start2", "end1", "end2")

DATA_SETS = {
    "super_glue/boolq": _task("BoolQ", ("question", "passage"), _BOOLEAN),
    "super_glue/cb": _task("CB", ("premise", "hypothesis"), ("entailment", "contradiction", "neutral")),
    "super_glue/copa": _task("COPA", ("premise", "choice1", "choice2", "question"), ("choice1", "choice2")),
    "super_glue/multirc": _data_set("MultiRC", _MULTIRC, _multirc),
    "super_glue/record": _data_set("ReCoRD", _RECORD, _record),
    "super_glue/rte": _task("RTE", ("premise", "hypothesis"), _ENTAILMENT),
    "super_glue/wic": _task("WiC", ("word", "sentence1", "sentence2"), _BOOLEAN, _SPANS),
    "super_glue/wsc": _winograd(repaired=False),
    "super_glue/wsc.fixed": _winograd(repaired=True),
    "super_glue/axb": _task("AX-b", ("sentence1", "sentence2"), _ENTAILMENT, test_only="AX-b"),
    "super_glue/axg": _task("AX-g", ("premise", "hypothesis"), _ENTAILMENT, test_only="AX-g"),
}
