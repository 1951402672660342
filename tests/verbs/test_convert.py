"""Models between formats by the command line: there and back, fine-tuned on, and refused where they cannot go."""

import contextlib
import dataclasses
import errno
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file

from t5x_lite import cli, model_dir
from t5x_lite.train import checkpoint
from t5x_lite.verbs import convert

REFERENCES = Path(__file__).parents[1] / "references"


def params(directory):
    with model_dir.restored(str(directory), (), ()) as model:
        return jax.device_get(model.params)


@pytest.fixture(scope="module")
def there_and_back(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    assert cli.run(["convert", "--from=native", f"--input={trained}", f"--output={folder}/hf"]) == 0
    assert cli.run(["convert", "--from=hf", f"--input={folder}/hf", f"--output={folder}/native"]) == 0
    return folder


def test_there_and_back_is_the_same_model(there_and_back, trained):
    back, original = (jax.tree_util.tree_leaves_with_path(params(d)) for d in (there_and_back / "native", trained))
    for (path, one), (other_path, other) in zip(back, original, strict=True):
        assert path == other_path
        np.testing.assert_array_equal(one, other, err_msg=str(path))
    vocabulary = (trained / "vocabulary.model").read_bytes()
    assert (there_and_back / "native/vocabulary.model").read_bytes() == vocabulary
    assert not (there_and_back / "native/DONE").exists()
    assert {path.name for path in there_and_back.iterdir()} == {"hf", "native"}


def test_both_complete_texts_alike(there_and_back, trained, capfd):
    def completed(directory):
        flags = ["--text=ka lo <extra_id_0>", "--max_decode_length=5"]
        assert cli.run(["infer", f"--checkpoint={directory}", *flags]) == 0
        return capfd.readouterr().out

    assert completed(there_and_back / "native") == completed(trained)


def test_a_converted_model_is_fine_tuned(there_and_back, trained, train_flags, tmp_path):
    flags = train_flags(tmp_path / "m", INITIAL_CHECKPOINT_PATH=there_and_back / "native", TRAIN_STEPS=2, EVAL_PERIOD=0)
    assert cli.run(flags) == 0
    (line,) = [json.loads(line) for line in (tmp_path / "m/metrics.jsonl").read_text().splitlines()]
    first = json.loads((trained / "metrics.jsonl").read_text().splitlines()[0])
    assert line["step"] == 2 and line["loss"] < first["loss"] - 0.5
    assert set(checkpoint.contents(epath.Path(tmp_path) / "m/checkpoints/2")) >= {"opt_state"}


def test_a_converted_model_runs_on_from_its_own_configuration(there_and_back, corpus, tmp_path):
    macros = {
        "MODEL_DIR": tmp_path / "m", "INITIAL_CHECKPOINT_PATH": there_and_back / "native", "TRAIN_STEPS": 1,
        "MIXTURE_OR_TASK_NAME": "text_span_corruption", "DATA_GLOB": corpus / "train-*", "BATCH_SIZE": 8,
        "VOCABULARY": there_and_back / "native/vocabulary.model", "EVAL_PERIOD": 0,
        "TASK_FEATURE_LENGTHS": {"inputs": 40, "targets": 16},
    }  # fmt: skip
    config = f"--gin_file={there_and_back}/native/config.gin"
    assert cli.run(["train", config, *(f"--gin.{k}={v}" for k, v in macros.items())]) == 0
    assert (tmp_path / "m/DONE").exists()


@pytest.mark.parametrize("version", ["hf_t5_1_0", "hf_t5_1_1"])
def test_directories_of_transformers_come_back_with_their_tensors(version, tmp_path):
    assert cli.run(["convert", "--from=hf", f"--input={REFERENCES / version}", f"--output={tmp_path}/native"]) == 0
    assert cli.run(["convert", "--from=native", f"--input={tmp_path}/native", f"--output={tmp_path}/hf"]) == 0
    original = load_file(REFERENCES / version / "model.safetensors")
    back = load_file(tmp_path / "hf/model.safetensors")
    for name in original.keys() & back.keys():
        np.testing.assert_array_equal(original[name], back[name], err_msg=name)
    assert "shared.weight" in original.keys() & back.keys()
    assert not any("embed_tokens" not in name for name in original.keys() ^ back.keys())


def test_a_converted_model_is_evaluated_on_the_task_that_is_named(there_and_back, corpus, tmp_path, capfd):
    flags = ["eval", f"--checkpoint={there_and_back}/native", f"--output_dir={tmp_path}"]
    error = refused(capfd, *flags)
    assert re.search(r"no --mixture_or_task is given\. .* was converted.* [Gg]ive --mixture_or_task=NAME", error), error
    assert not any(tmp_path.iterdir())
    lengths = {"inputs": 40, "targets": 16}
    data = [f"--gin.VALIDATION_GLOB={corpus}/validation.jsonl", f"--gin.TASK_FEATURE_LENGTHS={lengths}"]
    assert cli.run([*flags, "--mixture_or_task=text_span_corruption", "--num_examples=3", *data]) == 0
    assert "text_span_corruption  step 0  loss" in capfd.readouterr().out


@pytest.fixture
def bucket(trained, monkeypatch):
    """gs://bucket/model, which lies in a local folder."""

    class Bucket(epath.backend._OsPathBackend):
        def __getattribute__(self, name):
            found = super().__getattribute__(name)
            if name.startswith("_"):
                return found
            return lambda path, *more: found(str(path).replace("gs://bucket", str(trained.parent)), *more)

    monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)  # whose own gs:// would come first
    monkeypatch.setitem(epath.gpath._PREFIX_TO_BACKEND, "gs", Bucket())
    return "gs://bucket/model"


def test_a_model_in_an_object_store_is_described_by_what_lies_there(bucket):
    job = model_dir.read_job(epath.Path(bucket))
    assert job.vocabulary == f"{bucket}/vocabulary.model" and job.train_steps == 12


def test_a_model_in_an_object_store_comes_with_its_vocabulary(trained, bucket, tmp_path, monkeypatch):
    """gs:// is no local path: pathlib would make gs:/ of it."""

    @contextlib.contextmanager
    def remote(*_, restored=model_dir.restored):
        with restored(str(trained), (), ()) as model:
            yield dataclasses.replace(model, directory=epath.Path(bucket))

    monkeypatch.setattr(model_dir, "restored", remote)
    convert.to_huggingface(bucket, str(tmp_path / "hf"))
    assert (tmp_path / "hf/spiece.model").read_bytes() == (trained / "vocabulary.model").read_bytes()


def test_a_disk_that_is_full_leaves_nothing(trained, tmp_path, monkeypatch, capfd):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_params", full)
    source = f"--input={REFERENCES}/hf_t5_1_0"
    assert cli.run(["convert", "--from=hf", source, f"--output={tmp_path}/a/b"]) == 1
    assert "a/b could not be written: No space left on device. Nothing is left of it" in capfd.readouterr().err
    assert list((tmp_path / "a").iterdir()) == []


def refused(capfd, *argv):
    assert cli.run(list(argv)) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    return error


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(trained, tmp_path, capfd):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    new = f"--output={tmp_path}/new"
    cases = {
        ("--from=native", f"--input={trained}", f"--output={full}"): r"--output=\S*full exists",
        ("--from=native", "--to=native", f"--input={trained}", new): "changes nothing",
        ("--from=native", f"--input={tmp_path}", new): "no model directory",
        ("--from=hf", f"--input={tmp_path}/gone", new): "gone",
        ("--from=hf", f"--input={trained}", new): "config.json",
        ("--from=native", f"--input={trained}", f"--output={full}/file/x"): r"--output=\S*file/x cannot be written",
        ("--from=hf", f"--input={REFERENCES}/hf_t5_1_0", "--output=/proc/x"): r"--output=/proc/x cannot be written",
    }
    for argv, message in cases.items():
        error = refused(capfd, "convert", *argv)
        assert re.search(message, error), error
    assert {path.name for path in tmp_path.iterdir()} == {"full"}


def test_text_needs_a_vocabulary(tmp_path, capfd):
    assert cli.run(["convert", "--from=hf", f"--input={REFERENCES}/hf_t5_1_1", f"--output={tmp_path}/m"]) == 0
    assert "without a vocabulary: give --gin.VOCABULARY" in capfd.readouterr().out
    assert "VOCABULARY is not set" in refused(capfd, "infer", f"--checkpoint={tmp_path}/m", "--text=a")


def test_a_converted_model_is_no_run_to_resume(there_and_back, train_flags, capfd):
    error = refused(capfd, *train_flags(there_and_back / "native"))
    assert re.search(r"native/checkpoints/0 holds no optimizer state\. .*--gin.INITIAL_CHECKPOINT_PATH", error), error
