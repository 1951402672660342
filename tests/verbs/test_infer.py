"""infer and score: in order whatever the batches, cut off and gone on with, by one model or several, and refused."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite import cli, model_dir, resumable
from t5x_lite.data.buckets import pairs_batch
from t5x_lite.tasks import codec
from t5x_lite.verbs import infer

ROOT = Path(__file__).parents[2]
SECONDS = 300
# Of all lengths, more than a window of 16 batches of 8.
TEXTS = [f"{'ka lo ' * (n * 7 % 12)}<extra_id_0> {n}" for n in range(150)]


@pytest.fixture(scope="module")
def text(corpus):
    return codec.load(str(corpus / "vocabulary.model"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "questions.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.fixture(scope="module")
def flags(trained, questions):
    return ["infer", f"--checkpoint={trained}", f"--input={questions}", "--max_decode_length=6", "--batch_size=8"]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """What an undisturbed command writes."""
    path = tmp_path_factory.mktemp("whole") / "out.jsonl"
    assert cli.run([*flags, f"--output={path}"]) == 0
    return path.read_bytes()


def lines(data):
    return [json.loads(line) for line in (data if isinstance(data, bytes) else data.read_bytes()).splitlines()]


def run(capfd, *argv):
    status = cli.run([str(word) for word in argv])
    out, err = capfd.readouterr()
    assert status == 0, err
    return out, err


def refused(capfd, *argv):
    assert cli.run([str(word) for word in argv]) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    return error[error.index("t5x_lite: error: ") :]


def test_completions_come_in_the_order_of_the_inputs(whole, flags, text, questions, trained, tmp_path, capfd):
    found = lines(whole)
    assert [line["inputs"] for line in found] == TEXTS
    assert all(line["score"] < 0 and len(text.encode(line["prediction"])) <= 7 for line in found)
    # In batches of another size, which are others; and by itself.
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"inputs": t, "id": n}) + "\n" for n, t in enumerate(TEXTS[:20])))
    out, err = run(capfd, *flags[:2], f"--input={few}", "--max_decode_length=6", "--batch_size=16")
    printed = lines(out.encode())
    assert [line["prediction"] for line in printed] == [line["prediction"] for line in found[:20]]
    assert [line["id"] for line in printed] == list(range(20))
    np.testing.assert_allclose([x["score"] for x in printed], [x["score"] for x in found[:20]], rtol=1e-4)
    assert "20 of 20 inputs completed with the checkpoint of step 12" in err
    longer = sum(len(text.encode(t)) + 1 > 40 for t in TEXTS[:20])
    assert longer and f"{longer} inputs of more than the 40 tokens that the model was trained with: not cut" in err
    alone, _ = run(capfd, "infer", f"--checkpoint={trained}", f"--text={TEXTS[3]}", "--max_decode_length=6")
    assert alone == found[3]["prediction"] + "\n"


class Killed:
    """The command in another process, which is killed when its output has so many lines."""

    def __init__(self, flags, output: Path, log: Path, count: int):
        # The devices of this process, or sums would be taken in another order.
        env = os.environ | {"JAX_NUM_CPU_DEVICES": str(jax.device_count()), "JAX_PLATFORMS": "cpu"}
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "t5x_lite", *flags, f"--output={output}"], cwd=ROOT, env=env, stderr=file
            )
        deadline = time.monotonic() + SECONDS
        while not output.exists() or output.read_bytes().count(b"\n") < count:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_a_command_that_was_killed_goes_on_without_repeating_or_losing_a_line(
    whole, flags, tmp_path, capfd, monkeypatch
):
    output, rng = tmp_path / "out.jsonl", random.Random(time.time_ns())
    for kill in (1, rng.randrange(60, 120)):
        Killed(flags, output, tmp_path / "log", kill)
        assert kill <= output.read_bytes().count(b"\n") < len(TEXTS)
        if kill == 1:
            with output.open("ab") as file:  # torn, as by a machine that goes down
                file.write(whole.splitlines()[output.read_bytes().count(b"\n")][:20])

    # And in this process, wherever a line is about to be written.
    done = output.read_bytes().count(b"\n")
    left = [rng.randrange(1, len(TEXTS) - done)]

    def interrupted(line):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return json_line(line)

    json_line = resumable.json_line
    monkeypatch.setattr(resumable, "json_line", interrupted)
    assert cli.run([*flags, f"--output={output}"]) == 130
    error = capfd.readouterr().err
    assert f"{output} holds {done} whole lines of this command: going on from there" in error
    count = output.read_bytes().count(b"\n")
    assert f"t5x_lite: {output} holds {count} whole lines; the same command goes on from there\nt5x_lite: int" in error
    monkeypatch.undo()
    assert whole.startswith(output.read_bytes()) and output.read_bytes() != whole
    run(capfd, *flags, f"--output={output}")
    assert output.read_bytes() == whole


def test_a_finished_command_has_nothing_to_do(whole, flags, tmp_path, capfd, no_parameters):
    output = tmp_path / "out.jsonl"
    output.write_bytes(whole)
    _beside(flags, output, capfd)
    _, err = run(capfd, *flags, f"--output={output}")
    assert f"{output} is complete: it holds 150 whole lines of this command; --overwrite begins it anew" in err


def _beside(flags, output, capfd):
    """Writes what stands beside an output, as the command itself would."""
    copy = output.parent / "copy.jsonl"
    copy.write_text("x\n")
    refused(capfd, *flags, f"--output={copy}")
    with pytest.MonkeyPatch.context() as patch:
        found = {}
        real = resumable.opened

        def opened(path, command, overwrite):
            found.update(command)
            return real(path, command, overwrite)

        patch.setattr(resumable, "opened", opened)
        cli.run([*flags, f"--output={copy}"])
        capfd.readouterr()
    text = json.dumps({"command": found, "lines": 150})
    (output.parent / f"{output.name}.command.json").write_text(text)


@pytest.fixture
def no_parameters(monkeypatch):
    """Lets no checkpoint be read: what is refused is refused before that."""

    def restore_part(*_):
        raise AssertionError("the parameters were read first")

    monkeypatch.setattr("t5x_lite.train.checkpoint.restore_part", restore_part)


def test_the_output_of_another_command_is_refused(
    whole, flags, trained, questions, tmp_path, capfd, no_parameters, corpus
):
    output = tmp_path / "out.jsonl"
    output.write_bytes(whole)
    _beside(flags, output, capfd)
    (tmp_path / "other.txt").write_text("other\n")
    at = f"--checkpoint={trained}"
    cases = {
        (f"{at}@8", *flags[2:]): r"Its checkpoint was \[\S+@12 of \S+ \S+\"\], and is \[\S+@8 of ",
        (at, at, *flags[2:]): r"Its checkpoint was ",
        (*flags[1:], "--decode=beam"): r"Its strategy was greedy, and is beam beam_size=4 length_penalty=0\.6 now",
        (*flags[1:3], "--max_decode_length=5"): r"Its longest completion was 6, and is 5 now",
        (at, f"--input={tmp_path}/other.txt", "--max_decode_length=6"): r"Its input was 150 records of digest \S+, and",
        (*flags[1:], f"--gin.VOCABULARY={corpus}/vocabulary.model"): r"Its configuration was \[\], and is \[\"VOCAB",
    }
    for argv, message in cases.items():
        error = refused(capfd, "infer", *argv, f"--output={output}")
        assert re.search(rf"--output=\S+ is of another command\. {message}.* --overwrite", error), error
    assert output.read_bytes() == whole
    # Of the same content under another name, in batches of another size: the same answers.
    shutil.copy(questions, tmp_path / "renamed.txt")
    _, err = run(
        capfd, "infer", at, f"--input={tmp_path}/renamed.txt", "--max_decode_length=6", "--batch_size=16",
        f"--output={output}",
    )  # fmt: skip
    assert "is complete" in err


def test_overwriting_begins_anew(whole, flags, tmp_path, capfd):
    output = tmp_path / "out.jsonl"
    output.write_text("older\n")
    assert "is there" in refused(capfd, *flags, f"--output={output}")
    run(capfd, *flags, f"--output={output}", "--overwrite")
    assert output.read_bytes() == whole


def test_several_completions_are_ranked(trained, tmp_path, capfd):
    (tmp_path / "few.txt").write_text("\n".join(TEXTS[:3]))
    flags = ["infer", f"--checkpoint={trained}", f"--input={tmp_path}/few.txt", "--max_decode_length=5"]
    out, _ = run(capfd, *flags, "--decode=beam", "--beam_size=3", "--num_return=3")
    for line in lines(out.encode()):
        found = line["predictions"]
        assert len(found) == 3 and {k: found[0][k] for k in ("prediction", "score")} == {
            k: line[k] for k in ("prediction", "score")
        }
        assert [p["ranking"] for p in found] == sorted((p["ranking"] for p in found), reverse=True)
        assert all(p["ranking"] > p["score"] for p in found)  # a length penalty makes them less negative


def test_samples_depend_on_the_seed_and_the_number_of_the_input(trained, tmp_path, capfd):
    same = [TEXTS[1]] * 5
    (tmp_path / "same.txt").write_text("\n".join(same))
    flags = ["infer", f"--checkpoint={trained}", f"--input={tmp_path}/same.txt", "--max_decode_length=5"]
    flags += ["--decode=sample", "--num_return=2"]
    first, again, other, batched = (
        lines(run(capfd, *flags, *more)[0].encode()) for more in ([], [], ["--seed=1"], ["--batch_size=2"])
    )
    texts = [p["prediction"] for line in first for p in line["predictions"]]
    assert first == again and len(set(texts)) > 5
    assert texts != [p["prediction"] for line in other for p in line["predictions"]]
    assert texts == [p["prediction"] for line in batched for p in line["predictions"]]
    assert all("ranking" not in p for line in first for p in line["predictions"])


def test_the_inputs_of_a_task_are_completed(trained, tmp_path, capfd):
    flags = ["infer", f"--checkpoint={trained}", "--mixture_or_task=text_span_corruption", "--num_examples=9"]
    output = f"--output={tmp_path}/out.jsonl"
    _, err = run(capfd, *flags, output, "--max_decode_length=4")
    found = lines(tmp_path / "out.jsonl")
    assert len(found) == 9 and all(set(line) == {"inputs", "targets", "prediction", "score"} for line in found)
    assert all("<extra_id_0>" in line["inputs"] and "<extra_id_0>" in line["targets"] for line in found)
    assert "9 of 9 inputs completed" in err and "inputs of 40 tokens, the most that TASK_FEATURE_LENGTHS leaves" in err
    _, err = run(capfd, *flags, output, "--max_decode_length=4")
    assert "is complete: it holds 9 whole lines" in err
    error = refused(capfd, *flags[:2], "--mixture_or_task=text_span_corruption", "--split=test")
    assert re.search(r"--split=test is in no task of text_span_corruption\. It has train, validation", error)


def test_a_task_with_fewer_examples_than_asked_for_is_done_when_they_end(trained, corpus, tmp_path, capfd):
    (tmp_path / "few.jsonl").write_text("".join((corpus / "validation.jsonl").read_text().splitlines(True)[:3]))
    flags = ["infer", f"--checkpoint={trained}", "--mixture_or_task=text_span_corruption", "--num_examples=900"]
    output = tmp_path / "out.jsonl"
    _, err = run(
        capfd, *flags, f"--gin.VALIDATION_GLOB={tmp_path}/few.jsonl", "--max_decode_length=2", f"--output={output}"
    )
    count = len(lines(output))
    assert 0 < count < 900 and f"{count} inputs completed" in err


def test_answers_of_other_data_of_a_task_are_refused(trained, corpus, tmp_path, capfd):
    data, output = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    shutil.copy(corpus / "validation.jsonl", data)
    flags = ["infer", f"--checkpoint={trained}", "--mixture_or_task=text_span_corruption", "--num_examples=3"]
    flags += [f"--gin.VALIDATION_GLOB={data}", "--max_decode_length=2", f"--output={output}"]
    run(capfd, *flags)
    before, text = output.read_bytes(), data.read_text()
    changed = text.replace(text[12:15], "zzz", 1)
    assert len(changed) == len(text) and changed != text
    for other in (changed, text + text.splitlines(True)[0]):  # the first example; the end
        data.write_text(other)
        error = refused(capfd, *flags)
        assert re.search(
            r"is of another command\. Its input was text_span_corruption, validation, 3 examples, data of digest \S+, "
            r"and is text_span_corruption, validation, 3 examples, data of digest \S+ now\. .* --overwrite",
            error,
        ), error
    assert output.read_bytes() == before
    data.write_text(text)
    assert "is complete" in run(capfd, *flags)[1]


def test_answers_of_a_gin_file_of_another_content_are_refused(trained, tmp_path, capfd):
    gin, output = tmp_path / "own.gin", tmp_path / "out.jsonl"
    flags = ["infer", f"--checkpoint={trained}", "--text=a", "--max_decode_length=2", f"--output={output}"]
    gin.write_text("TASK_FEATURE_LENGTHS = {'inputs': 40, 'targets': 16}\n")
    run(capfd, *flags, f"--gin_file={gin}")
    gin.write_text("# The same.\nTASK_FEATURE_LENGTHS = {'inputs': 40, 'targets': 16}\n")
    assert "is complete" in run(capfd, *flags, f"--gin_file={gin}")[1]
    gin.write_text("TASK_FEATURE_LENGTHS = {'inputs': 20, 'targets': 16}\n")
    error = refused(capfd, *flags, f"--gin_file={gin}")
    assert re.search(r"Its content of the configuration was digest \S+, and is digest \S+ now\. .* --overwrite", error)


def test_what_decides_the_answers_is_known_again(trained):
    job = model_dir.read_job(trained)

    def changed(with_task, **fields):
        return infer.digest([dataclasses.replace(job, **fields)], with_task) != infer.digest([job], with_task)

    assert not changed(True) and not changed(True, train_steps=99)
    assert changed(False, vocabulary="bytes") and changed(False, feature_lengths={"inputs": 2, "targets": 2})
    assert changed(False, model=dataclasses.replace(job.model, norm_epsilon=1e-5))
    assert changed(True, mixture_or_task_module="my_tasks") and not changed(False, mixture_or_task_module="my_tasks")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("".join(f"{t}\t{'mi ' * (n % 9)}su\n" for n, t in enumerate(TEXTS)))
    return path


def test_scores_are_those_of_the_mean_of_the_logits(trained, pairs, text, tmp_path, capfd):
    flags = [f"--input={pairs}", "--batch_size=8"]
    at = f"--checkpoint={trained}"
    run(capfd, "score", f"{at}@4", f"{at}@12", *flags, f"--output={tmp_path}/out.jsonl")
    found = lines(tmp_path / "out.jsonl")
    assert [line["inputs"] for line in found] == TEXTS
    some = [
        ([*text.encode(line["inputs"]), text.eos_id], [*text.encode(line["targets"]), text.eos_id])
        for line in found[:16]
    ]
    logits = []
    for step in (4, 12):
        with model_dir.restored(f"{trained}@{step}", (), ()) as model:
            batch = {k: model.place(v) for k, v in pairs_batch(some, 16, model.program.convert).items()}
            network = jax.jit(lambda params, batch, graphdef=model.program.graphdef: nnx.merge(graphdef, params)(batch))
            logits.append(jax.device_get(network(model.params, batch)))
    log_probabilities = jax.nn.log_softmax(jnp.asarray(sum(logits) / 2), axis=-1)
    for row, ((_, targets), line) in enumerate(zip(some, found)):
        expected = sum(float(log_probabilities[row, place, t]) for place, t in enumerate(targets))
        assert line["score"] == pytest.approx(expected, rel=1e-4) and line["tokens"] == len(targets)


def test_an_ensemble_of_one_model_twice_is_that_model(whole, flags, trained, capfd, tmp_path):
    (tmp_path / "few.txt").write_text("\n".join(TEXTS[:2]))
    again = [f"--checkpoint={trained}@12", *flags[1:2], f"--input={tmp_path}/few.txt", "--max_decode_length=6"]
    out, err = run(capfd, "infer", *again)
    once, twice = lines(whole)[:2], lines(out.encode())
    assert [x["prediction"] for x in once] == [x["prediction"] for x in twice]
    np.testing.assert_allclose([x["score"] for x in once], [x["score"] for x in twice], rtol=1e-4)
    assert "2 of 2 inputs completed with an ensemble of 2 checkpoints, of steps 12, 12" in err


def test_scoring_goes_on_where_it_was_cut_off(trained, pairs, tmp_path, capfd, monkeypatch):
    flags = ["score", f"--checkpoint={trained}", f"--input={pairs}", "--batch_size=8"]
    run(capfd, *flags, f"--output={tmp_path}/whole.jsonl")
    left = [70]

    def stopped(line):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        return json_line(line)

    json_line = resumable.json_line
    monkeypatch.setattr(resumable, "json_line", stopped)
    assert cli.run([*flags, f"--output={tmp_path}/out.jsonl"]) == 75
    error = capfd.readouterr().err
    assert re.search(r"t5x_lite: preempted: stopped by SIGTERM: \S+ holds 69 whole lines; the same command goes", error)
    monkeypatch.undo()
    run(capfd, *flags, f"--output={tmp_path}/out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_the_best_checkpoint_is_that_of_the_best_evaluation(trained_copy, capfd):
    flags = ["infer", f"--checkpoint={trained_copy}@best", "--text=a", "--max_decode_length=2", "--output=/dev/stdout"]
    (trained_copy / "eval/results.jsonl").unlink()
    error = refused(capfd, *flags)
    assert re.search(
        r"--checkpoint=\S+@best cannot be told\. \S+/eval/results\.jsonl has no evaluation of the steps 4, 8, 12\. "
        r"Evaluate them first: t5x_lite eval --checkpoint=\S+@all\.",
        error,
    ), error
    evaluations = [{"step": s, "task": "a", "split": "validation", "loss": 1.0, "em": e} for s, e in ((4, 1), (8, 2))]
    (trained_copy / "eval/results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    _, err = run(capfd, *flags)
    assert "completed with the checkpoint of step 8" in err


def test_wrong_requests_are_refused_before_any_work(trained, trained_copy, corpus, tmp_path, capfd, no_parameters):
    (tmp_path / "bad.jsonl").write_text('{"inputs": "a", "targets": "b"}\n{"inputs": 7}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "file").write_text("kept")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"inputs": "a", "targets": "b"}\n')
    with (trained_copy / "vocabulary.model").open("ab") as file:
        file.write(b"\0")
    at, text = f"--checkpoint={trained}", "--text=a"
    before = sorted(p for p in tmp_path.rglob("*"))
    cases = {
        ("infer", at, f"--input={tmp_path}/gone.txt"): r"--input=\S*gone.txt cannot be read",
        ("infer", at, f"--input={tmp_path}/bad.jsonl"): r"line 2 of \S*bad.jsonl is .*an object with text in inputs",
        ("score", at, f"--input={tmp_path}/bad.jsonl"): r"line 2 of .*text in inputs and targets",
        ("score", at, f"--input={tmp_path}/empty.jsonl"): r"--input=\S*empty.jsonl is empty",
        ("infer", f"{at}@5", text): r"--checkpoint=\S+@5 names no checkpoint\. \S+ has the steps 4, 8, 12",
        ("infer", f"--checkpoint={tmp_path}", text): "is no model directory",
        ("infer", f"--checkpoint={tmp_path}/gone", text): "is no directory",
        ("infer", at, text, "--output=/no/such/dir/x.jsonl"): r"--output=/no/such/dir/x.jsonl cannot be written",
        ("infer", at, text, f"--output={tmp_path}"): r"--output=\S+ cannot be written\. It is a folder",
        ("infer", at, text, f"--output={tmp_path}/file/x"): r"--output=\S+file/x cannot be written",
        ("score", at, f"--input={pairs}", "--output=/proc/x.jsonl"): r"--output=/proc/x.jsonl cannot be written",
        ("score", at, f"--input={pairs}", f"--output={pairs}"): r"--output=\S+pairs.jsonl is also the input",
        ("infer", at, text, "--gin.VOCABULARY=/no/such.model"): r"VOCABULARY=/no/such.model cannot be read",
        ("infer", at, f"--checkpoint={trained_copy}", text): r"and --checkpoint=\S+ have different vocabularies: ",
    }
    for argv, message in cases.items():
        error = refused(capfd, *argv)
        assert re.search(message, error), error
    assert sorted(p for p in tmp_path.rglob("*")) == before and (tmp_path / "file").read_text() == "kept"


def test_models_of_other_tables_are_no_ensemble(trained, trained_copy, capfd):
    config = trained_copy / "config.gin"
    config.write_text(config.read_text().replace("vocab_size = 512", "vocab_size = 640"))
    error = refused(capfd, "infer", f"--checkpoint={trained}", f"--checkpoint={trained_copy}", "--text=a")
    assert re.search(r"have different embedding tables: 512 rows and 640 rows\. An ensemble is the mean of its", error)


def test_a_model_of_another_shape_leaves_older_answers_as_they_are(trained, tmp_path, capfd):
    answers = tmp_path / "answers.jsonl"
    flags = ["infer", f"--checkpoint={trained}", "--text=a", "--gin.architecture.Architecture.mlp_dim=96"]
    for older in (None, "older\n"):
        if older:
            answers.write_text(older)
        error = refused(capfd, *flags, f"--output={answers}", "--overwrite")
        assert re.search(r"mlp\S* has shape .*needs", error)
        assert (answers.read_text() if older else answers.exists()) == (older or False)
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


def test_a_disk_that_is_full_is_a_failure_of_the_run(trained, capfd):
    assert cli.run(["infer", f"--checkpoint={trained}", "--text=a", "--output=/dev/full"]) == 1
    error = capfd.readouterr().err
    assert "/dev/full could not be written: No space left on device. It holds 0 whole lines. Make room" in error
