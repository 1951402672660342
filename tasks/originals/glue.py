"""GLUE as gluebenchmark.com publishes it: a folder of tab-separated files for each task.

Quotes mean nothing in these files. Names, types, label ids and the numbering `idx` are those of TFDS
(text/glue.py). The labels of most test files are secret and read as -1.
"""

import csv
import functools
import math
import os
from collections.abc import Iterator, Mapping

from t5x_lite.tasks.originals.reading import (
    LABEL,
    NUMBER,
    TEXT,
    DataSet,
    Files,
    Format,
    Record,
    label_id,
    lines,
    utf8,
)

_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCES = {"sentence1": "sentence1", "sentence2": "sentence2"}
_PAIR = {"premise": "sentence1", "hypothesis": "sentence2"}
_URL = "https://dl.fbaipublicfiles.com/glue/data/"

Row = list[str]
Unit = tuple[tuple[str, ...], bytes]


def _table(path: str, *, needed: tuple[str, ...], columns: tuple[str, ...] = ()) -> Iterator[Unit]:
    """(names of the columns, row) of each row; the first line names them unless they are given."""
    rows = lines(path)
    if not columns:
        columns = _columns(next(rows, None), needed)
    for row in rows:
        yield columns, row


def _columns(header: bytes | None, needed: tuple[str, ...]) -> tuple[str, ...]:
    if header is None:
        raise ValueError("it holds no records")
    columns = tuple(utf8(header).removesuffix("\r").split("\t"))
    missing = [name for name in needed if name not in columns]
    if missing:
        raise ValueError(f"its first line names no column {missing[0]!r}, it names {', '.join(columns)}"[:300])
    twice = [name for name in needed if columns.count(name) > 1]
    if twice:
        raise ValueError(f"its first line names the column {twice[0]!r} {columns.count(twice[0])} times")
    return columns


def _row(
    unit: Unit,
    number: int,
    *,
    texts: Mapping[str, str],
    label: str,
    names: tuple[str, ...],
    broken: bool,
    secret: bool,
) -> list[Record]:
    """The record of a row.

    Args:
      unit: from `_table`.
      number: of the row, from 0.
      texts: feature -> column.
      label: column of the label, which a file of secret labels does not have.
      names: of the labels, in the order of their ids; none for a number.
      broken: rows that are too short, or have no label, are left out: the published file has some.
      secret: whether a label may be -1, as in test files.
    """
    columns, row = unit
    if not row.strip():
        return []
    cells = utf8(row).removesuffix("\r").split("\t")
    if len(cells) > len(columns) and not broken:
        raise ValueError(f"it has {len(cells)} columns, more than the {len(columns)} of the file")
    values = dict(zip(columns, cells))
    wanted = [*texts.values(), *([label] if label in columns else [])]
    if missing := [column for column in wanted if column not in values]:
        if broken:
            return []
        raise ValueError(f"it has {len(values)} columns, too few for the column {missing[0]!r} of {len(columns)}")
    if broken and label in columns and not values[label]:
        return []
    given = values[label] if label in columns else "-1"
    hidden = secret or label not in columns
    return [
        {
            **{feature: values[column] for feature, column in texts.items()},
            "label": label_id(given, names, hidden) if names else _score(given, hidden),
            "idx": number,
        }
    ]


def _score(text: str, secret: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"its score {text!r} is no number")
    if not 0 <= value <= 5 and not (secret and value == -1):
        raise ValueError(f"its score {text!r} is not between 0 and 5")
    return value


def _files(name: str, secret: bool, texts, label, names, columns=(), broken=False) -> Files:
    needed = (*texts.values(), *(() if secret else (label,)))
    return Files(
        (name,),
        Format(
            functools.partial(_table, needed=needed, columns=columns),
            functools.partial(_row, texts=texts, label=label, names=names, broken=broken, secret=secret),
            first=1 if columns else 2,
        ),
    )


def _data_set(folder, texts, label, names, splits, download) -> DataSet:
    return DataSet(
        features={**dict.fromkeys(texts, TEXT), "label": LABEL if names else "float32", "idx": NUMBER},
        splits=splits,
        folders=tuple(
            f"{parent}{spelt}" for spelt in dict.fromkeys((folder, folder.lower())) for parent in ("", "glue/", "GLUE/")
        ),
        download=download,
    )


def _task(folder, texts, label, names, zipped="", **how) -> DataSet:
    """A task with the files train.tsv, dev.tsv and test.tsv."""
    splits = {
        split: ((_files(f"{stem}.tsv", split == "test", texts, label, names, **how),),)
        for split, stem in (("train", "train"), ("validation", "dev"), ("test", "test"))
    }
    return _data_set(folder, texts, label, names, splits, f"{_URL}{zipped or folder}.zip")


# ----------------------------------------------------------------------------------------------------------------------
# Files that are unlike the others


def _cola() -> DataSet:
    """Only the test file of CoLA names its columns."""
    texts, names = {"sentence": "sentence"}, ("unacceptable", "acceptable")
    task = _task("CoLA", texts, "is_acceptable", names)
    for split, stem in (("train", "train"), ("validation", "dev")):
        columns = ("source", "is_acceptable", "original", "sentence")
        task.splits[split] = ((_files(f"{stem}.tsv", False, texts, "is_acceptable", names, columns),),)
    return task


def _paraphrases(path: str, ids: str, *, validation: bool, needed: tuple[str, ...]) -> Iterator[Unit]:
    """Rows of Microsoft's training file; those with the ids of the other file are the validation split.

    The rows of the other split stay as empty ones, for `idx` counts all.
    """
    held_out = set(_ids(ids))
    if not held_out:
        raise ValueError("the file of ids is empty")
    table = [(columns, row, tuple(row.split(b"\t")[1:3]) in held_out) for columns, row in _table(path, needed=needed)]
    if not any(held for _, _, held in table):
        raise ValueError(f"no row of {os.path.basename(path)} has ids that are in {os.path.basename(ids)}")
    for columns, row, held in table:
        yield columns, row if held == validation else b""


def _ids(path: str) -> Iterator[tuple[bytes, bytes]]:
    """Pairs of ids. A file that is something else would let records of the validation split pass for training ones."""
    for number, line in enumerate(lines(path), start=1):
        pair = tuple(line.removesuffix(b"\r").split(b"\t"))
        if len(pair) != 2 or not all(map(bytes.isdigit, pair)):
            shown = line[:40].decode("utf-8", "replace")
            raise ValueError(f"line {number} of {os.path.basename(path)}, {shown!r}, is not two ids with a tab between")
        yield pair


def _mrpc() -> DataSet:
    """Microsoft's two files with the ids of the validation split, or the three that GLUE's script makes of them."""
    texts, label, names = (
        {"sentence1": "#1 String", "sentence2": "#2 String"},
        "Quality",
        ("not_equivalent", "equivalent"),
    )
    task = _task("MRPC", texts, label, names)
    needed = (label, "#1 ID", "#2 ID", *texts.values())
    parse = functools.partial(_row, texts=texts, label=label, names=names, broken=False, secret=False)
    for split in ("train", "validation"):
        form = Format(functools.partial(_paraphrases, validation=split == "validation", needed=needed), parse, first=2)
        whole = tuple((Files(("msr_paraphrase_train.txt", ids), form),) for ids in ("dev_ids.tsv", "mrpc_dev_ids.tsv"))
        task.splits[split] = whole + task.splits[split]
    # Microsoft's test file has the labels. TFDS hides them, as GLUE does.
    hidden = _files("msr_paraphrase_test.txt", True, texts, "", names)
    task.splits["test"] = ((hidden,), *task.splits["test"])
    return DataSet(
        task.features, task.splits, task.folders,
        "https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase_train.txt, "
        "https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase_test.txt and, as dev_ids.tsv, https://firebasestorage.googleapis.com/v0/b/"
        "mtl-sentence-representations.appspot.com/o/data%2Fmrpc_dev_ids.tsv?alt=media&"
        "token=ec5c0836-31d5-48f4-b431-7480817f1adc",
    )  # fmt: skip


def _comma_separated(row: bytes, number: int) -> list[Record]:
    if not row.strip():
        return []
    try:
        (values,) = csv.reader([utf8(row)], strict=True)
    except csv.Error as error:
        raise ValueError(f"it is no line of comma-separated values ({error})") from None
    if len(values) != 3:
        raise ValueError(f"it has {len(values)} columns, not sentence1, sentence2 and score")
    return [{"sentence1": values[0], "sentence2": values[1], "label": _score(values[2]), "idx": number}]


def _stsb() -> DataSet:
    """GLUE's files, or those of stsb-multi-mt, which know the scores of the test split too."""
    task = _task("STS-B", _SENTENCES, "score", ())
    for split, stem in (("train", "train"), ("validation", "dev"), ("test", "test")):
        task.splits[split] += ((Files((f"stsb-en-{stem}.csv",), Format(lines, _comma_separated)),),)
    return task


def _mnli(splits: Mapping[str, str]) -> DataSet:
    texts, label, names = _PAIR, "gold_label", ("entailment", "neutral", "contradiction")
    return _data_set(
        "MNLI", texts, label, names,
        {
            split: ((_files(f"{stem}.tsv", stem.startswith("test"), texts, label, names),),)
            for split, stem in splits.items()
        },
        f"{_URL}MNLI.zip",
    )  # fmt: skip


def _ax() -> DataSet:
    names = ("entailment", "neutral", "contradiction")
    stems = ("AX", "diagnostic", "tsvsWithoutLabels_AX")
    files = tuple((_files(f"{stem}.tsv", True, _PAIR, "", names),) for stem in stems)
    task = _data_set("AX", _PAIR, "", names, {"test": files}, "https://bit.ly/2BOtOJ7 (AX.tsv)")
    return DataSet(task.features, task.splits, (*task.folders, "diagnostic", "glue/diagnostic"), task.download)


_EACH = {f"{split}_{kind}": f"{stem}_{kind}" for split, stem in (("validation", "dev"), ("test", "test"))
         for kind in ("matched", "mismatched")}  # fmt: skip

DATA_SETS = {
    "glue/cola": _cola(),
    "glue/sst2": _task("SST-2", {"sentence": "sentence"}, "label", ("negative", "positive")),
    "glue/mrpc": _mrpc(),
    # Some questions of the published file are cut in two by line breaks.
    "glue/qqp": _task(
        "QQP", {"question1": "question1", "question2": "question2"}, "is_duplicate", ("not_duplicate", "duplicate"),
        broken=True,
    ),
    "glue/stsb": _stsb(),
    "glue/mnli": _mnli({"train": "train", **_EACH}),
    "glue/mnli_matched": _mnli({"validation": "dev_matched", "test": "test_matched"}),
    "glue/mnli_mismatched": _mnli({"validation": "dev_mismatched", "test": "test_mismatched"}),
    "glue/qnli": _task("QNLI", {"question": "question", "sentence": "sentence"}, "label", _ENTAILMENT, "QNLIv2"),
    "glue/rte": _task("RTE", _SENTENCES, "label", _ENTAILMENT),
    "glue/wnli": _task("WNLI", _SENTENCES, "label", ("not_entailment", "entailment")),
    "glue/ax": _ax(),
}  # fmt: skip
