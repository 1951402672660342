"""A run that is killed, torn while it saves, and asked to stop ends as the run that was left alone, bit for bit."""

import gzip
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from t5x_lite.data import examples
from t5x_lite.train import checkpoint
from tests.conftest import as_shipped

CHANGED = {"TRAIN_STEPS": 60, "SAVE_PERIOD": 10, "EVAL_PERIOD": 0}
ROOT = Path(__file__).parents[2]
SECONDS = 120


class Run:
    """A training process as users start it, whose stderr is watched."""

    def __init__(self, flags, log):
        env = as_shipped() | {"JAX_NUM_CPU_DEVICES": str(jax.device_count())}
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen([sys.executable, "-m", "t5x_lite", *flags], cwd=ROOT, env=env, stderr=file)

    def wait_for(self, condition):
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.001)

    def said(self, pattern):
        return bool(re.search(pattern, self.log.read_text()))

    def end(self, number=None) -> int:
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(SECONDS)


def state_of(directory, step):
    """Every array of a checkpoint, as numpy."""
    folder = epath.Path(directory) / f"checkpoints/{step}"
    with checkpoint.manager(str(directory), keep=None, read_only=True) as checkpoints:
        saved = checkpoints.item_metadata(step)["state"]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here), dict(saved))
    return jax.device_get(checkpoint.restore_part(folder, shapes))


def continuation(directory, step, corpus):
    """The rows that each data shard gives after a checkpoint. (What tf.data has read ahead differs, so bytes do.)"""
    from t5x_lite.tasks import registry

    files = str(corpus / "train-*.json.gz"), str(corpus / "validation.jsonl")
    task = registry.prepare("text_span_corruption", None, str(corpus / "vocabulary.model"), *files)
    lengths = {"inputs": 40, "targets": 16}
    streams = examples.train_streams(task, [0, 1], 2, lengths, True, 0, False, lambda error: None)
    for shard, stream in streams.items():
        stream.restore((Path(directory) / f"checkpoints/{step}/data/shard_{shard:05d}").read_bytes())
    return str([[{k: v.tolist() for k, v in e.items()} for e in row] for s in streams.values() for row in s.take(60)])


@pytest.fixture(scope="module")
def uninterrupted(train_flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = Run(train_flags(folder / "model", **CHANGED), folder / "log")
    assert run.end() == 0, run.log.read_text()
    return folder / "model"


def test_an_interrupted_run_ends_as_the_uninterrupted_one(uninterrupted, train_flags, corpus, tmp_path):
    directory = tmp_path / "model"
    flags = train_flags(directory, **CHANGED)
    saved = directory / "checkpoints"

    # Killed at the moment when step 10 is being written.
    run = Run(flags, tmp_path / "torn")
    run.wait_for(lambda: saved.is_dir() and any("tmp" in path.name for path in saved.iterdir()))
    assert run.end(signal.SIGKILL) == -signal.SIGKILL
    assert set(checkpoint.steps(str(directory))) <= {10}
    assert not (directory / "DONE").exists()

    # Killed between checkpoints.
    run = Run(flags, tmp_path / "killed")
    run.wait_for(lambda: run.said(r"step 2[4-9]/60|step 3\d/60"))
    assert run.end(signal.SIGKILL) == -signal.SIGKILL
    steps = checkpoint.steps(str(directory))
    assert steps and steps[-1] >= 10

    # Asked to stop.
    run = Run(flags, tmp_path / "stopped")
    run.wait_for(lambda: run.said(r"\nstep \d+/60"))
    assert run.end(signal.SIGTERM) == 75
    text = run.log.read_text()
    assert f"resuming from {directory} at step {steps[-1]}" in text
    assert "t5x_lite: SIGTERM received: saving a checkpoint, then stopping" in text
    line = r"^t5x_lite: preempted: stopped at step (\d+) of 60, which is saved in (\S+); the same command goes on"
    stopped = re.search(line, text, re.MULTILINE)
    assert stopped and stopped[2] == str(directory) and "Traceback" not in text
    assert checkpoint.steps(str(directory))[-1] == int(stopped[1]) < 60
    assert not (directory / "DONE").exists()

    # Left alone.
    run = Run(flags, tmp_path / "finished")
    assert run.end() == 0, run.log.read_text()
    assert f"at step {stopped[1]}" in run.log.read_text()
    assert (directory / "DONE").exists()
    assert checkpoint.steps(str(directory))[-1] == 60

    for (path, one), (_, other) in zip(
        *(jax.tree_util.tree_leaves_with_path(state_of(d, 60)) for d in (directory, uninterrupted)), strict=True
    ):
        np.testing.assert_array_equal(one, other, err_msg=str(path))
    assert continuation(directory, 60, corpus) == continuation(uninterrupted, 60, corpus)
    logged = [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert logged == list(range(2, 61, 2))


def test_a_run_that_fails_ends_at_once(train_flags, corpus, tmp_path):
    """Fewer documents than data shards, found by a thread of tf.data while another one compiles."""
    with gzip.open(tmp_path / "two.json.gz", "wt") as file:
        file.writelines(json.dumps({"text": " ".join(["word"] * 3000)}) + "\n" for _ in range(2))
    flags = train_flags(tmp_path / "model", DATA_GLOB=tmp_path / "two.json.gz", DATA_SHARDS=4)
    run = Run(flags, tmp_path / "log")
    assert run.end() == 2
    text = run.log.read_text()
    assert "data shard 2 has no more examples" in text and "Traceback" not in text
    assert not (tmp_path / "model").exists()
