"""The source of downstream tasks: where it reads from, shards, saved positions, counts, and what it asks for."""

import functools
import json
import re
import shutil
from pathlib import Path

import pytest

from t5x_lite.errors import UserError
from tests.tasks.originals import public

records = pytest.importorskip("t5x_lite.tasks.records")

import seqio  # noqa: E402
import tensorflow as tf  # noqa: E402

from t5x_lite.tasks import fingerprint, originals, registry, sources  # noqa: E402
from t5x_lite.tasks.formats import squad  # noqa: E402
from t5x_lite.tasks.in_python import one_to_one  # noqa: E402

SAMPLES = Path(__file__).resolve().parents[3] / "shared/data"
DPR = "definite_pronoun_resolution:1.1.0"


@pytest.fixture(autouse=True)
def bound(tmp_path, monkeypatch):
    """DATA_DIR is an empty folder, and so is TFDS's own."""
    folder = tmp_path / "data [1]*"  # a name that a glob would not match
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    folder.mkdir()
    records.bind(str(folder))
    yield folder
    records.bind(None)
    for name in [name for name in seqio.TaskRegistry.names() if name.startswith("records_")]:
        seqio.TaskRegistry.remove(name)


def sentences(folder, count, name="CoLA/train.tsv", start=0):
    public.put(folder / name, *(f"s\t1\t\tsentence {k}" for k in range(start, start + count)))


def pages(folder, files, count):
    """mC4 in several files."""
    for shard in range(files):
        rows = ({"text": f"page {shard} {k}", "timestamp": "t", "url": "u"} for k in range(count))
        public.objects(folder / f"multilingual/c4-de.tfrecord-{shard:05}-of-{files:05}.json.gz", *rows)
    return records.Records("c4/multilingual:3.0.1", {"train": "de"})


def read(source, split="train", key=None, **how):
    """One feature, the first unless named, of each record."""
    dataset = source.get_dataset(split, **{"shuffle": False, **how})
    return [row[key or sorted(row)[0]] for row in dataset.as_numpy_iterator()]


def texts(source, **how):
    return [text.decode() for text in read(source, **how)]


def as_tfds(folder, name="glue/cola:1.0.0", sentences=("from TFDS",)):
    """The data set as TFDS stores it, with a feature more than there should be."""
    import tensorflow_datasets as tfds

    full, _, version = name.partition(":")
    rows = {"sentence": list(sentences), "label": [1] * len(sentences), "idx": list(range(len(sentences))),
            "more": [0] * len(sentences)}  # fmt: skip
    features = tfds.features.FeaturesDict({
        "sentence": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["no", "yes"]), "idx": tf.int32,
        "more": tf.int32})  # fmt: skip
    tfds.dataset_builders.store_as_tfds_dataset(
        name=full.partition("/")[0], config=full.partition("/")[2], version=version, data_dir=str(folder),
        features=features, split_datasets={"train": tf.data.Dataset.from_tensor_slices(rows)},
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# Where


def test_tfds_data_comes_before_original_files_and_data_dir_before_tfds_own_folder(bound, tmp_path):
    source = records.Records("glue/cola:1.0.0", ["train"])
    assert records.where("glue/cola:1.0.0", "train") is None
    sentences(bound, 2)
    assert records.where("glue/cola:1.0.0", "train") == str(bound / "CoLA/train.tsv")
    assert texts(source, key="sentence") == ["sentence 0", "sentence 1"] and source.tfds() is None
    spec = source.get_dataset("train").element_spec
    as_tfds(tmp_path / "own")
    assert records.where("glue/cola:1.0.0", "train") == f"TFDS glue/cola:1.0.0 in {tmp_path / 'own'}"
    assert texts(source, key="sentence") == ["from TFDS"]
    assert source.get_dataset("train").element_spec == spec
    as_tfds(bound, sentences=["a", "b", "c"])
    assert records.where("glue/cola", "train") == f"TFDS glue/cola in {bound}"
    assert sorted(texts(source, key="sentence")) == ["a", "b", "c"]
    assert source.num_input_examples("train") == 3
    parts = [texts(source, key="sentence", shard_info=seqio.ShardInfo(k, 2)) for k in range(2)]
    assert sorted(sum(parts, [])) == ["a", "b", "c"] and all(parts)
    records.bind(None)
    assert texts(source, key="sentence") == ["from TFDS"]


def test_another_version_of_tfds_is_not_taken(bound):
    as_tfds(bound, "glue/cola:2.0.0")
    assert records.where("glue/cola:1.0.0", "train") is None and records.where("glue/cola:2.0.0", "train")


def test_tfds_data_through_a_task_is_read_where_it_lies(bound, monkeypatch):
    """DATA_DIR is seqio's folder of TFDS data too, and nothing is ever downloaded."""
    as_tfds(bound)
    monkeypatch.setattr("tensorflow_datasets.core.DatasetBuilder.download_and_prepare", None)
    provider = seqio.TaskRegistry.add(
        "records_of_tfds", records.Records("glue/cola:1.0.0", {"train": "train"}), preprocessors=[],
        output_features={"idx": seqio.Feature(seqio.PassThroughVocabulary(9), rank=0, dtype=tf.int32)},
    )  # fmt: skip
    registry.prepare("records_of_tfds", None, "bytes", data_dir=str(bound))
    assert provider.num_input_examples("train") == 1
    assert "TFDS glue/cola:1.0.0 in 1 files" in str(fingerprint.of(provider, False))


def test_nothing_there_says_what_to_get_both_ways(bound, tmp_path):
    source = records.Records("glue/cola:1.0.0")
    with pytest.raises(UserError) as caught:
        source.get_dataset("validation")
    for part in (
        "The data of glue/cola:1.0.0, split validation, is not there", f"looked for in {bound}/glue/cola/1.0.0 and ",
        f"{tmp_path}/own/glue/cola/1.0.0", f"missing is dev.tsv in {bound}/CoLA", "--gin.DATA_DIR",
        f"tfds.load('glue/cola:1.0.0', data_dir='{bound}')",
        f"download https://dl.fbaipublicfiles.com/glue/data/CoLA.zip, so that the files lie in {bound}/CoLA",
    ):  # fmt: skip
        assert part in str(caught.value), part
    for use in (source.check, functools.partial(source.list_shards, "train"),
                functools.partial(source.num_input_examples, "train")):  # fmt: skip
        with pytest.raises(UserError, match="The data of glue/cola:1.0.0, split train, is not there"):
            use()
    records.bind(None)
    with pytest.raises(UserError, match="DATA_DIR is not set. TFDS data is looked for in .*own/glue/cola/1.0.0"):
        source.check()
    with pytest.raises(UserError, match="data_dir='/path/to/data'"):
        source.check()


def test_a_data_dir_that_is_none_is_said_first(bound, tmp_path):
    source = records.Records("glue/cola:1.0.0")
    (tmp_path / "file").touch()
    for name, reason in {"nowhere": "does not exist", "file": "is a file, not a folder"}.items():
        records.bind(str(tmp_path / name))
        with pytest.raises(UserError, match=f"is not there. DATA_DIR={tmp_path / name} {reason}. TFDS data is looked"):
            source.check()


def test_other_names_of_missing_files_are_given(bound):
    with pytest.raises(
        UserError, match=r"missing is val.jsonl in .*/BoolQ, or in their place dev.jsonl or validation.jsonl"
    ):
        records.Records("super_glue/boolq", ["validation"]).check()
    with pytest.raises(UserError) as caught:
        records.Records("wmt14_translate/de-en", ["train"]).check()
    assert "or in their place train.de-en.de with train.de-en.en or train.en-de.de with " in str(caught.value)
    with pytest.raises(UserError, match="in their place( (or )?val\\S+){1,4}[.,]"):
        records.Records("xsum", ["validation"]).check()


def test_a_set_of_files_that_is_not_complete_is_not_read(bound):
    for language in ("de", "en"):
        public.put(bound / f"wmt14/commoncrawl.de-en.{language}", "one")
    public.put(bound / "wmt14/training/europarl-v7.de-en.de", "one")
    source = records.Records("wmt14_translate/de-en:1.0.0")
    message = (
        r"missing is europarl-v7.de-en.de, europarl-v7.de-en.en, news-commentary-v9.de-en.de, "
        r"news-commentary-v9.de-en.en in .*wmt14 \(of its files commoncrawl.de-en.de, commoncrawl.de-en.en is there\)"
    )
    with pytest.raises(UserError, match=message):
        source.get_dataset("train")


def test_a_source_with_some_of_its_splits_passes(bound):
    sentences(bound, 1, "CoLA/dev.tsv")
    records.Records("glue/cola:1.0.0").check()


def test_every_data_set_says_what_it_wants(bound):
    for name, data in originals.DATA_SETS.items():
        for split in list(data.splits)[:4]:
            with pytest.raises(UserError, match=rf"(?s)The data of {name}, split {split}, .*download http"):
                records.Records(name, [split]).check()
        # To be copied as they stand.
        assert not re.search("[{}]", data.download) and "there" not in data.download.split()
        assert not re.search(r"(^|[ (])(?!https?://)[\w.-]+/[\w./-]+\.(tgz|tar|zip|gz|json|txt|tsv)", data.download)


def test_unknown_names(bound):
    with pytest.raises(UserError, match="original files of glue/colla:1.0.0 are unknown. .*Nearest: glue/cola"):
        records.Records("glue/colla:1.0.0")
    with pytest.raises(UserError, match="glue/mnli has no split validation. It has train, validation_matched"):
        records.Records("glue/mnli", ["validation"])


def test_splits_are_all_unless_chosen():
    assert records.Records("glue/ax:1.0.0").splits == ("test",)
    assert records.Records("glue/mnli:1.0.0", {"validation": "validation_matched"}).splits == ("validation",)


# ----------------------------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 8])
def test_shards_partition_the_records(bound, shards):
    source = pages(bound, files=5, count=130)
    expected = sorted(texts(source))
    assert len(expected) == 650
    for shuffle in (False, True):
        parts = [
            texts(source, shard_info=seqio.ShardInfo(k, shards), shuffle=shuffle, seed=1) for k in range(shards)
        ]  # fmt: skip
        assert sorted(sum(parts, [])) == expected
        assert max(map(len, parts)) - min(map(len, parts)) <= 5


@pytest.mark.parametrize("shards", [1, 3])
def test_a_file_without_records_is_named_and_a_shard_without_any_passes(bound, shards):
    def parts():
        return [texts(source, shard_info=seqio.ShardInfo(k, shards)) for k in range(shards)]

    source = pages(bound, files=1, count=1)
    assert sorted(map(len, parts())) == [0] * (shards - 1) + [1]
    public.put(bound / "multilingual/c4-de.tfrecord-00000-of-00001.json.gz", "", " ")
    with pytest.raises(tf.errors.OpError) as caught:
        parts()
    explained = str(sources.explain(caught.value))
    assert re.search(r"c4-de\S+ cannot be read. It holds no records", explained), explained


def test_order_follows_the_seed_and_changes_from_epoch_to_epoch(bound):
    sentences(bound, 300)
    source = records.Records("glue/cola:1.0.0", ["train"])

    def epochs(seed):
        rows = [r["idx"] for r in source.get_dataset("train", seed=seed).repeat(2).as_numpy_iterator()]
        return rows[:300], rows[300:]

    first, second = epochs(1)
    assert (first, second) == epochs(1) and first != second and sorted(first) == sorted(second) == list(range(300))
    assert epochs(2)[0] != first
    assert read(source, key="idx") == list(range(300))


DATA = ["glue/cola", "glue/mrpc", "super_glue/record", "super_glue/multirc", "definite_pronoun_resolution",
        "squad/v1.1", "trivia_qa/rc", "wmt14_translate/de-en", "wmt19_translate/de-en", "cnn_dailymail"]  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_a_saved_position_resumes_exactly(name, bound, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_UNITS_AT_ONCE", 3)
    public.write(bound)
    source = records.Records(name, ["train"])

    def dataset():
        return source.get_dataset("train", seed=3).repeat(3)

    whole = [*map(str, dataset().as_numpy_iterator())]
    assert len(whole) == 3 * source.num_input_examples("train")
    for taken in (1, len(whole) // 2, len(whole) - 1):
        iterator = iter(dataset())
        for _ in range(taken):
            next(iterator)
        path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / f"position{taken}"))
        records._open.clear()  # as in another process
        resumed = iter(dataset())
        tf.train.Checkpoint(iterator=resumed).read(path).assert_consumed()
        assert [str(tf.nest.map_structure(lambda x: x.numpy(), row)) for row in resumed] == whole[taken:]


def test_two_readers_of_a_file_do_not_disturb_each_other(bound):
    sentences(bound, 400)
    source = records.Records("glue/cola:1.0.0", ["train"])
    one, two = (iter(source.get_dataset("train", shuffle=False).as_numpy_iterator()) for _ in range(2))
    rows = [next(one)["idx"] for _ in range(150)]
    assert [row["idx"] for row in two] == list(range(400))
    assert rows + [row["idx"] for row in one] == list(range(400))


def test_a_file_is_opened_once_however_long_it_is(bound, monkeypatch):
    sentences(bound, 2000)
    opened = []
    from t5x_lite.tasks import documents

    monkeypatch.setattr(documents, "open_file", lambda path: opened.append(path) or open(path, "rb"))
    assert len(read(records.Records("glue/cola:1.0.0", ["train"]))) == 2000 and len(opened) == 1


def test_a_large_file_is_not_held_in_memory(bound, monkeypatch):
    """Lines are taken from the file as records are asked for."""
    sentences(bound, 100_000)
    taken = []
    real = originals.reading.lines

    def lines(path):
        for line in real(path):
            taken.append(None)
            yield line

    monkeypatch.setattr("t5x_lite.tasks.originals.glue.lines", lines)
    dataset = records.Records("glue/cola:1.0.0", ["train"]).get_dataset("train", shuffle=False)
    assert len([*dataset.take(10)]) == 10 and 0 < len(taken) < 20_000


def test_a_task_resumes_exactly(bound, tmp_path):
    """With seqio's memory of small data sets in between."""
    sentences(bound, 50)
    task = seqio.TaskRegistry.add(
        "records_resumed", records.Records("glue/cola:1.0.0", ["train"]),
        preprocessors=[functools.partial(seqio.preprocessors.rekey, key_map={"targets": "sentence"}),
                       seqio.preprocessors.tokenize],
        output_features={"targets": seqio.Feature(seqio.ByteVocabulary(), add_eos=False)},
    )  # fmt: skip

    def dataset():
        return task.get_dataset({"targets": 30}, split="train", seed=5, num_epochs=None)

    whole = [str(row["targets"]) for row in dataset().take(170).as_numpy_iterator()]
    for taken in (20, 70):
        iterator = iter(dataset())
        for _ in range(taken):
            next(iterator)
        path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / f"task{taken}"))
        resumed = iter(dataset())
        tf.train.Checkpoint(iterator=resumed).read(path).assert_consumed()
        assert [str(next(resumed)["targets"].numpy()) for _ in range(100)] == whole[taken : taken + 100]


# ----------------------------------------------------------------------------------------------------------------------
# Counts and digests


def test_a_count_is_kept_until_a_file_changes(bound, monkeypatch):
    public.write(bound)
    for name in DATA:
        source = records.Records(name, ["train"])
        count = source.num_input_examples("train")
        assert count == len(read(source))
        with monkeypatch.context() as patched:
            patched.setattr(records, "_count_part", None)
            assert records.Records(name, ["train"]).num_input_examples("train") == count
    sentences(bound, 7)
    assert records.Records("glue/cola", ["train"]).num_input_examples("train") == 7


def test_splits_of_the_same_files_are_counted_each(bound):
    public.write(bound)
    source = records.Records("glue/mrpc:1.0.0")
    assert [source.num_input_examples(split) for split in ("train", "validation", "test")] == [4, 2, 2]


def test_files_are_known_by_name_and_size_wherever_they_lie(bound, tmp_path):
    public.write(bound)
    task = seqio.TaskRegistry.add(
        "records_known", records.Records("wmt14_translate/de-en:1.0.0"), preprocessors=[],
        output_features={"de": seqio.Feature(seqio.ByteVocabulary())},
    )  # fmt: skip
    here = fingerprint.of(task, False)
    assert "6 files of " in str(here)
    shutil.copytree(bound, tmp_path / "copy")
    records.bind(str(tmp_path / "copy"))
    assert fingerprint.of(task, False) == here
    with (tmp_path / "copy/wmt14/commoncrawl.de-en.de").open("a") as file:
        file.write("more\n")
    assert fingerprint.of(task, False) != here


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_record_that_a_format_refuses_is_found_in_its_file(bound, shuffle):
    def asked(number, *answers):
        given = [{"text": answer, "answer_start": 0} for answer in answers]
        return {"id": str(number), "question": "q", "answers": given, "is_impossible": not answers}

    paragraphs = [{"context": "c é", "qas": [asked(k, "c") for k in range(99)]}, {"context": "d", "qas": [asked(99)]}]
    public.put(bound / "squad/train-v1.1.json", json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    spec = {name: tf.TensorSpec([], tf.string) for name in ("inputs", "targets")}
    dataset = records.Records("squad/v1.1:3.0.0").get_dataset("train", shuffle=shuffle, seed=1)
    with pytest.raises(tf.errors.OpError) as caught:
        list(one_to_one(squad.squad, spec)(dataset))
    where = re.escape(str(bound / "squad/train-v1.1.json"))
    said = rf'Question 100 of {where} gives no example: {{"id": "99".*\. The list of its answers is empty.*\(squad\)\.'
    assert re.match(said, str(sources.explain(caught.value)))


def test_a_record_with_numbers_that_were_rounded_is_found(bound):
    rows = ["sentence1\tsentence2\tscore", "a\tb\t0.1", "a\tb\t3.7"]
    public.put(bound / "STS-B/train.tsv", *rows)

    def low(record):
        if record["label"] > 3:
            raise ValueError("its label is high")
        return record

    dataset = records.Records("glue/stsb:1.0.0").get_dataset("train", shuffle=False)
    with pytest.raises(tf.errors.OpError) as caught:
        list(one_to_one(low, {"label": tf.TensorSpec([], tf.float32)})(dataset))
    assert str(sources.explain(caught.value)).startswith(f"Line 3 of {bound / 'STS-B/train.tsv'} gives no example: ")


def test_a_task_without_data_is_refused_before_anything_else(bound):
    seqio.TaskRegistry.add(
        "records_absent", records.Records(DPR), preprocessors=[],
        output_features={"label": seqio.Feature(seqio.PassThroughVocabulary(2))},
    )  # fmt: skip
    with pytest.raises(UserError, match=rf"The data of {DPR}, split train, is not there"):
        registry.prepare("records_absent", None, "bytes", data_dir=str(bound))
    public.put(bound / "test.c.txt", "A b c.", "b", "A,c", "A", "")
    assert registry.prepare("records_absent", None, "bytes", data_dir=str(bound)).name == "records_absent"


# ----------------------------------------------------------------------------------------------------------------------
# Real files


@pytest.mark.skipif(not SAMPLES.exists(), reason="no samples of public data are on this machine")
def test_real_files(bound):
    for name, source in {
        "BoolQ/train.jsonl": "superglue/BoolQ/train32.jsonl", "BoolQ/val.jsonl": "superglue/BoolQ/dev32.jsonl",
        "COPA/train.jsonl": "superglue/COPA/train32.jsonl", "WSC/train.jsonl": "superglue/WSC/train32.jsonl",
        "WSC/val.jsonl": "superglue/WSC/dev32.jsonl", "squad/dev-v1.1.json": "squad/squad_v1_sample.json",
    }.items():  # fmt: skip
        (bound / name).parent.mkdir(exist_ok=True)
        (bound / name).symlink_to(SAMPLES / source)
    (bound / "STS-B").symlink_to(SAMPLES / "glue/STS-B")
    counts = {
        ("super_glue/boolq:1.0.2", "train"): 32, ("super_glue/boolq:1.0.2", "validation"): 32,
        ("super_glue/copa:1.0.2", "train"): 32, ("super_glue/wsc.fixed:1.0.2", "train"): 32,
        ("super_glue/wsc.fixed:1.0.2", "validation"): 32, ("squad/v1.1:3.0.0", "validation"): 14,
        ("glue/stsb:1.0.0", "train"): 5749,
    }  # fmt: skip
    for (name, split), count in counts.items():
        source = records.Records(name, [split])
        assert source.num_input_examples(split) == count == len(read(source, split))
    scores = read(records.Records("glue/stsb", ["train"]), key="label")
    assert min(scores) == 0 and max(scores) == 5
