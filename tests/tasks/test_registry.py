"""From a name to examples: the shipped tasks, own modules, and what is said when either is not there."""

import json
import time
from pathlib import Path

import pytest

from t5x_lite.errors import UserError
from tests.tasks.test_documents import write

registry = pytest.importorskip("t5x_lite.tasks.registry")

import seqio  # noqa: E402
import tensorflow as tf  # noqa: E402

DATA = Path(__file__).resolve().parents[3] / "shared/data"
PUBLIC = DATA / "vocab/t5_cc_all.32000/spiece.model"
LENGTHS = {"inputs": 64, "targets": 16}


def test_the_names():
    registry.prepare("text_span_corruption")
    shipped = {n for n in seqio.TaskRegistry.names() if n.endswith("_span_corruption")}
    assert shipped >= {
        "c4_v220_span_corruption", "c4_noclean_v220_span_corruption", "c4_realnewslike_v220_span_corruption",
        "c4_webtextlike_v220_span_corruption", "wikipedia_20190301_en_span_corruption", "text_span_corruption",
        "demo_span_corruption",
    }  # fmt: skip


def test_unknown_names_list_the_nearest():
    with pytest.raises(UserError, match=r"=tex_span_corupton is unknown.*Nearest: text_span_corruption"):
        registry.prepare("tex_span_corupton")


@pytest.mark.parametrize("name", ["c4_v220_span_corruption", "wikipedia_20190301_en_span_corruption"])
def test_data_that_is_not_there_is_refused_at_once(tmp_path, name):
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"The data of {name}, .*is not there. .*{tmp_path}.*DATA_DIR.*text_span_corr"):
        registry.prepare(name, data_dir=str(tmp_path))
    assert time.monotonic() - start < 10


def test_modules_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_tasks.py").write_text(
        "import functools, seqio\n"
        "from t5x_lite.tasks import sources, vocabulary\n"
        "from t5x_lite.tasks.objectives.named import OBJECTIVES\n"
        "from t5x_lite.tasks.objectives.preprocess import preprocess\n"
        "seqio.TaskRegistry.add('own_task', source=sources.Documents(sources.bound_files), preprocessors=[\n"
        "    functools.partial(seqio.preprocessors.rekey, key_map={'targets': 'text'}), seqio.preprocessors.tokenize,\n"
        "    functools.partial(preprocess, objective=OBJECTIVES['span_corruption_mean_2'])],\n"
        "    output_features={k: seqio.Feature(vocabulary.chosen()) for k in ('inputs', 'targets')})\n"
        "seqio.MixtureRegistry.add('own_mixture', ['own_task', 'text_span_corruption'], default_rate=1.0)\n"
    )
    glob = write(tmp_path / "a.txt", ["some text of one's own " * 30] * 40)
    for name in ("own_task", "own_mixture"):
        provider = registry.prepare(name, "own_tasks", "bytes", glob, glob)
        example = next(iter(provider.get_dataset({"inputs": 64, "targets": 30}, seed=0, num_epochs=1)))
        assert example["inputs"].shape == (64,)
    Path("broken_tasks.py").write_text("1 / 0")
    with pytest.raises(UserError, match=r"MODULE=broken_tasks cannot be imported. ZeroDivisionError: division by zero"):
        registry.prepare("own_task", "broken_tasks")
    with pytest.raises(UserError, match=r"MODULE=gone_tasks cannot be imported. ModuleNotFoundError.*looked for in"):
        registry.prepare("own_task", "gone_tasks")


def cached_text(folder):
    """A cache of `text_span_corruption` as seqio writes them: 30 documents of 20 to 49 tokens, and no file of text."""
    place = folder / "text_span_corruption"
    place.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(place / "train.tfrecord-00000-of-00001")) as file:
        for i in range(30):
            tokens = tf.train.Feature(int64_list=tf.train.Int64List(value=[3 + i] * (20 + i)))
            file.write(tf.train.Example(features=tf.train.Features(feature={"targets": tokens})).SerializeToString())
    features = {"targets": {"dtype": "int32", "shape": [None]}}
    (place / "info.train.json").write_text(
        json.dumps({"features": features, "num_shards": 1, "seqio_version": seqio.__version__})
    )
    (place / "stats.train.json").write_text(json.dumps({"examples": 30}))
    (place / "COMPLETED").touch()
    return str(folder)


@pytest.fixture
def no_caches():
    """No folder of caches and no cache found, as in a new process; and so for the next test."""

    def forget():
        seqio.set_global_cache_dirs([])
        if "text_span_corruption" in seqio.TaskRegistry.names():
            seqio.TaskRegistry.get("text_span_corruption")._cache_dir = None

    forget()
    yield
    forget()


def test_a_cached_task_is_read_from_its_cache_alone(tmp_path, no_caches):
    folder = cached_text(tmp_path / "caches")
    task = registry.prepare("text_span_corruption", None, "bytes", use_cached=True, cache_dir=folder)
    found = rows(task.get_dataset({"inputs": 30, "targets": 10}, use_cached=True, shuffle=False, seed=0))
    assert set(range(3, 33)) <= {token for inputs, targets in found for token in inputs + targets}


def test_a_task_that_is_not_cached_is_refused(tmp_path, no_caches):
    with pytest.raises(
        UserError,
        match=r"USE_CACHED_TASKS=True, but text_span_corruption is not cached. Seqio knows no folder of caches. "
        r"Set --gin.TASK_CACHE_DIR to .*, or --gin.USE_CACHED_TASKS=False",
    ):
        registry.prepare("text_span_corruption", None, "bytes", use_cached=True)
    with pytest.raises(UserError, match=f"No complete cache of it is in {tmp_path}"):
        registry.prepare("text_span_corruption", None, "bytes", use_cached=True, cache_dir=str(tmp_path))


@pytest.mark.skipif(not (DATA / "seqio_cached").exists(), reason="no cache that seqio wrote is on this machine")
def test_a_cache_that_seqio_wrote_is_found(no_caches):
    def add(name, *preprocessors):
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(lambda split, shuffle_files, seed=None: None, splits=["train"]),
            preprocessors=preprocessors,
            output_features={k: seqio.Feature(seqio.ByteVocabulary()) for k in ("inputs", "targets")},
        )

    add("cached_task", seqio.CacheDatasetPlaceholder(required=True))
    add("never_cached_task", seqio.preprocessors.append_eos)
    folder = str(DATA / "seqio_cached")
    task = registry.prepare("cached_task", use_cached=True, cache_dir=folder)
    assert task.get_cached_stats("train")["examples"] == 3
    with pytest.raises(UserError, match="USE_CACHED_TASKS=False, but cached_task is read from a cache only"):
        registry.prepare("cached_task", cache_dir=folder)
    assert registry.prepare("never_cached_task", use_cached=True)


def text_task(tmp_path, vocabulary="bytes"):
    texts = [f"document {i}: " + " ".join(str(i * j) for j in range(40)) for i in range(90)]
    glob = write(tmp_path / "a.jsonl", texts)
    return registry.prepare("text_span_corruption", None, vocabulary, glob, glob)


def rows(iterator, count=None):
    found = []
    for example in iterator:
        found.append((example["inputs"].numpy().tolist(), example["targets"].numpy().tolist()))
        if len(found) == count:
            break
    return found


def test_a_training_stream_resumes_exactly_in_a_later_epoch(tmp_path):
    def stream():
        shard = seqio.ShardInfo(1, 2)
        return iter(text_task(tmp_path).get_dataset(LENGTHS, seed=5, num_epochs=None, shard_info=shard))

    iterator = stream()
    an_epoch = 45 * 120 // 64
    rows(iterator, 3 * an_epoch)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "position"))
    expected = rows(iterator, 200)
    resumed = stream()
    tf.train.Checkpoint(iterator=resumed).read(path).assert_consumed()
    assert rows(resumed, 200) == expected


@pytest.mark.skipif(not PUBLIC.exists(), reason="the public T5 vocabulary is not on this machine")
def test_sentinels_of_the_public_vocabulary(tmp_path):
    for inputs, targets in rows(text_task(tmp_path, str(PUBLIC)).get_dataset(LENGTHS, seed=0, num_epochs=1), 5):
        sentinels = [t for t in targets if t >= 32000]
        assert sentinels == [t for t in inputs if t >= 32000] == [32099 - k for k in range(len(sentinels))]
        assert inputs[-1] == targets[-1] == 1 and len(inputs) == 64


@pytest.mark.skipif(not (DATA / "c4").exists(), reason="the sample of C4 is not on this machine")
def test_genuine_c4_as_tfrecord_shards():
    glob = str(DATA / "c4/tfds_c4_en_3.0.1/*.tfrecord-*")
    task = registry.prepare("text_span_corruption", None, "bytes", glob)
    assert len(rows(task.get_dataset(LENGTHS, seed=0, num_epochs=1), 100)) == 100
    texts = [x["text"].numpy().decode() for x in task.source.get_dataset("train", shuffle=False)]
    assert len(texts) > 100 and all(texts)


def test_tfds_data_is_read_where_it_is(tmp_path):
    import tensorflow_datasets as tfds

    folder = tmp_path / "c4/en/2.2.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
    write(folder / "c4-train.tfrecord-00000-of-00001", [f"{i} " * 60 for i in range(50)])
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=features, split_infos=[tfds.core.SplitInfo(
            name="train", shard_lengths=[50], num_bytes=1, filename_template=tfds.core.ShardedFileTemplate(
                data_dir=folder, dataset_name="c4", split="train", filetype_suffix="tfrecord"))], check_data=False,
    )  # fmt: skip
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(
        json.dumps({**info, "name": "c4", "version": "2.2.0", "configName": "en"})
    )
    task = registry.prepare("c4_v220_span_corruption", None, "bytes", data_dir=str(tmp_path))
    assert rows(task.get_dataset(LENGTHS, seed=0, num_epochs=1), 1)
