"""Questions and answers: SQuAD 1.1, TriviaQA and Natural Questions as published.

Names and types are those of TFDS (squad, trivia_qa, natural_questions_open).
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator

from t5x_lite.tasks import documents
from t5x_lite.tasks.formats.trivia import natural_question
from t5x_lite.tasks.originals.reading import (
    NUMBER,
    TEXT,
    TEXTS,
    DataSet,
    Files,
    Format,
    Record,
    field,
    from_json,
    json_object,
    lines,
    strings,
    text,
    utf8,
)

# ----------------------------------------------------------------------------------------------------------------------
# SQuAD


def _squad_questions(path: str) -> Iterator[Record]:
    """Every question with its title and context; answers to the same question are brought together, as in TFDS."""
    whole = from_json(text(path), "JSON")
    questions: dict[str, Record] = {}
    for number, entry in enumerate(field(whole, "data", list)):
        with _inside(f"data[{number}]"):
            for question in _questions_of(entry):
                first = questions.setdefault(question["id"], question)
                if first is not question:
                    first["answers"] += question["answers"]
    yield from questions.values()


def _questions_of(entry: Record) -> Iterator[Record]:
    """The questions of an article, or an entry that is a question with its context, as Hugging Face writes them."""
    if not isinstance(entry, dict) or "paragraphs" not in entry:
        answers = field(entry, "answers", dict)
        texts, starts = field(answers, "text", list), field(answers, "answer_start", list)
        if len(texts) != len(starts):
            shown = json.dumps(entry.get("id"))[:60]
            raise ValueError(f"the answers of its question {shown} are {len(texts)} texts with {len(starts)} starts")
        given = [{"text": answer, "answer_start": start} for answer, start in zip(texts, starts)]
        yield entry | {"id": field(entry, "id", str), "answers": given}
        return
    for number, paragraph in enumerate(field(entry, "paragraphs", list)):
        with _inside(f"paragraphs[{number}]"):
            context, asked = field(paragraph, "context", str), field(paragraph, "qas", list)
        for k, question in enumerate(asked):
            with _inside(f"paragraphs[{number}].qas[{k}]"):
                found = {"id": field(question, "id", str), "answers": field(question, "answers", list)}
            yield question | found | {"title": entry.get("title", ""), "context": context}


@contextlib.contextmanager
def _inside(place: str) -> Iterator[None]:
    """Adds to a reason where in the JSON of a file it holds."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        raise ValueError(f"in {place}.{said[3:]}" if said.startswith("in ") else f"in {place}: {said}") from None


def _squad_record(question: Record, number: int) -> list[Record]:
    del number
    answers = question["answers"]
    return [
        {
            "id": question["id"],
            "title": field({"title": "", **question}, "title", str),
            "context": field(question, "context", str),
            "question": field(question, "question", str),
            "answers": {
                "text": [field(answer, "text", str) for answer in answers],
                "answer_start": [field(answer, "answer_start", int) for answer in answers],
            },
        }
    ]


def _squad() -> DataSet:
    form = Format(_squad_questions, _squad_record, unit="question")
    return DataSet(
        features={
            "id": TEXT, "title": TEXT, "context": TEXT, "question": TEXT,
            "answers": {"text": TEXTS, "answer_start": [NUMBER]},
        },
        splits={
            "train": ((Files(("train-v1.1.json",), form),),),
            "validation": ((Files(("dev-v1.1.json",), form),),),
        },
        folders=("squad", "SQuAD", ""),
        download="https://rajpurkar.github.io/SQuAD-explorer/dataset/train-v1.1.json and "
        "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v1.1.json",
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# TriviaQA

_CHUNK = 1 << 20
# Characters of an article. Where one does not end the file is damaged, and not to be held in memory whole.
_LONGEST = 1 << 26
_BETWEEN = re.compile(r"[\s,]*")
_ANSWER = {
    "matched_wiki_entity_name": "MatchedWikiEntryName",
    "normalized_matched_wiki_entity_name": "NormalizedMatchedWikiEntryName",
    "normalized_value": "NormalizedValue",
    "type": "Type",
    "value": "Value",
}
# What TFDS writes where the answer is secret.
_SECRET = {name: "" if name == "type" else "<unk>" for name in _ANSWER}
_PAGES = {"doc_source": "DocSource", "filename": "Filename", "title": "Title"}
_RESULTS = {"description": "Description", "filename": "Filename", "rank": "Rank", "title": "Title", "url": "Url"}


def _articles(path: str, *, evidence: bool) -> Iterator[tuple[str, Record]]:
    """(folder of documents, article) of the array "Data", an article at a time: the files are too large for more."""
    folder = os.path.join(os.path.dirname(os.path.dirname(path)), "evidence")
    if evidence and not _is_folder(folder):
        raise ValueError(f"the documents that it names are looked for in {folder}, which is not there")
    decode = json.JSONDecoder().raw_decode
    buffer, inside, found = "", False, 0
    for chunk in _chunks(path):
        buffer += chunk
        if not inside:
            start = re.search(r'"Data"\s*:\s*\[', buffer)
            if start is None and len(buffer) < _LONGEST:
                continue
            if start is None:
                break
            buffer, inside = buffer[start.end() :], True
        position = 0
        while True:
            position = _BETWEEN.match(buffer, position).end()
            if buffer.startswith("]", position):
                return
            try:
                article, position = decode(buffer, position)
            except ValueError:
                break  # It goes on in the next chunk.
            except RecursionError:
                raise ValueError("it has an article in it that is nested too deeply") from None
            yield folder, article
            found += 1
        buffer = buffer[position:]
        if len(buffer) > _LONGEST:
            break
    if inside:
        raise ValueError(f'it is not JSON, or breaks off, in article {found + 1} of its array "Data"')
    if not buffer.strip():
        raise ValueError("it is empty")
    is_object = buffer.lstrip().startswith("{")
    raise ValueError('it has no array "Data"' if is_object else "it is not JSON, it begins with " + repr(buffer[:30]))


def _chunks(path: str) -> Iterator[str]:
    """The text of a file in large pieces of whole lines."""
    pending: list[bytes] = []
    size, first = 0, 1
    for number, line in enumerate(lines(path), start=1):
        pending += (line, b"\n")
        size += len(line)
        if size > _CHUNK:
            yield utf8(b"".join(pending), first)
            pending, size, first = [], 0, number + 1
    yield utf8(b"".join(pending), first)


def _is_folder(path: str) -> bool:
    if "://" in path:
        import tensorflow as tf

        return tf.io.gfile.isdir(path)
    return os.path.isdir(path)


def _trivia_record(unit: tuple[str, Record], number: int, *, evidence: bool, secret: bool) -> list[Record]:
    del number
    folder, article = unit
    record = {name: field(article, key, str).strip() for name, key in (
        ("question", "Question"), ("question_source", "QuestionSource"))}  # fmt: skip
    return [
        {
            **record,
            "question_id": field(article, "QuestionId", str),
            "entity_pages": _documents(article, "EntityPages", _PAGES, "wiki_context", folder, "wikipedia", evidence),
            "search_results": _documents(article, "SearchResults", _RESULTS, "search_context", folder, "web", evidence),
            "answer": _answer(article, secret),
        }
    ]


def _answer(article: Record, secret: bool) -> Record:
    if "Answer" not in article and secret:
        return {"aliases": [], "normalized_aliases": [], **_SECRET}
    answer = field(article, "Answer", dict)
    optional = {"MatchedWikiEntryName": "", "NormalizedMatchedWikiEntryName": ""}
    return {
        "aliases": [alias.strip() for alias in strings(answer, "Aliases")],
        "normalized_aliases": [alias.strip() for alias in strings(answer, "NormalizedAliases")],
        **{name: field(optional | answer, key, str).strip() for name, key in _ANSWER.items()},
    }


def _documents(article, key, names, context, folder, kind, evidence) -> Record:
    """The documents of an article whose text is there, feature by feature."""
    columns: dict[str, list] = {name: [] for name in (*names, context)}
    for item in field({key: [], **article}, key, list) if evidence else ():
        if "Filename" not in item:
            continue
        try:
            with documents.open_file(os.path.join(folder, kind, field(item, "Filename", str))) as file:
                read = utf8(file.read())
        except OSError:
            continue  # Some documents could not be had when the data set was made.
        except ValueError as error:
            raise ValueError(f"its document {kind}/{item['Filename']} cannot be read: {error}") from None
        for name, source in names.items():
            value = field(item, source, int if name == "rank" else str)
            columns[name].append(value.strip() if isinstance(value, str) else value)
        columns[context].append(read.strip())
    return columns


def _trivia(prefix: str, folders: tuple[str, ...], download: str, evidence: bool) -> DataSet:
    def form(secret: bool) -> Format:
        return Format(
            functools.partial(_articles, evidence=evidence),
            functools.partial(_trivia_record, evidence=evidence, secret=secret),
            unit="article",
        )

    endings = {"train": "train", "validation": "dev", "test": "test-without-answers"}
    return DataSet(
        features={
            "question": TEXT, "question_id": TEXT, "question_source": TEXT,
            "entity_pages": {**dict.fromkeys(_PAGES, TEXTS), "wiki_context": TEXTS},
            "search_results": {**dict.fromkeys(_RESULTS, TEXTS), "rank": [NUMBER], "search_context": TEXTS},
            "answer": {**dict.fromkeys(_ANSWER, TEXT), "aliases": TEXTS, "normalized_aliases": TEXTS},
        },
        splits={
            split: ((Files((f"{prefix}*{ending}.json",), form(split == "test")),),) for split, ending in endings.items()
        },
        folders=folders,
        download=download,
        # A record with its documents has some 100 kB.
        shuffled=256 if evidence else 1 << 14,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# Natural Questions


def _open_question(line: bytes, number: int) -> list[Record]:
    del number
    row = json_object(line)
    return [] if row is None else [{"question": field(row, "question", str), "answer": strings(row, "answer")}]


def _natural_question(line: bytes, number: int) -> list[Record]:
    """A question with its one short answer; questions with none or several give no record."""
    del number
    row = json_object(line)
    if row is None:
        return []
    field(row, "question_text", str)
    if not field(row, "annotations", list):
        raise ValueError("its field 'annotations' is empty")
    for answer in field(row["annotations"][0], "short_answers", list):
        field(answer, "start_token", int)
        field(answer, "end_token", int)
    if "document_tokens" in row:
        for token in field(row, "document_tokens", list):
            field(token, "token", str)
        size = len(row["document_tokens"])
    else:
        size = field(row, "document_text", str).count(" ") + 1
    for answer in row["annotations"][0]["short_answers"]:
        start, end = answer["start_token"], answer["end_token"]
        if not 0 <= start < end <= size:
            raise ValueError(f"its short answer is the tokens {start} to {end} of a document of {size}")
    record = natural_question(row)
    return [] if record is None else [record]


def _lines_of_json(parse, **names: tuple[str, ...]) -> dict[str, tuple[tuple[Files, ...], ...]]:
    form = Format(lines, parse)
    return {split: tuple((Files((name,), form),) for name in spelt) for split, spelt in names.items()}


_RC = "http://nlp.cs.washington.edu/triviaqa/data/triviaqa-rc.tar.gz (the folders qa and evidence)"
_RC_FOLDERS = ("triviaqa-rc/qa", "trivia_qa/qa", "triviaqa/qa", "qa")
_UNFILTERED = "http://nlp.cs.washington.edu/triviaqa/data/triviaqa-unfiltered.tar.gz"

DATA_SETS = {
    "squad/v1.1": _squad(),
    "trivia_qa/rc": _trivia("", _RC_FOLDERS, _RC, evidence=True),
    "trivia_qa/rc.nocontext": _trivia("", _RC_FOLDERS, _RC, evidence=False),
    "trivia_qa/unfiltered.nocontext": _trivia(
        "unfiltered-", ("triviaqa-unfiltered", "trivia_qa/triviaqa-unfiltered", "trivia_qa"), _UNFILTERED,
        evidence=False,
    ),
    "natural_questions_open": DataSet(
        features={"question": TEXT, "answer": TEXTS},
        splits=_lines_of_json(
            _open_question,
            train=("NQ-open.train.jsonl", "train.jsonl"),
            validation=("NQ-open.dev.jsonl", "dev.jsonl", "validation.jsonl"),
        ),
        folders=("nq_open", "natural_questions_open"),
        download="https://github.com/google-research-datasets/natural-questions/tree/master/nq_open "
        "(NQ-open.train.jsonl, NQ-open.dev.jsonl)",
    ),
    # No data set of TFDS: the records of T5's notebook on closed-book question answering.
    "natural_questions_simplified": DataSet(
        features={"question": TEXT, "answer": TEXT},
        splits=_lines_of_json(
            _natural_question,
            train=("*simplified-nq-train.jsonl", "nq-train*.jsonl"),
            validation=("*nq-dev-all.jsonl", "*nq-dev*.jsonl"),
        ),
        folders=("natural_questions", "nq", ""),
        download="https://storage.googleapis.com/natural_questions/v1.0-simplified/simplified-nq-train.jsonl.gz and "
        "https://storage.googleapis.com/natural_questions/v1.0-simplified/nq-dev-all.jsonl.gz",
        in_tfds=False,
    ),
}  # fmt: skip
