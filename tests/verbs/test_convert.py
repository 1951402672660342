"""Models between formats by the command line: there and back, fine-tuned on, and refused where they cannot go."""

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file

from t5x_lite import cli, model_dir
from t5x_lite.interop import huggingface, lazy, names, orbax, t5x, zarr
from t5x_lite.model.architecture import Architecture
from t5x_lite.train import checkpoint
from t5x_lite.verbs import convert
from tests.interop import models

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


def run(*argv):
    assert cli.run(["convert", *map(str, argv)]) == 0


def arrays(directory, step=0):
    """The parameters of a model directory, as they are stored."""
    found = orbax.read(directory / "checkpoints" / str(step) / "state")
    return {keys[1:]: array.whole() for keys, array in found.items() if keys[0] == "params"}


def test_every_direction_keeps_every_bit(trained, there_and_back, tmp_path):
    """native -> t5x -> hf -> t5x -> native, and native -> hf."""
    run("--from=native", "--to=t5x", f"--input={trained}", f"--output={tmp_path}/t5x")
    vocabulary = f"--gin.VOCABULARY={trained}/vocabulary.model"
    run("--from=t5x", "--to=hf", f"--input={tmp_path}/t5x", f"--output={tmp_path}/hf", vocabulary)
    run("--from=hf", "--to=t5x", f"--input={tmp_path}/hf", f"--output={tmp_path}/t5x_2")
    run("--from=t5x", "--to=native", f"--input={tmp_path}/t5x_2", f"--output={tmp_path}/native")
    original, back = arrays(trained, 12), arrays(tmp_path / "native")
    assert original.keys() == back.keys()
    for path, array in original.items():
        assert array.dtype == back[path].dtype == np.float32
        np.testing.assert_array_equal(array, back[path], err_msg=str(path))
    direct, round_about = (load_file(d / "model.safetensors") for d in (there_and_back / "hf", tmp_path / "hf"))
    assert direct.keys() == round_about.keys()
    for name, array in direct.items():
        np.testing.assert_array_equal(array, round_about[name], err_msg=name)
    assert (tmp_path / "hf/spiece.model").read_bytes() == (trained / "vocabulary.model").read_bytes()
    assert (tmp_path / "t5x/checkpoint_12/checkpoint").exists() and (tmp_path / "t5x_2/checkpoint_0").is_dir()


def test_scanned_layers_and_half_the_size(trained, tmp_path):
    run("--from=native", "--to=t5x", "--scan_layers", "--dtype=bfloat16", f"--input={trained}@12",
        f"--output={tmp_path}/t5x")  # fmt: skip
    run("--from=t5x", "--to=hf", "--max_shard_size=50KB", f"--input={tmp_path}/t5x", f"--output={tmp_path}/hf")
    assert json.loads((tmp_path / "hf/config.json").read_text())["model_type"] == "umt5"
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2


@pytest.fixture(scope="module")
def with_statistics(trained, tmp_path_factory):
    """t5x's checkpoint with Adafactor's state, and the model directory made of it."""
    folder = tmp_path_factory.mktemp("statistics")
    run("--from=native", "--to=t5x", "--optimizer_state", f"--input={trained}", f"--output={folder}/t5x")
    run("--from=t5x", "--optimizer_state", f"--input={folder}/t5x", f"--output={folder}/native")
    return folder


def test_the_optimizer_comes_along_both_ways(trained, with_statistics):
    before, after = (orbax.read(d / "checkpoints/12/state") for d in (trained, with_statistics / "native"))
    kept = {keys for keys in before if keys[0] in ("params", "opt_state", "step")}
    assert kept == after.keys() and any(keys[0] == "opt_state" for keys in kept)
    for keys in kept:
        np.testing.assert_array_equal(before[keys].whole(), after[keys].whole(), err_msg=str(keys))
    stored = t5x.read(t5x.find(str(with_statistics / "t5x")))
    assert stored.step == 12 and stored.slots[names.TABLE]["v"].shape == stored.target[names.TABLE].shape


def test_a_run_goes_on_with_the_converted_optimizer_as_with_its_own(with_statistics, trained, train_flags, tmp_path):
    losses = []
    for name, start in (("own", trained), ("converted", with_statistics / "native")):
        macros = {"INITIAL_CHECKPOINT_PATH": start, "TRAIN_STEPS": 15, "LOG_PERIOD": 1, "EVAL_PERIOD": 0}
        assert cli.run(train_flags(tmp_path / name, **macros)) == 0
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([(line["step"], line["loss"], line["learning_rate"]) for line in lines if "loss" in line])
    assert losses[0] == losses[1] and losses[0][-1][0] == 15


def test_bytes_are_the_vocabulary_of_a_byt5(tmp_path, capfd):
    folder = tmp_path / "byt5"
    shutil.copytree(REFERENCES / "hf_t5_1_1", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tokenizer_class": "ByT5Tokenizer"}))
    run("--from=hf", f"--input={folder}", f"--output={tmp_path}/native")
    assert model_dir.read_job(epath.Path(tmp_path) / "native").vocabulary == "bytes"
    run("--from=native", f"--input={tmp_path}/native", f"--output={tmp_path}/hf")
    assert json.loads((tmp_path / "hf/tokenizer_config.json").read_text())["tokenizer_class"] == "ByT5Tokenizer"
    assert "without a vocabulary" not in capfd.readouterr().out


def test_both_complete_texts_alike(there_and_back, trained, capfd):
    def completed(directory):
        # A configuration of Hugging Face does not say in which type to compute, ours of `trained` does.
        flags = [
            "--text=ka lo <extra_id_0>",
            "--max_decode_length=5",
            "--gin.architecture.Architecture.dtype='float32'",
        ]
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


def test_a_head_that_is_scaled_stays_so_and_is_told_of(tmp_path, capfd):
    """An umT5 as transformers 5 computes it; read as what transformers 4 computes, it is Google's."""
    arch = Architecture(**models.SIZES, relative_bias_per_layer=True, scaled_head=True)
    (tmp_path / "umt5").mkdir()
    huggingface.write(tmp_path / "umt5", models.model(arch, models.random(arch)))
    original = load_file(tmp_path / "umt5/model.safetensors")

    def told(*argv):
        run(*argv)
        return capfd.readouterr().out

    told("--from=hf", f"--input={tmp_path}/umt5", f"--output={tmp_path}/native")
    assert "scaled_head = True" in (tmp_path / "native/config.gin").read_text()
    text = told("--from=native", f"--input={tmp_path}/native", f"--output={tmp_path}/hf")
    assert "without a vocabulary" in text and "; transformers 5 computes it as it is, transformers 4 without" in text
    back = load_file(tmp_path / "hf/model.safetensors")
    assert original.keys() == back.keys()
    for name, array in original.items():
        np.testing.assert_array_equal(array, back[name], err_msg=name)
    text = told("--from=native", "--to=t5x", "--scan_layers", f"--input={tmp_path}/native", f"--output={tmp_path}/t5x")
    assert "its head has taken in the factor d_model ** -0.5" in text

    unscaled = "--gin.architecture.Architecture.scaled_head=False"
    told("--from=hf", f"--input={tmp_path}/umt5", f"--output={tmp_path}/other", unscaled)
    text = told("--from=native", f"--input={tmp_path}/other", f"--output={tmp_path}/other_hf")
    assert "; transformers 4 computes it as it is, transformers 5 multiplies" in text
    assert not huggingface.architecture(tmp_path / "other_hf").scaled_head


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


def test_a_model_in_an_object_store_comes_with_its_vocabulary(trained, bucket, tmp_path, monkeypatch, capfd):
    """gs:// is no local path: pathlib would make gs:/ of it."""
    found = {}

    def place(folder, place=zarr.place):
        found[str(folder)] = True
        return place(str(folder).replace("gs://bucket", str(trained.parent)))

    monkeypatch.setattr(zarr, "place", place)
    assert cli.run(["convert", "--from=native", f"--input={bucket}", f"--output={tmp_path}/hf"]) == 0
    assert found and all(folder.startswith("gs://bucket/model/checkpoints/") for folder in found)
    assert (tmp_path / "hf/spiece.model").read_bytes() == (trained / "vocabulary.model").read_bytes()


@pytest.mark.parametrize("to", ["native", "hf", "t5x"])
def test_a_disk_that_is_full_leaves_nothing(trained, tmp_path, monkeypatch, capfd, to):
    """The quota of a process stands for a disk: a file cannot grow past it."""
    source = f"--input={REFERENCES}/hf_t5_1_0" if to == "native" else f"--input={trained}"
    origin = "hf" if to == "native" else "native"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        status = cli.run(["convert", f"--from={origin}", f"--to={to}", source, f"--output={tmp_path}/a/b"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    error = capfd.readouterr().err
    assert status == 1, error
    assert re.search(r"a/b could not be written: .*File too large.*\. Nothing is left of it", error), error
    assert "Traceback" not in error
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("to", ["native", "hf", "t5x"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_command_that_is_told_to_end_leaves_nothing(trained, tmp_path, monkeypatch, capfd, to, number, status):
    """In the middle of writing, and once more while it takes away what it has written."""
    origin, source = ("hf", REFERENCES / "hf_t5_1_0") if to == "native" else ("native", trained)
    reader = {"hf": "_from_huggingface", "native": "_from_native"}[origin]
    read, rmtree, seen = getattr(convert, reader), shutil.rmtree, []

    def telling(array):
        def told(box):
            if any(tmp_path.glob(".new.*/*")) and not seen:
                seen.append("told")
                os.kill(os.getpid(), number)
            return array.read(box)

        return lazy.Lazy(array.shape, array.dtype, told)

    def read_so(args):
        found = read(args)
        params = {path: telling(array) for path, array in found.model.params.items()}
        return dataclasses.replace(found, model=dataclasses.replace(found.model, params=params))

    def told_again(folder, **rest):
        if Path(folder).parent == tmp_path:
            seen.append("again")
            os.kill(os.getpid(), number)
        rmtree(folder, **rest)

    monkeypatch.setattr(convert, reader, read_so)
    monkeypatch.setattr(convert.shutil, "rmtree", told_again)
    # A shell starts what runs in its background with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        argv = ["convert", f"--from={origin}", f"--to={to}", f"--input={source}", f"--output={tmp_path}/new"]
        assert cli.run(argv) == status
    finally:
        signal.signal(signal.SIGINT, before)
    # Writes that were under way may put files there again, which are taken away again.
    assert seen[:2] == ["told", "again"] and set(seen[1:]) == {"again"} and list(tmp_path.iterdir()) == []
    said = rf"nothing is left of {tmp_path}/new, and --input is unchanged; the same command begins anew"
    error = capfd.readouterr().err
    assert f"stopped by SIGTERM: {said}\n" in error if status == 75 else f"t5x_lite: {said}\n" in error, error
    assert "Traceback" not in error


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


def test_flags_that_do_nothing_are_refused(trained, tmp_path, capfd):
    source = [f"--input={trained}", f"--output={tmp_path}/new"]
    for flags, text in (
        (["--from=native", "--to=hf", "--scan_layers"], "--scan_layers is given with --from=native --to=hf"),
        (["--from=native", "--to=hf", "--optimizer_state"], "--optimizer_state is given with .* from t5x to native"),
        (["--from=native", "--to=t5x", "--max_shard_size=1GB"], "--max_shard_size is given with .* for --to=hf"),
        (["--from=hf", "--to=native", "--dtype=bfloat16"], "--dtype is given with .* --to=hf or t5x"),
        (["--from=native", "--max_shard_size=big"], "--max_shard_size does not fit. It is 'big', not a size"),
        (["--from=native", "--to=t5x", "--scan_layers", "--optimizer_state"], "--optimizer_state is given with --scan"),
        (["--from=native", "--to=gguf"], "--to cannot be gguf"),
        (["--from=native", "--gin.VOCABULARY=gone.model"], "gone.model"),
        (
            ["--from=native", "--gin.architecture.Architecture.mlp_dim=3"],
            r"mlp/wi_0/kernel has shape \[2, .* needs \[2",
        ),
    ):
        error = refused(capfd, "convert", *flags, *source)
        assert re.search(text, error), error
    assert not any(tmp_path.iterdir())


def test_an_architecture_is_told_by_a_gin_file(trained, tmp_path, capfd):
    run("--from=native", "--to=t5x", f"--input={trained}", f"--output={tmp_path}/t5x")
    source = ["--from=t5x", f"--input={tmp_path}/t5x", f"--output={tmp_path}/native"]
    error = refused(capfd, "convert", *source, "--gin_file=models/t5_1_1_small.gin")
    assert re.search(
        r"target/.* in .* By the architecture it should be \[.*\]\. Give the gin file of this model", error
    )
    assert not (tmp_path / "native").exists()
    run(*source, "--gin.architecture.Architecture.mlp_activations=('silu', 'linear')", "--gin.DROPOUT_RATE=0.2")
    model = model_dir.read_job(epath.Path(tmp_path) / "native").model
    assert model.mlp_activations == ("silu", "linear") and model.dropout_rate == 0.2


def test_no_parameter_is_lost_by_an_override(trained, tmp_path, capfd):
    flags = [f"--input={trained}", f"--output={tmp_path}/new", "--gin.architecture.Architecture.tied_head=True"]
    error = refused(capfd, "convert", "--from=native", *flags)
    assert re.search(r"decoder/logits_dense/kernel in the checkpoint .* has no place in its model\. 1 of the", error)
    assert not list(tmp_path.iterdir())


def test_damage_that_is_found_on_the_way_leaves_nothing(trained, tmp_path, capfd):
    run("--from=native", "--to=t5x", f"--input={trained}", f"--output={tmp_path}/t5x")
    chunk = tmp_path / "t5x/checkpoint_12/target.decoder.layers_1.mlp.wo.kernel/0.0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    new = f"--output={tmp_path}/new"
    for to in ("native", "hf"):
        error = refused(
            capfd, "convert", "--from=t5x", f"--to={to}", f"--input={tmp_path}/t5x", f"--output={tmp_path}/n"
        )
        assert re.search(r"layers_1/mlp/wo/kernel in .* cannot be read\. It is missing, cut off or damaged", error), (
            error
        )
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    for file in (broken / "checkpoints/12/state/ocdbt.process_0/d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for to in ("t5x", "hf"):
        error = refused(capfd, "convert", "--from=native", f"--to={to}", f"--input={broken}", new)
        assert re.search("cannot be read. It is missing, cut off or damaged", error), error
    assert {path.name for path in tmp_path.iterdir()} == {"t5x", "broken"}


def test_memory_is_that_of_some_blocks(tmp_path, monkeypatch):
    """A model of 27 MB in blocks of a quarter of one: what Python allocates, which numpy's arrays are a part of."""
    sizes = {"embed_dim": 128, "num_heads": 8, "head_dim": 16, "mlp_dim": 512, "vocab_size": 8000}
    arch = Architecture(**sizes, encoder_layers=8, decoder_layers=8)
    (tmp_path / "hf").mkdir()
    huggingface.write(tmp_path / "hf", models.model(arch, models.random(arch)))
    assert (tmp_path / "hf/model.safetensors").stat().st_size > 25e6
    monkeypatch.setattr(lazy, "BLOCK_BYTES", 256 * 1024)
    monkeypatch.setattr(t5x, "_CACHED_BYTES", 1024 * 1024)
    for origin, target, *flags in (
        ("hf", "native"),
        ("native", "t5x"),
        ("native", "t5x_scanned", "--scan_layers"),
        ("t5x", "hf_2"),
        ("t5x_scanned", "native_2"),
        ("native", "hf_3", "--max_shard_size=5MB"),
    ):
        formats = [f"--from={origin.partition('_')[0]}", f"--to={target.partition('_')[0]}"]
        tracemalloc.start()
        run(*formats, f"--input={tmp_path}/{origin}", f"--output={tmp_path}/{target}", *flags)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6e6, f"{origin} to {target} had {peak} bytes in memory at a time"
    first, last = ((tmp_path / f"{name}/model.safetensors").read_bytes() for name in ("hf", "hf_2"))
    assert first == last


def test_text_needs_a_vocabulary(tmp_path, capfd):
    assert cli.run(["convert", "--from=hf", f"--input={REFERENCES}/hf_t5_1_1", f"--output={tmp_path}/m"]) == 0
    assert "without a vocabulary: give --gin.VOCABULARY" in capfd.readouterr().out
    assert "VOCABULARY is not set" in refused(capfd, "infer", f"--checkpoint={tmp_path}/m", "--text=a")


def test_a_converted_model_is_no_run_to_resume(there_and_back, train_flags, capfd):
    error = refused(capfd, *train_flags(there_and_back / "native"))
    assert re.search(r"native/checkpoints/0 holds no optimizer state\. .*--gin.INITIAL_CHECKPOINT_PATH", error), error
