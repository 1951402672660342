"""Original files that are malformed: what is wrong is said with its place, whether they are read or counted."""

import gzip
import json
import re

import pytest

from t5x_lite.errors import UserError
from tests.tasks.originals import public

records = pytest.importorskip("t5x_lite.tasks.records")
sources = pytest.importorskip("t5x_lite.tasks.sources")

import tensorflow as tf  # noqa: E402

from tests.tasks.originals.reading import plain, read  # noqa: E402


def sst(*rows):
    return "\n".join(["sentence\tlabel", *rows]).encode()


def rows_of(*rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


BOOLQ = {"question": "q", "passage": "p", "idx": 0, "label": True}
WSC = {"text": "A b .", "idx": 0, "label": True, "target": {
    "span1_text": "z", "span1_index": 0, "span2_text": "b", "span2_index": 1}}  # fmt: skip
ARTICLE = {"Question": "q", "QuestionSource": "s", "QuestionId": "i"}
BEYOND = {"start_token": 0, "end_token": 2}
SQUAD = {"context": "c", "qas": [{"id": "1", "question": "q", "answers": [{"text": "a"}]}]}
MALFORMED = {
    ("glue/sst2", "SST-2/train.tsv"): [
        (sst("a\t1", "b"), r"Line 3 of .*train.tsv .* It has 1 columns, too few for the column 'label' of 2"),
        (sst("a\t2"), r"Line 2 .* Its label '2' is neither one of negative, positive"),
        (sst("a\tgood"), r"Line 2 .* Its label 'good'"),
        (sst("a\t"), r"Line 2 .* Its label ''"),
        (
            sst("a\t1") + b"\n\xff\t1",
            r"Line 3 of .* cannot be read. It is not UTF-8: invalid start byte, 0xff, at byte 1\.",
        ),
        (b"text\tlabel\na\t1", r"train.tsv cannot be read. Its first line names no column 'sentence'"),
        (b"sentence\na", r"train.tsv cannot be read. Its first line names no column 'label'"),
        (b"label\tsentence\tlabel\n", r"train.tsv cannot be read. Its first line names the column 'label' 2 times"),
        (sst("a\t0_1"), r"Line 2 .* Its label '0_1'"),
        (sst("a\t\u0661"), r"Line 2 .* Its label '\u0661'"),
        (b"\xff\tlabel\n", r"train.tsv cannot be read. It is not UTF-8"),
        (b"", r"train.tsv cannot be read. It holds no records"),
        (sst(), r"train.tsv cannot be read. It holds no records"),
        (sst("", " "), r"train.tsv cannot be read. It holds no records"),
        (sst("a\t1", "a\tb\t1"), r"Line 3 of .* It has 3 columns, more than the 2 of the file"),
        (sst("a\t1", "b\0\t1"), r"train.tsv cannot be read. Line 3 of train.tsv has a NUL byte, so it is no text"),
        (sst("a\t-1"), r"Line 2 .* Its label is -1, which stands for a secret one: only files of a test split have it"),
    ],
    ("glue/sst2", "SST-2/train.tsv.gz"): [
        (b"no gzip", r"train.tsv.gz cannot be read. Not a gzipped file"),
        (gzip.compress(sst(*["a\t1"] * 999), mtime=0)[:-9], r"train.tsv.gz cannot be read. Compressed file ended"),
        (gzip.compress(b"", mtime=0), r"train.tsv.gz cannot be read. It holds no records"),
    ],
    ("glue/cola", "CoLA/train.tsv"): [
        (b"gj04\t1\t\tfine\ngj04\t1\n", r"Line 2 of .* too few for the column 'sentence'"),
        (b"gj04\t1\t\tfine\tmore\n", r"Line 1 of .* It has 5 columns, more than the 4 of the file"),
    ],
    ("glue/stsb", "STS-B/train.tsv"): [
        (b"sentence1\tsentence2\tscore\na\tb\tc", r"Line 2 .* Its score 'c' is no number"),
        (b"sentence1\tsentence2\tscore\na\tb\tnan", r"Line 2 .* Its score 'nan' is no number"),
        (b"sentence1\tsentence2\tscore\na\tb\t5.1", r"Line 2 .* Its score '5.1' is not between 0 and 5"),
        (b"sentence1\tsentence2\tscore\na\tb\t-1", r"Line 2 .* Its score '-1' is not between 0 and 5"),
    ],
    ("glue/stsb", "STS-B/stsb-en-train.csv"): [
        (b"a,b,1\na,b\n", r"Line 2 of .*csv .* It has 2 columns"),
        (b'a,"b,1\n', r"Line 1 .* no line of comma-separated values"),
    ],
    ("super_glue/boolq", "BoolQ/train.jsonl"): [
        (b'{"question": ', r"Line 1 .* It is not one JSON object a line: Expecting value at column 14\."),
        (b"[1]", r"Line 1 .* It is JSON of type list, not an object: there is to be one in each line"),
        (b'{"question": "\xff"}', r"Line 1 .* It is not UTF-8: invalid start byte, 0xff, at byte 15\."),
        (rows_of(BOOLQ, {"question": "q"}), r"Line 2 .* It has no field 'passage', its fields are question"),
        (rows_of({**BOOLQ, "idx": "0"}), r"Its field 'idx' is \"0\", not of type int"),
        (rows_of({**BOOLQ, "label": 3}), r"Its label 3 is neither one of False, True"),
        (rows_of({**BOOLQ, "label": None}), r"Its field 'label' is null, not of type str, int or bool"),
        (rows_of({**BOOLQ, "label": -1}), r"Line 1 .* Its label is -1, which stands for a secret one"),
        (
            rows_of(BOOLQ, {**BOOLQ, "idx": 99999999999}),
            r"Line 2 .* Its field 'idx' is 99999999999, which has more than",
        ),
        (rows_of({**BOOLQ, "passage": "a\ud800"}), r"Line 1 .* Its field 'passage' has \"\\ud800\" in it, half of a"),
        (b"[" * 100_000, r"Line 1 .* It is not one JSON object a line: it is nested too deeply"),
        (rows_of({"\ud800": 1}), r"Line 1 .* its fields are \\ud800"),
        (rows_of({key: BOOLQ[key] for key in ("question", "passage", "idx")}), r"It has no field 'label'"),
    ],
    ("super_glue/copa", "COPA/train.jsonl"): [
        (rows_of({**dict.fromkeys(("premise", "choice1", "choice2", "question"), "x"), "label": 2}), "Its label 2 is"),
    ],
    ("super_glue/multirc", "MultiRC/train.jsonl"): [
        (rows_of({"idx": 1, "passage": "x"}), r"'passage' is \"x\", not of type dict"),
        (rows_of({"idx": 1, "passage": {"text": "x", "questions": [3]}}), r"There is 3 where an object"),
    ],
    ("super_glue/record", "ReCoRD/train.jsonl"): [
        (rows_of({"idx": 1, "passage": {"text": "x"}}), r"no field 'entities'"),
        (
            rows_of({"idx": 1, "passage": {"text": "x", "entities": [{"start": 1, "end": 4}]}, "qas": []}),
            r"Line 1 .* It has an entity from 1 to 4, and its text has 1 characters",
        ),
        (
            rows_of(
                {"idx": 1, "passage": {"text": "x", "entities": []}, "qas": [{"idx": 0, "query": "q", "answers": []}]}
            ),
            r"Line 1 .* One of its queries has no answers",
        ),
    ],
    ("super_glue/wsc.fixed", "WSC/train.jsonl"): [(rows_of(WSC), r"Its span1_text 'Z' is not in the text")],
    ("definite_pronoun_resolution", "dpr/train.c.txt"): [
        (b"s\np\na,b\nc\n", r"Block 1 of .* Its answer 'c' is neither"),
        (b"s\np\na,b\na\n\ns\np", r"Block 2 of .* Its lines 6 to 7 are not a sentence, a"),
        (b"s\np\na\na\n", r"Its third line 'a' has 1 candidates"),
    ],
    ("squad/v1.1", "squad/train-v1.1.json"): [
        (b'{"data": \n[', r"train-v1.1.json cannot be read. It is not JSON: .* at line 2, column 2"),
        (b"", r"train-v1.1.json cannot be read. It is empty"),
        (rows_of({"data": [5]}), r"train-v1.1.json cannot be read. In data\[0\]: there is 5 where an object"),
        (
            rows_of({"data": [{"paragraphs": [SQUAD, {**SQUAD, "qas": [{"id": "2"}]}]}]}),
            r"json cannot be read. In data\[0\].paragraphs\[1\].qas\[0\]: it has no field 'answers', its fields are id",
        ),
        (b"{}", r"train-v1.1.json cannot be read. It has no field 'data'"),
        (rows_of({"data": [{"paragraphs": [SQUAD]}]}), r"Question 1 .* no field 'answer_start'"),
        (rows_of({"data": []}), r"train-v1.1.json cannot be read. It holds no records"),
        (
            b'{"data":\n"a\xff',
            r"train-v1.1.json cannot be read. In line 2 it is not UTF-8: invalid start .* at byte 3\.",
        ),
        (b"[" * 100_000, r"train-v1.1.json cannot be read. It is not JSON: it is nested too deeply"),
        (
            rows_of({"data": [{"id": "7", "answers": {"text": ["a"], "answer_start": []}}]}),
            r'the answers of its question "7" are 1 texts with 0 starts',
        ),
        (
            rows_of(
                {
                    "data": [
                        {
                            "paragraphs": [
                                {
                                    "context": "c",
                                    "qas": [
                                        {"id": "1", "question": "q", "answers": [{"text": "a", "answer_start": 10**12}]}
                                    ],
                                }
                            ]
                        }
                    ]
                }
            ),
            r"Question 1 .* Its field 'answer_start' is 1000000000000, which has more than 32 bits",
        ),
    ],
    ("trivia_qa/unfiltered.nocontext", "trivia_qa/unfiltered-web-train.json"): [
        (b"{}", r'train.json cannot be read. It has no array "Data"'),
        (
            b'{"Data": [{"Q',
            r'train.json cannot be read. It is not JSON, or breaks off, in article 1 of its array "Data"',
        ),
        (b"", r"train.json cannot be read. It is empty"),
        (b'{"Data": [\n{"Q": "\xff"}]}', r"train.json cannot be read. In line 2 it is not UTF-8"),
        (rows_of({"Data": [{**ARTICLE, "Answer": {}}]}), r"Article 1 of .* no field 'Aliases'"),
        (rows_of({"Data": [ARTICLE]}), r"Article 1 of .* It has no field 'Answer'"),
        (b'{"Data": [{}]}', r"Article 1 of .* no field 'Question'"),
        (b'{"Data": []}', r"train.json cannot be read. It holds no records"),
        (b"<html>no", r"train.json cannot be read. It is not JSON, it begins with '<html>no"),
        (b'{"Data": [' + b"[" * 100_000, r"train.json cannot be read. It has an article in it that is nested too"),
    ],
    ("trivia_qa/rc", "qa/web-train.json"): [(b'{"Data": [{}]}', r"evidence, which is not there")],
    ("natural_questions_open", "nq_open/NQ-open.train.jsonl"): [
        (rows_of({"question": "q", "answer": [1]}), r"Its field 'answer' has 1 in it"),
        (rows_of({"question": "q", "answer": ["\udfff"]}), r"Its field 'answer' has \"\\udfff\" in it, half of a"),
    ],
    ("natural_questions_simplified", "nq/simplified-nq-train.jsonl"): [
        (rows_of({"question_text": "q"}), r"Line 1 .* no field 'annotations'"),
        (rows_of({"question_text": "q", "annotations": []}), r"Line 1 .* Its field 'annotations' is empty"),
        (
            rows_of({"question_text": "q", "document_text": "d", "annotations": [{"short_answers": [BEYOND]}]}),
            r"Line 1 .* Its short answer is the tokens 0 to 2 of a document of 1\.",
        ),
        (
            rows_of({"question_text": "q", "document_text": "d", "annotations": [{"short_answers": []}]}),
            r"train.jsonl cannot be read. It holds no records",
        ),
    ],
    ("cnn_dailymail", "cnn_dailymail/train.jsonl"): [(rows_of({"article": "a"}), r"Line 1 .* no field 'highlights'")],
    ("xsum", "xsum/train.jsonl"): [(rows_of({"document": 1}), r"Line 1 .* field 'document' is 1, not of type str")],
    ("wmt14_translate/de-en", "wmt14/train.de-en.tsv"): [
        (b"one column\n", r"Line 1 .* It has 1 columns, not one for each of de and en"),
        (b"a\tb\na\t\xff", r"Line 2 .* It is not UTF-8"),
    ],
    ("c4/multilingual", "mc4/c4-de.tfrecord-0.json"): [(rows_of({"text": "t"}), r"Line 1 .* no field 'timestamp'")],
}


@pytest.mark.parametrize(
    "name, path, content, message", [(*key, *case) for key, cases in MALFORMED.items() for case in cases]
)
def test_what_is_malformed_is_said_with_its_place(name, path, content, message, tmp_path):
    split = "de" if name.startswith("c4") else "train"
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_bytes(content)
    with pytest.raises(tf.errors.OpError) as caught:
        read(tmp_path, name, split)
    explained = sources.explain(caught.value)
    assert isinstance(explained, UserError) and re.search(message, str(explained)), str(explained)
    assert "--gin.DATA_DIR" in str(explained)
    with pytest.raises(UserError) as counted:
        records.Records(name, [split]).num_input_examples(split)
    assert str(counted.value) == str(explained)


@pytest.mark.parametrize(
    "left, right, message",
    [
        (
            "a\nb\n",
            "a\n",
            "Line 2 of .*train.de and .*train.en .* The file of en ends before it and the file of de goes on",
        ),
        ("a\n", "a\nb\n", "Line 2 of .* The file of de ends before it and the file of en goes on"),
        ("", "", "train.de and .*train.en cannot be read. It holds no records"),
    ],
)
def test_parallel_files_of_unequal_length(left, right, message, tmp_path):
    (tmp_path / "wmt14").mkdir()
    (tmp_path / "wmt14/train.de").write_text(left)
    (tmp_path / "wmt14/train.en").write_text(right)
    records.bind(str(tmp_path))
    with pytest.raises(UserError, match=message):
        records.Records("wmt14_translate/de-en:1.0.0").num_input_examples("train")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"<html>\n", "Line 1 of dev_ids.tsv, '<html>', is not two ids with a tab between"),
        (b"2\t3\n\n", "Line 2 of dev_ids.tsv, '', is not two ids"),
        (b"2\t3\n\xff\xfe", "Line 2 of dev_ids.tsv, '\ufffd\ufffd', is not two ids"),
        (b"2\t3\t4", "Line 1 of dev_ids.tsv, '2.t3.t4', is not two ids"),
        (b"2 3", "Line 1 of dev_ids.tsv, '2 3', is not two ids"),
        (b"2\t\0", "Line 1 of dev_ids.tsv has a NUL byte"),
        (b"3\t2", "No row of msr_paraphrase_train.txt has ids that are in dev_ids.tsv"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_paraphrases_with_damaged_ids(content, message, split, tmp_path):
    """Silence would put the validation split into training."""
    table = ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t2\t3\ta\tb", "1\t4\t5\ta\tb")
    public.put(tmp_path / "MRPC/msr_paraphrase_train.txt", *table)
    (tmp_path / "MRPC/dev_ids.tsv").write_bytes(content)
    records.bind(str(tmp_path))
    with pytest.raises(UserError, match=f"train.txt and .*dev_ids.tsv cannot be read. {message}"):
        records.Records("glue/mrpc:1.0.0").num_input_examples(split)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("train.en", b"a\n\xff\n", "Line 2 of .* In the file of en it is not UTF-8: .*, 0xff, at byte 1"),
        ("train.de.gz", b"no gzip", "The file train.de.gz is damaged .Not a gzipped file"),
    ],
)
def test_the_damaged_one_of_parallel_files_is_named(name, content, message, tmp_path):
    (tmp_path / "wmt14").mkdir()
    for path in {"train.de", "train.en"} - {name.removesuffix(".gz")}:
        (tmp_path / "wmt14" / path).write_text("a\nb\n")
    (tmp_path / "wmt14" / name).write_bytes(content)
    records.bind(str(tmp_path))
    with pytest.raises(UserError, match=message):
        records.Records("wmt14_translate/de-en:1.0.0").num_input_examples("train")


@pytest.mark.parametrize(
    "name, path, content",
    [
        ("glue/sst2", "SST-2/test.tsv", sst("a\t-1")),
        ("glue/stsb", "STS-B/test.tsv", b"sentence1\tsentence2\tscore\na\tb\t-1"),
        ("super_glue/boolq", "BoolQ/test.jsonl", rows_of({**BOOLQ, "label": -1})),
    ],
)
def test_a_secret_label_may_be_written_in_a_test_file(name, path, content, tmp_path):
    (tmp_path / path).parent.mkdir()
    (tmp_path / path).write_bytes(content)
    assert [plain(row)["label"] for row in read(tmp_path, name, "test")[1]] == [-1]


def test_paraphrases_without_the_ids_of_the_validation_split(tmp_path):
    public.put(
        tmp_path / "MRPC/msr_paraphrase_train.txt", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t2\t3\ta\tb"
    )
    public.put(tmp_path / "MRPC/dev_ids.tsv")
    records.bind(str(tmp_path))
    with pytest.raises(
        UserError, match="msr_paraphrase_train.txt and .*dev_ids.tsv cannot be read. The file of ids is"
    ):
        records.Records("glue/mrpc:1.0.0").num_input_examples("train")


def test_line_ends_of_parallel_files(tmp_path):
    """A carriage return within a line belongs to its sentence; where it ends the first line, it is a part of line ends.

    Blank lines at the end of one file alone are no sentences.
    """
    (tmp_path / "wmt14").mkdir()
    (tmp_path / "wmt14/train.de").write_bytes(b"\xef\xbb\xbfa\r\nb\rb\r\n\r\n\n")
    (tmp_path / "wmt14/train.en").write_bytes(b"c\nd\r\n")
    _, found = read(tmp_path, "wmt14_translate/de-en", "train")
    assert [plain(row) for row in found] == [{"de": "a", "en": "c"}, {"de": "b\rb", "en": "d\r"}]


def test_sgml_of_unequal_length(tmp_path):
    public.sgml(tmp_path / "wmt14/dev/newstest2014-deen-src.de.sgm", "a", "b")
    public.sgml(tmp_path / "wmt14/dev/newstest2014-deen-ref.en.sgm", "a")
    records.bind(str(tmp_path))
    with pytest.raises(UserError, match="They have 2 and 1 sentences, which do not pair up"):
        records.Records("wmt14_translate/de-en:1.0.0").num_input_examples("test")
