"""The train verb from the command line to what it leaves behind, and what it says of wrong input before it begins."""

import gzip
import json
import math
import re

import jax
import numpy as np
import pytest

from t5x_lite import cli
from t5x_lite.train import checkpoint
from t5x_lite.train.metrics import MetricsWriter

# DESIGN's line of metrics.jsonl.
KEYS = {
    "step", "loss", "z_loss", "accuracy", "grad_norm", "learning_rate", "tokens_seen", "sequences_per_second",
    "tokens_per_second", "tflops_per_device", "mfu", "input_wait_fraction",
}  # fmt: skip


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def failed(capfd, argv):
    """The message of a command that refuses its input."""
    status = cli.run(argv)
    error = capfd.readouterr().err
    assert status == 2, error
    assert "Traceback" not in error
    return error[error.index("t5x_lite: error: ") :]


def test_metrics(trained):
    found = lines(trained / "metrics.jsonl")
    assert [line["step"] for line in found] == [2, 4, 6, 8, 10, 12]
    for line in found:
        assert line.keys() >= KEYS
        assert all(math.isfinite(v) for k, v in line.items() if k != "mfu")
        assert line["mfu"] is None  # nobody knows the peak of this processor
        assert line["tokens_seen"] == line["step"] * 8 * (40 + 16)
        assert line["learning_rate"] == pytest.approx(0.01)
        assert 0 <= line["accuracy"] <= 1 and 0 <= line["input_wait_fraction"] <= 1
        assert line["tokens_per_second"] == pytest.approx((40 + 16) * line["sequences_per_second"])
    # A fresh model knows nothing of 512 tokens, and learns.
    assert found[0]["loss"] == pytest.approx(math.log(512), abs=1.0)
    assert found[-1]["loss"] < found[0]["loss"] - 0.5


def test_tensorboard_reads_the_events(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained)).Reload()
    for name in ("loss", "grad_norm", "tokens_per_second"):
        shown = [(e.step, e.value) for e in events.Scalars(f"train/{name}")]
        np.testing.assert_allclose(shown, [(x["step"], x[name]) for x in lines(trained / "metrics.jsonl")], rtol=1e-6)
    results = lines(trained / "eval/results.jsonl")
    shown = [(e.step, e.value) for e in events.Scalars("eval/text_span_corruption/loss")]
    np.testing.assert_allclose(shown, [(r["step"], r["loss"]) for r in results], rtol=1e-6)


def test_model_directory(trained, corpus):
    assert (trained / "DONE").exists()
    assert (trained / "vocabulary.model").read_bytes() == (corpus / "vocabulary.model").read_bytes()
    assert checkpoint.steps(trained) == [4, 8, 12]
    assert [(r["step"], r["task"], r["split"]) for r in lines(trained / "eval/results.jsonl")] == [
        (step, "text_span_corruption", "validation") for step in (6, 12)
    ]
    assert {path.name for path in trained.iterdir() if "tfevents" not in path.name} == {
        "DONE", "config.gin", "vocabulary.model", "metrics.jsonl", "checkpoints", "eval"
    }  # fmt: skip


def test_the_configuration_runs_again_and_goes_on(trained_copy, capfd):
    config = f"--gin_file={trained_copy}/config.gin"
    here = f"--gin.MODEL_DIR={trained_copy}"
    before = (trained_copy / "metrics.jsonl").read_text()
    assert cli.run(["train", config, here]) == 0
    assert "already at step 12 of 12: nothing to do" in capfd.readouterr().err
    assert (trained_copy / "metrics.jsonl").read_text() == before

    assert cli.run(["train", config, here, "--gin.TRAIN_STEPS=14"]) == 0
    assert "resuming from" in capfd.readouterr().err
    assert (trained_copy / "metrics.jsonl").read_text().startswith(before)
    assert lines(trained_copy / "metrics.jsonl")[-1]["step"] == 14
    assert checkpoint.steps(trained_copy) == [8, 12, 14]
    assert (trained_copy / "DONE").exists()


def test_fine_tuning_goes_on_with_the_step(trained, train_flags, tmp_path, capfd):
    flags = train_flags(tmp_path / "tuned", INITIAL_CHECKPOINT_PATH=trained, TRAIN_STEPS=14, EVAL_PERIOD=0)
    assert cli.run(flags) == 0
    assert "of step 12" in capfd.readouterr().err
    found = lines(tmp_path / "tuned/metrics.jsonl")
    assert [line["step"] for line in found] == [14]
    assert found[0]["loss"] < lines(trained / "metrics.jsonl")[2]["loss"]
    assert checkpoint.steps(tmp_path / "tuned") == [14]

    # The schedule stands where it stood: 1 / sqrt(13) at the step after the thirteenth, had it warmed up in one.
    flags = train_flags(
        tmp_path / "late", INITIAL_CHECKPOINT_PATH=f"{trained}@8", TRAIN_STEPS=10, EVAL_PERIOD=0,
        **{"schedule.rsqrt.warmup_steps": 1},
    )  # fmt: skip
    assert cli.run(flags) == 0
    assert lines(tmp_path / "late/metrics.jsonl")[-1]["learning_rate"] == pytest.approx(1 / 3)


def test_nothing_left_to_fine_tune(trained, train_flags, tmp_path, capfd):
    error = failed(capfd, train_flags(tmp_path / "m", INITIAL_CHECKPOINT_PATH=trained, TRAIN_STEPS=12))
    assert re.search(r"TRAIN_STEPS=12 leaves nothing to train\. It counts .* at step 12\. Set --gin.TRAIN_STEPS", error)
    assert not (tmp_path / "m").exists()


REFUSED = {
    "empty glob": ({"DATA_GLOB": "{tmp}/none-*"}, r"DATA_GLOB=\S*none-\* matches no file.*--gin.DATA_GLOB"),
    "no validation glob": ({"VALIDATION_GLOB": "None"}, "VALIDATION_GLOB is not set.*--gin.VALIDATION_GLOB"),
    "empty validation glob": ({"VALIDATION_GLOB": "{tmp}/v*.jsonl"}, r"VALIDATION_GLOB=\S* matches no file"),
    "undecodable record": ({"DATA_GLOB": "{tmp}/bad.json.gz"}, r"Record 1 of \S*bad\.json\.gz cannot be read"),
    "short targets": (
        {"TASK_FEATURE_LENGTHS": {"inputs": 40, "targets": 8}},
        r"gives the targets 8 tokens\. Span corruption of 40 input tokens makes 10 .*'targets': 10",
    ),
    "batch over the mesh": ({"BATCH_SIZE": 12}, r"BATCH_SIZE=12 .*8 devices.*multiple of 8\. Set --gin.BATCH_SIZE=16"),
    "batch over the shards": (
        {"BATCH_SIZE": 16, "DATA_SHARDS": 3},
        r"BATCH_SIZE=16 does not divide by DATA_SHARDS=3\..*--gin.DATA_SHARDS",
    ),
    "microbatches": ({"BATCH_SIZE": 8, "MICROBATCHES": 2}, r"BATCH_SIZE=8 .*in 2 microbatches.*BATCH_SIZE=16"),
    "initial checkpoint": (
        {"INITIAL_CHECKPOINT_PATH": "{tmp}/gone"},
        r"--gin.INITIAL_CHECKPOINT_PATH=\S*gone is no directory",
    ),
    "large vocabulary": (
        {"architecture.Architecture.vocab_size": 384},
        r"vocabulary \S*vocabulary\.model has 500 ids, but the model's table has 384 rows\..*vocab_size=512",
    ),
    "unknown task": (
        {"MIXTURE_OR_TASK_NAME": "text_span_coruption"},
        r"MIXTURE_OR_TASK_NAME=text_span_coruption is unknown.*Nearest: text_span_corruption",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_wrong_input_is_refused_and_leaves_nothing_behind(kind, train_flags, tmp_path, capfd):
    with gzip.open(tmp_path / "bad.json.gz", "wt") as file:
        file.write('{"text": 7}\n')
    changed, message = REFUSED[kind]
    changed = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in changed.items()}
    error = failed(capfd, train_flags(tmp_path / "m", **changed))
    assert re.search(message, error), error
    assert len(error.strip().splitlines()) == 1, error
    assert not (tmp_path / "m").exists()


def test_another_cut_of_the_data_is_refused(trained_copy, train_flags, capfd):
    error = failed(capfd, train_flags(trained_copy, TRAIN_STEPS=14, DATA_SHARDS=4))
    assert re.search(
        r"DATA_SHARDS is 4, but the data position in \S+/12/data was saved under 2\..*--gin.DATA_SHARDS back", error
    ), error


def test_another_model_is_refused(trained_copy, train_flags, capfd):
    flags = train_flags(trained_copy, TRAIN_STEPS=14, **{"architecture.Architecture.mlp_dim": 96})
    error = failed(capfd, flags)
    assert re.search(r"params/\S*mlp\S* has shape \[2, 32, 64\] in the checkpoint .*needs \[2, 32, 96\]", error), error


def test_steps_that_are_not_finite_end_the_run(train_flags, tmp_path, capfd):
    flags = train_flags(
        tmp_path / "m", MAX_NONFINITE_STEPS=3, SAVE_PERIOD=2, EVAL_PERIOD=0, **{"schedule.constant.value": "1e38"}
    )
    flags.insert(3, "--gin_file=optim/constant.gin")
    assert cli.run(flags) == 1
    error = capfd.readouterr().err
    assert re.search(r"\d+ steps in a row, up to step \d+, had a loss or gradient that is not finite", error), error
    assert re.search(r"The checkpoint of step \d+ is committed and safe\. Lower the learning rate", error)
    assert not (tmp_path / "m/DONE").exists()
    counts = [line["nonfinite_steps"] for line in lines(tmp_path / "m/metrics.jsonl")]
    assert counts[-1] >= 3
    assert lines(tmp_path / "m/metrics.jsonl")[-1]["loss"] is None
    assert jax.device_count() == 8


def test_another_vocabulary_is_refused(trained_copy, train_flags, corpus, tmp_path, capfd):
    from t5x_lite.tasks import documents, vocabulary

    files = documents.expand(str(corpus / "train-*.json.gz"), "DATA_GLOB")
    other = vocabulary.train(files, 350, tmp_path / "other.model")
    error = failed(capfd, train_flags(trained_copy, TRAIN_STEPS=14, VOCABULARY=other))
    assert f"VOCABULARY={other} is not the vocabulary that {trained_copy} was trained with" in error
    assert f"Set --gin.VOCABULARY={trained_copy}/vocabulary.model" in error


def test_lines_of_steps_that_are_done_again_are_taken_out(tmp_path):
    for path in (tmp_path / "metrics.jsonl", tmp_path / "eval" / "results.jsonl"):
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"step": 4}\n{"step": 8}\n{"step": 12}\n{"step": 1')
    MetricsWriter(str(tmp_path), resume_step=8, active=True).close()
    for path in (tmp_path / "metrics.jsonl", tmp_path / "eval" / "results.jsonl"):
        assert [line["step"] for line in lines(path)] == [4, 8]
