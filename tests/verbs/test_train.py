"""The train verb from the command line to what it leaves behind, and what it says of wrong input before it begins."""

import errno
import gzip
import json
import math
import re
import shutil
import signal
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from t5x_lite import cli, output, task_metrics
from t5x_lite.errors import UserError
from t5x_lite.train import checkpoint, evaluation
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
    assert found[0]["tokens_seen"] == 14 * 8 * (40 + 16)
    assert found[0]["loss"] < lines(trained / "metrics.jsonl")[2]["loss"]
    assert checkpoint.steps(tmp_path / "tuned") == [14]

    # The schedule stands where it stood: 1 / sqrt(13) at the step after the thirteenth, had it warmed up in one.
    flags = train_flags(
        tmp_path / "late", INITIAL_CHECKPOINT_PATH=f"{trained}@8", TRAIN_STEPS=10, EVAL_PERIOD=0, BATCH_SIZE=16,
        **{"schedule.rsqrt.warmup_steps": 1},
    )  # fmt: skip
    assert cli.run(flags) == 0
    last = lines(tmp_path / "late/metrics.jsonl")[-1]
    assert last["learning_rate"] == pytest.approx(1 / 3)
    assert last["tokens_seen"] == (8 * 8 + 2 * 16) * (40 + 16)


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
    "batch over the mesh": ({"BATCH_SIZE": 13}, r"BATCH_SIZE=13 .*2 devices.*multiple of 2\. Set --gin.BATCH_SIZE=12"),
    "batch over the shards": (
        {"BATCH_SIZE": 16, "DATA_SHARDS": 3},
        r"BATCH_SIZE=16 does not divide by DATA_SHARDS=3\..*--gin.DATA_SHARDS",
    ),
    "microbatches": ({"BATCH_SIZE": 8, "MICROBATCHES": 8}, r"BATCH_SIZE=8 .*in 8 microbatches.*BATCH_SIZE=16"),
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


OTHER_DATA = {
    "cut": ({"DATA_SHARDS": 4}, r"--gin\.DATA_SHARDS is 4, but the data position in \S+/12 was saved under 2\."),
    "files": (
        {"DATA_GLOB": "{corpus}/train-[012].json.gz"},
        r"the data of text_span_corruption is '3 files of \d+ bytes, \w+', but .* under '4 files of \d+ bytes, \w+'\.",
    ),
    "vocabulary": (
        {"VOCABULARY": "bytes"},
        r"--gin\.VOCABULARY is 'bytes', but .* under 'a SentencePiece model, md5 \w+'\..*Set --gin\.VOCABULARY back",
    ),
}


@pytest.mark.parametrize("kind", OTHER_DATA)
def test_other_data_is_refused_before_anything_is_compiled(kind, trained_copy, train_flags, corpus, capfd, monkeypatch):
    monkeypatch.setattr("t5x_lite.verbs.train._compile", lambda *_: pytest.fail("it was compiled"))
    changed, message = OTHER_DATA[kind]
    changed = {k: v.format(corpus=corpus) if isinstance(v, str) else v for k, v in changed.items()}
    error = failed(capfd, train_flags(trained_copy, TRAIN_STEPS=14, **changed))
    assert re.search(message, error), error
    assert f"--gin.INITIAL_CHECKPOINT_PATH={trained_copy}/checkpoints/12" in error


def test_the_same_files_in_another_folder_are_the_same_data(trained_copy, train_flags, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "moved")
    flags = train_flags(
        trained_copy, TRAIN_STEPS=13, EVAL_PERIOD=0, DATA_GLOB=tmp_path / "moved/train-*.json.gz",
        VOCABULARY=tmp_path / "moved/vocabulary.model",
    )  # fmt: skip
    assert cli.run(flags) == 0
    assert checkpoint.steps(trained_copy)[-1] == 13


def test_another_model_is_refused(trained_copy, train_flags, capfd, monkeypatch):
    monkeypatch.setattr("t5x_lite.verbs.train._compile", lambda *_: pytest.fail("it was compiled"))
    flags = train_flags(trained_copy, TRAIN_STEPS=14, **{"architecture.Architecture.mlp_dim": 96})
    error = failed(capfd, flags)
    assert re.search(r"params/\S*mlp\S* has shape \[2, 32, 64\] in the checkpoint .*needs \[2, 32, 96\]", error), error


def test_steps_that_are_not_finite_end_the_run(train_flags, tmp_path, capfd):
    """Whatever LOG_PERIOD is; and no update of them is in what was saved."""
    flags = train_flags(
        tmp_path / "m", MAX_NONFINITE_STEPS=3, TRAIN_STEPS=40, SAVE_PERIOD=2, EVAL_PERIOD=0, LOG_PERIOD=100,
        **{"schedule.constant.value": "1e999"},
    )  # fmt: skip
    flags.insert(3, "--gin_file=optim/constant.gin")
    assert cli.run(flags) == 1
    error = capfd.readouterr().err
    assert re.search(r"3 steps in a row, up to step 3, had a loss, gradient or update that is not finite", error), error
    assert re.search(r"The checkpoint of step \d+ is committed and safe\. Lower the learning rate", error)
    assert not (tmp_path / "m/DONE").exists()

    # Another rate goes on from there: nothing in the state was spoilt.
    flags = train_flags(tmp_path / "m", TRAIN_STEPS=8, EVAL_PERIOD=0)
    assert cli.run(flags) == 0
    last = lines(tmp_path / "m/metrics.jsonl")[-1]
    assert math.isfinite(last["loss"]) and last["nonfinite_steps"] >= 2


def test_another_vocabulary_is_refused(trained_copy, train_flags, corpus, tmp_path, capfd):
    from t5x_lite.tasks import documents, vocabulary

    files = documents.expand(str(corpus / "train-*.json.gz"), "DATA_GLOB")
    other = vocabulary.train(files, 350, tmp_path / "other.model")
    error = failed(capfd, train_flags(trained_copy, TRAIN_STEPS=14, VOCABULARY=other))
    assert re.search(r"--gin.VOCABULARY is 'a SentencePiece model, md5 \w+', but .* under 'a Sentence", error), error
    changed = {"INITIAL_CHECKPOINT_PATH": trained_copy, "TRAIN_STEPS": 14}
    error = failed(capfd, train_flags(tmp_path / "m", VOCABULARY=other, **changed))
    assert f"VOCABULARY={other} is not the vocabulary of INITIAL_CHECKPOINT_PATH={trained_copy}" in error, error
    assert f"Set --gin.VOCABULARY={trained_copy}/vocabulary.model" in error


def test_an_initial_checkpoint_of_another_optimizer(trained, train_flags, tmp_path, capfd):
    flags = train_flags(tmp_path / "m", INITIAL_CHECKPOINT_PATH=trained, TRAIN_STEPS=13, EVAL_PERIOD=0)
    flags.insert(3, "--gin_file=optim/adamw_rms.gin")
    assert "anew with --gin.INITIAL_OPTIMIZER_STATE=False" in failed(capfd, flags)
    assert cli.run([*flags, "--gin.INITIAL_OPTIMIZER_STATE=False"]) == 0


def test_an_evaluation_that_was_cut_off_is_made_up_for(trained_copy, train_flags):
    results, before = trained_copy / "eval/results.jsonl", lines(trained_copy / "eval/results.jsonl")
    results.write_text(json.dumps(before[0]) + "\n")
    (trained_copy / "DONE").unlink()
    assert cli.run(train_flags(trained_copy)) == 0
    # `trained` may come from a file whose programs are optimised, which round otherwise.
    assert lines(results) == [line | {"loss": pytest.approx(line["loss"], rel=1e-6)} for line in before]
    assert (trained_copy / "DONE").exists()


def test_the_evaluation_that_is_made_up_for_is_of_every_task_and_can_be_stopped(trained_copy, train_flags, monkeypatch):
    results = trained_copy / "eval/results.jsonl"
    # Those of the eval verb, of another task or split, are not the run's own.
    other = {"step": 12, "task": "another", "split": "validation", "loss": 1.0}
    results.write_text(json.dumps(other) + "\n")
    (trained_copy / "DONE").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "teacher_forced", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert cli.run(train_flags(trained_copy)) == 75
    assert lines(results) == [other] and not (trained_copy / "DONE").exists()
    assert cli.run(train_flags(trained_copy)) == 0
    assert [r["task"] for r in lines(results)] == ["another", "text_span_corruption"]


def test_fewer_steps_than_there_are_change_nothing(trained_copy, train_flags, capfd):
    (trained_copy / "DONE").unlink()
    before = (trained_copy / "config.gin").read_text()
    assert cli.run(train_flags(trained_copy, TRAIN_STEPS=8)) == 0
    assert "is already at step 12 of 8: nothing to do" in capfd.readouterr().err
    assert not (trained_copy / "DONE").exists() and (trained_copy / "config.gin").read_text() == before


def test_a_metric_that_cannot_be_computed_is_refused_before_anything_is_written():
    from seqio.metrics import ModelOutputType

    class Wanting:
        name = "wanting"
        metric_objs = [SimpleNamespace(model_output_type=ModelOutputType.SCORE_WITH_INTERMEDIATES)]

    with pytest.raises(UserError, match="a metric of wanting wants scores with intermediate values"):
        task_metrics.check(Wanting)


def test_a_task_that_lacks_a_feature_is_refused(train_flags, corpus, tmp_path, capfd):
    (tmp_path / "targets_alone.py").write_text(
        "import seqio\n"
        "from t5x_lite.tasks import sources, vocabulary\n"
        "seqio.TaskRegistry.add('targets_alone', source=sources.Documents(sources.bound_files),\n"
        "  preprocessors=[], output_features={'targets': seqio.Feature(vocabulary.chosen())}, metric_fns=[])\n"
    )
    sys.path.append(str(tmp_path))
    try:
        error = failed(
            capfd,
            train_flags(tmp_path / "m", MIXTURE_OR_TASK_NAME="targets_alone", MIXTURE_OR_TASK_MODULE="targets_alone"),
        )
    finally:
        sys.path.remove(str(tmp_path))
    assert "targets_alone has no inputs. A model reads inputs and targets, and its features are targets." in error
    assert not (tmp_path / "m").exists()


def test_a_model_directory_has_one_writer(trained_copy, train_flags, capfd):
    with output.held(trained_copy, "--gin.MODEL_DIR"):
        error = failed(capfd, train_flags(trained_copy, TRAIN_STEPS=14))
    assert f"--gin.MODEL_DIR={trained_copy} is in use. Another process is writing there" in error
    assert (trained_copy / "DONE").exists()


def test_a_place_that_cannot_be_written_is_refused_at_once(train_flags, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    error = failed(capfd, train_flags(tmp_path / "file/m"))
    assert f"--gin.MODEL_DIR={tmp_path}/file/m cannot be written" in error


def test_a_full_disk_says_what_is_safe(trained_copy, train_flags, capfd, monkeypatch):
    def full(self, line):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(MetricsWriter, "train", full)
    assert cli.run(train_flags(trained_copy, TRAIN_STEPS=16)) == 1
    error = capfd.readouterr().err
    assert "No space left on device" in error and "Traceback" not in error
    assert re.search(r"error: .*The checkpoint of step \d+ is committed and safe\. See to that, then", error), error


def test_a_device_without_room_says_what_to_change(train_flags, tmp_path, capfd, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")

    monkeypatch.setattr("t5x_lite.verbs.train._compile", full)
    assert cli.run(train_flags(tmp_path / "m")) == 1
    error = capfd.readouterr().err
    assert re.search(r"not enough memory: RESOURCE_EXHAUSTED.*No checkpoint is committed yet\..*BATCH_S", error), error


def test_an_empty_validation_split_is_said(train_flags, tmp_path, capfd):
    (tmp_path / "empty.jsonl").write_text("")
    flags = train_flags(tmp_path / "m", VALIDATION_GLOB=tmp_path / "empty.jsonl", TRAIN_STEPS=2, EVAL_PERIOD=2)
    assert cli.run(flags) == 0
    assert "eval text_span_corruption: its validation split is empty" in capfd.readouterr().err
    assert not (tmp_path / "m/eval/results.jsonl").exists()


def test_a_run_that_is_stopped_before_it_begins(train_flags, tmp_path, capfd, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)

    def opened(job):
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:  # as code around modules of the user's own has it
            raise UserError("the module", str(error), "correct it") from error

    monkeypatch.setattr("t5x_lite.verbs.train.open_task", opened)
    assert cli.run(train_flags(tmp_path / "m")) == 75
    error = capfd.readouterr().err
    assert "preempted: stopped before the first step: no checkpoint is committed yet; the same command starts" in error
    assert not (tmp_path / "m").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_is_stopped_while_it_evaluates(train_flags, tmp_path, capfd, monkeypatch):
    """It saves without waiting for the evaluation, which comes when the run goes on."""
    flags = train_flags(tmp_path / "m", TRAIN_STEPS=20, EVAL_PERIOD=6, SAVE_PERIOD=0)
    seen = evaluation.teacher_forced

    def stopped(sums_of, params, batches):
        signal.raise_signal(signal.SIGTERM)
        return seen(sums_of, params, batches)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "teacher_forced", stopped)
        assert cli.run(flags) == 75
    (at,) = checkpoint.steps(tmp_path / "m")
    assert f"stopped at step {at} of 20" in capfd.readouterr().err and 6 <= at < 12
    assert not (tmp_path / "m/eval/results.jsonl").exists()
    assert cli.run(flags) == 0
    assert [r["step"] for r in lines(tmp_path / "m/eval/results.jsonl")] == [at, 12, 18, 20]


def test_a_run_that_is_stopped_in_its_last_evaluation_is_not_done(train_flags, tmp_path, monkeypatch):
    flags = train_flags(tmp_path / "m", TRAIN_STEPS=4, EVAL_PERIOD=4)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "teacher_forced", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert cli.run(flags) == 75
    assert checkpoint.steps(tmp_path / "m") == [4]
    assert not (tmp_path / "m/DONE").exists()
    assert cli.run(flags) == 0
    assert (tmp_path / "m/DONE").exists()
    assert [r["step"] for r in lines(tmp_path / "m/eval/results.jsonl")] == [4]
