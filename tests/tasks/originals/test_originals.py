"""Original files: every data set gives what TFDS makes of the same files."""

import itertools
import json
import os
import re
import subprocess
import sys

import pytest

from t5x_lite.tasks import originals
from tests.tasks.originals import public

records = pytest.importorskip("t5x_lite.tasks.records")

import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402

from tests.tasks.originals.reading import plain, read  # noqa: E402


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return public.write(tmp_path_factory.mktemp("public"))


def in_order(rows):
    return sorted((plain(row) for row in rows), key=lambda row: json.dumps(row, sort_keys=True))


# ----------------------------------------------------------------------------------------------------------------------
# Against TFDS


class Downloads:
    """In place of TFDS's download manager: what it would have downloaded lies in a folder already."""

    downloaded_size = 0
    manual_dir = "none"

    def __init__(self, folder, root):
        self.files = {path.name: path for path in folder.rglob("*") if path.is_file()}
        self.root = root

    def _here(self, url):
        name = {"2BOtOJ7": "AX.tsv"}.get(os.path.basename(url), os.path.basename(url))
        name = "dev_ids.tsv" if "mrpc_dev_ids" in name else name
        return str(self.files.get(name, self.root))

    def download(self, urls):
        return tf.nest.map_structure(self._here, urls)

    download_and_extract = download

    def extract(self, paths):
        return paths


VERSIONS = {"glue": "2.0.0", "super_glue": "1.0.2", "squad": "3.0.0", "trivia_qa": "1.1.0",
            "definite_pronoun_resolution": "1.1.0"}  # fmt: skip
# What TFDS can make of small files: not what it takes from stories, XML or Beam.
OF_TFDS = [
    *(name for name in originals.DATA_SETS if name.split("/")[0] in VERSIONS),
    "natural_questions_open", "wmt14_translate/de-en", "wmt15_translate/fr-en",
]  # fmt: skip


def prepared(name, folder, data_dir):
    """TFDS's own data of the files below data_dir; returns the name with its version."""
    version = VERSIONS.get(name.split("/")[0], "1.0.0")
    builder = tfds.builder(f"{name}:{version}", data_dir=str(folder))
    year = name.partition("_translate")[0]
    root = {"trivia_qa/rc": data_dir / "triviaqa-rc", "trivia_qa/rc.nocontext": data_dir / "triviaqa-rc"}.get(name)
    builder._make_download_manager = lambda *_, **__: Downloads(
        data_dir, root or (data_dir / year if year.startswith("wmt") and "translate" in name else data_dir)
    )
    builder.download_and_prepare(file_format="tfrecord")
    return f"{name}:{version}"


@pytest.mark.parametrize("name", OF_TFDS)
def test_the_records_are_those_of_tfds(name, data_dir, tmp_path):
    full = prepared(name, tmp_path / "tfds", data_dir)
    for split in originals.DATA_SETS[name].splits:
        ours, from_files = read(data_dir, full, split)
        theirs, from_tfds = read(tmp_path / "tfds", full, split)
        assert in_order(from_files) == in_order(from_tfds) and from_files
        assert ours.element_spec == theirs.element_spec
        source = records.Records(full)
        assert source.tfds() is not None and source.num_input_examples(split) == len(from_files)
        assert records.where(full, split) == f"TFDS {full} in {tmp_path / 'tfds'}"


@pytest.mark.parametrize("name", [name for name in originals.DATA_SETS if "translate" in name])
def test_translation_corpora_are_those_of_tfds(name):
    from tensorflow_datasets.translate import wmt

    builder = tfds.builder(f"{name}:1.0.0", data_dir="/nowhere")
    pair = builder.builder_config.language_pair
    data = originals.DATA_SETS[name]
    assert sorted(data.splits) == sorted(map(str, builder.subsets))
    for split, subsets in builder.subsets.items():
        theirs = set()
        for subset in subsets:
            paths = [path or url for path, url in itertools.zip_longest(
                wmt.DATASET_MAP[subset].get_path(pair[0]), wmt.DATASET_MAP[subset].get_url(pair[0]))
                if path is not None]  # fmt: skip
            theirs.update(os.path.basename(path).removesuffix(".gz") for path in paths)
        ours = {name for files in data.splits[split][0] for name in files.names}
        # Two corpora are XML with TFDS and text here.
        other = {
            "en-ro.tmx": {"SETIMES.en-ro.ro", "SETIMES.en-ro.en"},
            "en-de.bicleaner07.tmx": {"en-de.bicleaner07.txt"},
        }
        for xml, texts in other.items():
            theirs = theirs - {xml} | texts if xml in theirs else theirs
        theirs = {re.sub(r".*=SETIMES/v2/tmx/", "", path) for path in theirs}
        assert ours == theirs


def test_the_tables_are_read_without_tensorflow():
    code = "import sys, t5x_lite.tasks.originals; assert not {'tensorflow', 'seqio', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_languages_are_those_of_tfds():
    from tensorflow_datasets.text import c4

    assert list(originals.c4.LANGUAGES) == c4.MC4_LANGUAGES


# ----------------------------------------------------------------------------------------------------------------------
# What TFDS cannot read, or reads otherwise


def test_a_name_is_read_with_and_without_compression(data_dir, tmp_path):
    for path in (data_dir / "CoLA").iterdir():
        public.put(tmp_path / "glue/CoLA" / f"{path.name}.gz", path.read_text(), end="")
    for split in ("train", "validation", "test"):
        assert read(tmp_path, "glue/cola:1.0.0", split)[1] == read(data_dir, "glue/cola:1.0.0", split)[1]


def test_paraphrases_in_three_files(tmp_path):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    public.put(tmp_path / "MRPC/train.tsv", header, "1\t70\t80\tA\tB", "0\t71\t81\tC\tD")
    public.put(tmp_path / "MRPC/test.tsv", "index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t1\t2\tE\tF")
    assert plain(read(tmp_path, "glue/mrpc:1.0.0", "train")[1][1]) == {
        "sentence1": "C", "sentence2": "D", "label": 0, "idx": 1
    }  # fmt: skip
    assert [plain(row)["label"] for row in read(tmp_path, "glue/mrpc:1.0.0", "test")[1]] == [-1]


def test_similarity_in_comma_separated_files(tmp_path):
    public.put(tmp_path / "STS-B/stsb-en-test.csv", 'A plane.,"An air, ""plane"".",4.25', "é,b,0.5", end="\r\n")
    dataset, rows = read(tmp_path, "glue/stsb:1.0.0", "test")
    assert [plain(row) for row in rows] == [
        {"sentence1": "A plane.", "sentence2": 'An air, "plane".', "label": 4.25, "idx": 0},
        {"sentence1": "é", "sentence2": "b", "label": 0.5, "idx": 1},
    ]
    assert dataset.element_spec["label"].dtype == tf.float32


def test_questions_with_their_contexts_side_by_side(tmp_path):
    answers = {"text": ["a", "b"], "answer_start": [1, 2]}
    rows = [{"id": "1", "question": "Q", "context": "C", "answers": answers}]
    public.put(tmp_path / "dev-v1.1.json", json.dumps({"version": 2.0, "data": rows}))
    (row,) = read(tmp_path, "squad/v1.1:3.0.0", "validation")[1]
    assert plain(row) == {**rows[0], "title": ""}


def test_questions_with_one_short_answer(data_dir):
    name = "natural_questions_simplified"
    assert [plain(row) for row in read(data_dir, name, "train")[1]] == [
        {"question": "who is it?", "answer": "Big Bird"}
    ]
    assert [plain(row) for row in read(data_dir, name, "validation")[1]] == [{"question": "who?", "answer": '"he'}]


def test_articles_are_told_apart_by_json_not_by_white_space(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("t5x_lite.tasks.originals.questions._CHUNK", 50)
    name = "trivia_qa/unfiltered.nocontext:1.1.0"
    source = data_dir / "triviaqa-unfiltered/unfiltered-web-train.json"
    for indent in (None, 1):
        content = json.dumps(json.loads(source.read_text()), indent=indent)
        public.put(tmp_path / "triviaqa-unfiltered" / source.name, content)
        assert in_order(read(tmp_path, name, "train")[1]) == in_order(read(data_dir, name, "train")[1])


def test_summaries(data_dir):
    for name, fields in (("cnn_dailymail:3.4.0", {"article", "highlights"}), ("xsum:1.1.0", {"document", "summary"})):
        for split in ("train", "validation", "test"):
            rows = read(data_dir, name, split)[1]
            assert len(rows) == 3 and all(set(row) == fields for row in rows)


def test_translations_in_every_form(data_dir, tmp_path):
    def sides(name, split, folder=data_dir):
        return [(row["de"].decode(), row["en"].decode()) for row in read(folder, name, split)[1]]

    assert ("das Deutsche", "the English") in sides("wmt19_translate/de-en:1.0.0", "train")
    assert (public.AWKWARD, "x") in sides("wmt19_translate/de-en:1.0.0", "train")
    assert sides("wmt_t2t_translate/de-en:1.0.0", "test") == [("one", "one"), ("two", "two")]
    # A carriage return in a sentence is no end of it.
    assert ("a\rb ", " c") in sides("wmt14_translate/de-en:1.0.0", "train")
    public.put(tmp_path / "wmt14/train.en-de.tsv", "English\tDeutsch")
    assert sides("wmt14_translate/de-en:1.0.0", "train", tmp_path) == [("Deutsch", "English")]


def test_web_pages_of_a_language(data_dir):
    source = records.Records("c4/multilingual:3.0.1", {"train": "bg-Latn", "validation": "bg-Latn-validation"})
    records.bind(str(data_dir))
    assert len(source.list_shards("train")) == 3 and source.num_input_examples("train") == 15
    assert source.num_input_examples("validation") == 5
    texts = {row["text"].decode() for row in source.get_dataset("train", shuffle=False).as_numpy_iterator()}
    assert len(texts) == 15 and all("bg-Latn" in text for text in texts)
