"""eval of all checkpoints of a run, of each as it appears, of the best, and of several as one."""

import json
import os
import re
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from etils import epath

from t5x_lite import cli
from t5x_lite.train import checkpoint
from t5x_lite.verbs import evaluate, evaluate_steps

# One task without metrics: what is compiled is little.
FEW = ["--num_examples=8", "--batch_size=8"]


@pytest.fixture
def run_folder(trained_copy):
    """A model directory without evaluations."""
    shutil.rmtree(trained_copy / "eval")
    return trained_copy


def results(folder, name="eval"):
    return [json.loads(line) for line in (folder / name / "results.jsonl").read_text().splitlines()]


def evaluated(capfd, *argv, status=0):
    assert cli.run(["eval", *map(str, argv), *FEW]) == status
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return out, err


def test_all_checkpoints_are_evaluated_once(run_folder, capfd):
    at = f"--checkpoint={run_folder}@all"
    out, err = evaluated(capfd, at)
    lines = results(run_folder)
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert all(
        {k: line[k] for k in ("task", "split", "decode", "num_examples", "lengths")}
        == {"task": "text_span_corruption", "split": "validation", "decode": "greedy", "num_examples": 8,
            "lengths": "40/16"}
        for line in lines
    )  # fmt: skip
    table = out.partition("\n\n")[2]
    assert table == (run_folder / "eval/table.txt").read_text()
    head, metric, *rows = table.splitlines()
    assert head.split() == ["step", "text_span_corruption"] and metric.split() == ["loss"]
    assert [row.split() for row in rows] == [[str(line["step"]), f"{line['loss']:.3f}"] for line in lines]
    assert len({len(line) for line in (head, metric, *rows)}) == 1
    best = min(lines, key=lambda line: line["loss"])["step"]
    assert f"best: step {best}" in err

    # Not again, unless told to; but under another setting.
    again, err = evaluated(capfd, at)
    assert results(run_folder) == lines and again.strip() == table.strip()
    assert len([*(run_folder / "eval").glob("events.*")]) == 1  # nothing was evaluated, so none was begun
    assert f"step 8 has been evaluated: see {run_folder}/eval/results.jsonl" in err
    evaluated(capfd, at, "--decode=beam")
    assert [line["decode"] for line in results(run_folder)[3:]] == ["beam beam_size=4 length_penalty=0.6"] * 3
    evaluated(capfd, at, "--overwrite")
    assert results(run_folder)[6:] == lines

    # Nor are those of another configuration, or of a checkpoint that another has taken the place of.
    evaluated(capfd, at, "--gin.RANDOM_SEED=7")
    assert [line["overrides"] for line in results(run_folder)[9:]] == ["RANDOM_SEED=7"] * 3
    about = run_folder / "checkpoints/8/_CHECKPOINT_METADATA"
    stored = json.loads(about.read_text())
    about.write_text(json.dumps(stored | {"commit_timestamp_nsecs": stored["commit_timestamp_nsecs"] + 10**9}))
    evaluated(capfd, at)
    assert [line["step"] for line in results(run_folder)[12:]] == [8]


def test_an_average_of_a_checkpoint_that_another_has_replaced_is_worked_out_anew(run_folder, monkeypatch):
    """As after a kill between the last task and the average."""
    setting = {"split": "validation", "decode": "greedy", "num_examples": None, "lengths": "40/16", "overrides": None}
    evaluation = object.__new__(evaluate.Evaluation)
    vars(evaluation).update(
        folder=run_folder / "eval", tasks={"a"}, _directory=run_folder, _setting=setting, _members={}, _events=None
    )
    means = lambda known: {f"mean_{task}": line["em"] for task, line in known.items()}  # noqa: E731
    monkeypatch.setattr(evaluate.task_metrics, "averages", means)
    evaluation._record(8, "a", {"loss": 1.0, "em": 10.0})
    assert [*evaluation.averages(8, again=False)] == [("mean_a", 8, {"score": 10.0})]
    assert not [*evaluation.averages(8, again=False)]
    about = run_folder / "checkpoints/8/_CHECKPOINT_METADATA"
    stored = json.loads(about.read_text())
    about.write_text(json.dumps(stored | {"commit_timestamp_nsecs": stored["commit_timestamp_nsecs"] + 10**9}))
    assert not [*evaluation.averages(8, again=False)]
    evaluation._record(8, "a", {"loss": 1.0, "em": 20.0})
    assert [*evaluation.averages(8, again=False)] == [("mean_a", 8, {"score": 20.0})]


def test_the_best_is_evaluated_and_named(run_folder, capfd):
    lines = [{"step": s, "task": "a", "split": "validation", "loss": 1.0, "em": float(e)} for s, e in ((4, 3), (8, 1))]
    (run_folder / "eval").mkdir()
    (run_folder / "eval/results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 12, ')
    out, _ = evaluated(capfd, f"--checkpoint={run_folder}@best")
    assert out.startswith("text_span_corruption  step 4  loss ") and out.count("\n") == 1
    # The line that was cut short is gone.
    assert [line["step"] for line in results(run_folder)] == [4, 8, 4]


def test_an_ensemble_is_evaluated_into_a_folder_of_its_own(run_folder, tmp_path, capfd):
    at = [f"--checkpoint={run_folder}@{step}" for step in (4, 12)]
    out, _ = evaluated(capfd, *at, f"--output_dir={tmp_path}/both")
    (line,) = results(tmp_path, "both")
    assert [name.partition(" of ")[0] for name in line["checkpoints"]] == [f"{run_folder}@4", f"{run_folder}@12"]
    evaluated(capfd, at[0], f"--output_dir={tmp_path}/twice")
    evaluated(capfd, at[0], at[0], f"--output_dir={tmp_path}/twice")
    one, two = results(tmp_path, "twice")
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5) != line["loss"]
    assert not (run_folder / "eval").exists()


class Following:
    """`eval --follow` in a thread."""

    def __init__(self, folder, *more):
        self.status = None
        words = ["eval", f"--checkpoint={folder}", "--follow", "--poll_seconds=0.05", *FEW, *more]
        self.thread = threading.Thread(target=lambda: setattr(self, "status", cli.run(words)), daemon=True)
        self.thread.start()

    def wait_for(self, condition):
        deadline = time.monotonic() + 200
        while not condition():
            assert self.thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)

    def end(self):
        self.thread.join(200)
        return self.status


@pytest.fixture
def empty_run(run_folder, tmp_path):
    """(a run that has no checkpoint yet, a function that commits one of its steps)."""
    saved = run_folder / "checkpoints"
    store = saved.rename(tmp_path / "store")
    saved.mkdir()
    (run_folder / "DONE").rename(tmp_path / "DONE")

    def commit(step):
        shutil.copytree(store / str(step), saved / f"{step}.orbax-checkpoint-tmp")
        (saved / f"{step}.orbax-checkpoint-tmp").rename(saved / str(step))

    return run_folder, commit


def test_checkpoints_are_evaluated_as_they_appear(empty_run, tmp_path, capfd):
    folder, commit = empty_run
    out, err = "", ""

    def says(line):
        nonlocal out, err
        more = capfd.readouterr()
        out, err = out + more.out, err + more.err
        return line in err

    moved = folder.rename(tmp_path / "later")
    following = Following(folder)
    following.wait_for(lambda: says(f"{folder} is not there yet: waiting, looking every 0.05 s"))
    moved.rename(folder)
    time.sleep(0.2)
    commit(4)
    following.wait_for(lambda: says(f"waiting for a checkpoint after step 4 in {folder}"))
    assert len(results(folder)) == 1
    # As training does: an older checkpoint goes when a newer one has come.
    commit(8)
    following.wait_for(lambda: len(results(folder)) == 2)
    shutil.rmtree(folder / "checkpoints/4")
    commit(12)
    (tmp_path / "DONE").rename(folder / "DONE")
    assert following.end() == 0
    assert [line["step"] for line in results(folder)] == [4, 8, 12]
    out += capfd.readouterr().out
    assert [line.split()[0] for line in out.partition("\n\n")[2].splitlines()[2:]] == ["4", "8", "12"]

    # Begun again it has nothing to do, and reads nothing.
    known = folder / "eval/results.jsonl"
    before = known.read_bytes()
    assert Following(folder).end() == 0
    assert known.read_bytes() == before


@pytest.mark.parametrize("which", [["@all"], ["", "--follow", "--poll_seconds=0.05"]], ids=["all", "follow"])
def test_a_checkpoint_that_is_deleted_under_it_is_left_out(which, empty_run, tmp_path, capfd, monkeypatch):
    folder, commit = empty_run
    for step in (4, 8, 12):
        commit(step)
    (tmp_path / "DONE").rename(folder / "DONE")
    real = checkpoint.restore_part

    def slow(directory, abstract):
        if directory.name == "8":
            # Half of it is gone when it is read, the rest goes meanwhile.
            for file in (folder / "checkpoints/8/state").rglob("*"):
                if file.is_file():
                    file.unlink()
            threading.Timer(0.5, shutil.rmtree, [folder / "checkpoints/8"]).start()
        return real(directory, abstract)

    monkeypatch.setattr("t5x_lite.train.checkpoint.restore_part", slow)
    at, *flags = which
    _, err = evaluated(capfd, f"--checkpoint={folder}{at}", *flags)
    assert [line["step"] for line in results(folder)] == [4, 12]
    assert "step 8 was deleted before it could be read: left out" in err
    assert "ignored" not in err


def test_checkpoints_that_were_deleted_before_they_were_listed_are_said(empty_run, tmp_path, capfd, monkeypatch):
    """One before the command began; one that came and went while another was evaluated."""
    folder, commit = empty_run
    config, real = folder / "config.gin", checkpoint.restore_part
    config.write_text(re.sub("SAVE_PERIOD = 4", "SAVE_PERIOD = 2", config.read_text()))
    commit(4)

    def meanwhile(directory, abstract):
        if directory.name == "4":
            shutil.rmtree(folder / "checkpoints/4")
            commit(12)
            (tmp_path / "DONE").rename(folder / "DONE")
            directory = tmp_path / "store/4"
        return real(directory, abstract)

    monkeypatch.setattr("t5x_lite.train.checkpoint.restore_part", meanwhile)
    flags = [f"--checkpoint={folder}", "--follow", "--poll_seconds=0.05"]
    _, err = evaluated(capfd, *flags)
    assert [line["step"] for line in results(folder)] == [4, 12]
    said = [line for line in err.splitlines() if "deleted" in line]
    assert said == [
        "step 2 was deleted before it was evaluated",
        "steps 6, 8 and 10 were deleted before they were evaluated",
    ]
    # What has been evaluated is not missing.
    _, err = evaluated(capfd, *flags)
    said = [line for line in err.splitlines() if "deleted" in line]
    assert said == ["steps 2, 6, 8 and 10 were deleted before they were evaluated"]
    _, err = evaluated(capfd, f"--checkpoint={folder}@all")
    assert "deleted" not in err


@pytest.mark.parametrize(
    ("first", "period", "expected"),
    [
        ('{"step": 2}', 4, [4, 8]),
        ('{"step": 4}', 4, [4, 8]),
        ('{"step": 6}', 4, [8]),  # begun at the step of another model
        ('{"step": 2}', 0, []),
        ('{"st', 4, []),
        (None, 4, []),
    ],
)
def test_the_steps_that_a_run_has_saved(first, period, expected, tmp_path):
    if first is not None:
        (tmp_path / "metrics.jsonl").write_text(f"{first}\n")
    assert list(evaluate_steps.saved(epath.Path(tmp_path), period, 9)) == expected


def test_many_checkpoints_that_were_deleted_are_one_line(capsys):
    evaluate_steps._say_gone(range(1000, 98000, 1000))
    assert capsys.readouterr().err == "97 steps from 1000 to 97000 were deleted before they were evaluated\n"


@pytest.mark.parametrize("follow", [False, True], ids=["all", "follow"])
def test_a_checkpoint_that_is_damaged_and_stays_is_an_error(follow, run_folder, monkeypatch, capfd):
    """Said at once where nothing deletes it; where a run may be about to, when that has not happened."""
    monkeypatch.setattr(evaluate_steps, "_DELETION", 0.5)
    waits = []
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda s: waits.append(s) or time.sleep(s))
    monkeypatch.setattr(evaluate_steps, "time", clock)
    state = run_folder / "checkpoints/8/state"
    for file in (state / "ocdbt.process_0/d").iterdir():
        os.truncate(file, file.stat().st_size // 2)
    at = [f"--checkpoint={run_folder}", "--follow"] if follow else [f"--checkpoint={run_folder}@all"]
    _, err = evaluated(capfd, *at, status=2)
    assert [line["step"] for line in results(run_folder)] == [4] and (sum(waits) > 0) == follow
    said = r"the checkpoint \S+/checkpoints/8 cannot be read\. A file of it is missing, cut off or damaged\. Give"
    assert re.search(said, err), err
    (state / "_METADATA").unlink()
    evaluated(capfd, f"--checkpoint={run_folder}@8", status=2)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_following_ends_when_it_is_told_to(empty_run, number, status, capfd):
    folder, _ = empty_run
    # A shell starts what runs in its background with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
        _, err = evaluated(capfd, f"--checkpoint={folder}", "--follow", "--poll_seconds=30", status=status)
    finally:
        signal.signal(signal.SIGINT, before)
    said = "preempted: stopped by SIGTERM: what has been evaluated is written; the same command goes on"
    assert re.search(said if status == 75 else "t5x_lite: interrupted", err), err


def test_an_evaluation_that_was_cut_off_is_done_again(run_folder, capfd, monkeypatch):
    at = f"--checkpoint={run_folder}@all"
    real = evaluate.append_result
    monkeypatch.setattr(evaluate, "append_result", lambda folder, line: real(folder, line | {"incomplete": True}))
    evaluated(capfd, at)
    monkeypatch.undo()
    out, _ = evaluated(capfd, at)
    assert out.count("text_span_corruption  step") == 3 and len(results(run_folder)) == 6
