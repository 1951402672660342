"""What a task reads, known again: wherever it lies, and not when it is something else."""

import gzip
import shutil

import pytest
import seqio
import tensorflow as tf

from t5x_lite.data import examples
from t5x_lite.errors import UserError
from t5x_lite.tasks import fingerprint, registry
from t5x_lite.verbs import train
from tests.tasks.originals import public

FEATURES = {"targets": seqio.Feature(seqio.ByteVocabulary())}


def task(name, source):
    name = f"fingerprint_{name}"
    seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(name, source=source, preprocessors=[], output_features=FEATURES)


def lines(pattern):
    return task("lines", seqio.TextLineDataSource({"train": str(pattern)}))


def test_files_are_known_by_name_and_size(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    (tmp_path / "here/a.txt").write_text("one\ntwo\n")
    (tmp_path / "here/b.txt").write_text("three\n")
    here = fingerprint.of(lines(tmp_path / "here/*"), False)
    assert list(here) == ["the data of fingerprint_lines"] and "2 files of 14 bytes" in str(here)
    for path in (tmp_path / "here").iterdir():
        shutil.copy(path, tmp_path / "there")
    assert fingerprint.of(lines(tmp_path / "there/*"), False) == here
    (tmp_path / "there").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/b.txt").rename(tmp_path / "elsewhere/c.txt")
    assert fingerprint.of(lines(tmp_path / "elsewhere/*"), False) != here
    assert fingerprint.of(lines(tmp_path / "here/a*"), False) != here


def test_a_function_has_no_files_whatever_the_working_directory_holds(tmp_path, monkeypatch):
    source = seqio.FunctionDataSource(lambda split, shuffle_files: tf.data.Dataset.range(3), splits=["train"])
    function = task("function", source)
    before = fingerprint.of(function, False)
    (tmp_path / "train").mkdir()
    monkeypatch.chdir(tmp_path)
    assert fingerprint.of(function, False) == before


def test_rates_of_a_mixture_count(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    lines(tmp_path / "a.txt")
    found = []
    for rate in (1.0, 0.5):
        seqio.MixtureRegistry.remove("fingerprint_mixture")
        mixture = seqio.MixtureRegistry.add("fingerprint_mixture", [("fingerprint_lines", rate)])
        found.append(fingerprint.of(mixture, False))
    assert found[0] != found[1]


def test_a_task_without_training_data_is_refused(tmp_path):
    message = r"the split train of fingerprint_lines has no files\. What its source names matches none"
    with pytest.raises(UserError, match=message):
        fingerprint.of(lines(tmp_path / "none*"), False)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n"))
    other = task("validation", seqio.TextLineDataSource({"validation": str(tmp_path / "a.txt.gz")}))
    with pytest.raises(UserError, match=r"fingerprint_validation has no split train\. It has validation\."):
        fingerprint.of(other, False)


@pytest.mark.parametrize("name, evaluated", [
    ("glue_v002_proportional", {"glue_ax_v002", "glue_mnli_matched_v002", "glue_mnli_mismatched_v002"}),
    (
        "super_glue_v102_proportional",
        {"super_glue_axb_v102", "super_glue_axg_v102", "super_glue_wsc_v102_simple_eval"},
    ),
])  # fmt: skip
def test_tasks_of_a_mixture_without_a_training_split_are_evaluated_only(name, evaluated, tmp_path, capsys):
    mixture = registry.prepare(name, vocabulary="bytes", data_dir=str(public.write(tmp_path)))
    trained = {member.name for member in mixture.tasks} - evaluated
    assert set(fingerprint.of(mixture, False)) == {f"the data of {member}" for member in trained}
    train._say_untrained(mixture)
    assert capsys.readouterr().err == f"without a split train, so not trained on: {', '.join(sorted(evaluated))}\n"
    if name.startswith("glue"):
        lengths = {"inputs": 400, "targets": 20}
        streams = examples.train_streams(mixture, [0], 1, lengths, False, 0, False, lambda error: None)
        assert len(streams[0].take(8)) == 8
        streams[0].close()
    seqio.MixtureRegistry.remove("fingerprint_untrained")
    nothing = seqio.MixtureRegistry.add("fingerprint_untrained", sorted(evaluated), default_rate=1.0)
    with pytest.raises(UserError, match=r"fingerprint_untrained has no split train\. It has test, validation"):
        fingerprint.of(nothing, False)
