"""Training on tokens where nothing is installed but jax, flax, optax, orbax-checkpoint, gin-config and their needs."""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from t5x_lite import cli
from t5x_lite.train import checkpoint
from tests.verbs.test_resume import state_of

ROOT = Path(__file__).parents[2]
INSTALLED = ("jax", "flax", "optax", "orbax-checkpoint", "gin-config")
STEPS = {"TRAIN_STEPS": 40, "SAVE_PERIOD": 10, "EVAL_PERIOD": 20, "EVAL_BATCHES": 1000}
SECONDS = 120

# Runs a command line as if some modules were not installed.
RUNNER = """
import json, sys

gone = set(json.loads(sys.argv[1]))

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in gone else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
for name in [name for name in sys.modules if name.split(".")[0] in gone]:
    del sys.modules[name]

from t5x_lite import cli
status = cli.run(sys.argv[2:])
loaded = gone.intersection(name.split(".")[0] for name in sys.modules)
sys.exit(f"loaded: {loaded}" if loaded else status)
"""


def needed() -> set[str]:
    """The distributions that come with INSTALLED."""
    seen: dict[str, set[str]] = {}
    left = [Requirement(name) for name in INSTALLED]
    while left:
        wanted = left.pop()
        name = canonicalize_name(wanted.name)
        if name in seen and wanted.extras <= seen[name]:
            continue
        seen.setdefault(name, set()).update(wanted.extras)
        for line in importlib.metadata.requires(name) or []:
            found = Requirement(line)
            if found.marker is None or any(found.marker.evaluate({"extra": e}) for e in ("", *seen[name])):
                left.append(found)
    return set(seen)


@pytest.fixture(scope="module")
def gone() -> str:
    """The modules of all other distributions of this environment, as JSON."""
    kept = needed() | {"t5x-lite"}
    modules = importlib.metadata.packages_distributions()
    others = {m for m, owners in modules.items() if kept.isdisjoint(map(canonicalize_name, owners))}
    assert others >= {
        "tensorflow", "seqio", "tensorflow_datasets", "sentencepiece", "tensorboard", "tqdm", "safetensors", "pyarrow"
    }  # fmt: skip
    assert not others & {"jax", "numpy", "google", "etils", "tensorstore", "absl", "scipy"}
    return json.dumps(sorted(others))


@pytest.fixture(scope="module")
def flags(train_flags, caches):
    """A function: model directory, changed macros -> the words of a run that is given tokens and no vocabulary."""

    def made(directory, folder=caches / "text_span_corruption", **changed):
        words = train_flags(directory, TOKENS_DIR=folder, **STEPS | changed)
        return [w for w in words if not re.match(r"--gin\.(VOCABULARY|DATA_GLOB|VALIDATION_GLOB)=", w)]

    return made


class Run:
    """A process in which those modules are not there, whose stderr is watched."""

    def __init__(self, gone, words, log):
        # The devices of this process, or sums would be taken in another order.
        devices = {"JAX_NUM_CPU_DEVICES": str(jax.device_count()), "JAX_PLATFORMS": "cpu"}
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUNNER, gone, *words], cwd=log.parent, stdout=file, stderr=file,
                env=os.environ | devices | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def wait_for(self, pattern):
        deadline = time.monotonic() + SECONDS
        while not re.search(pattern, self.log.read_text()):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.001)

    def end(self, number=None) -> int:
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(SECONDS)


@pytest.fixture(scope="module")
def uninterrupted(gone, flags, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("on_tokens")
    run = Run(gone, flags(folder / "model"), folder / "log")
    assert run.end() == 0, run.log.read_text()
    return folder / "model"


def test_a_run_ends_with_its_evaluations(uninterrupted, caches):
    log = (uninterrupted.parent / "log").read_text()
    assert "tensorboard is not installed: no event files are written" in log and "Traceback" not in log
    assert (uninterrupted / "DONE").exists() and not list(uninterrupted.glob("events*"))
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 40 and lines[-1]["loss"] < lines[0]["loss"]
    results = [json.loads(line) for line in (uninterrupted / "eval/results.jsonl").read_text().splitlines()]
    assert [(r["step"], r["task"], r["split"]) for r in results] == [
        (step, "text_span_corruption", "validation") for step in (20, 40)
    ]
    copy = uninterrupted / "vocabulary.model"
    assert copy.read_bytes() == (caches / "text_span_corruption/vocabulary.model").read_bytes()
    assert f"VOCABULARY = \\\n    '{caches}" in (uninterrupted / "config.gin").read_text() or (
        f"VOCABULARY = '{caches}/text_span_corruption/vocabulary.model'" in (uninterrupted / "config.gin").read_text()
    )


def test_an_interrupted_run_ends_as_the_uninterrupted_one(uninterrupted, gone, flags, tmp_path):
    directory = tmp_path / "model"
    words = flags(directory)
    run = Run(gone, words, tmp_path / "killed")
    run.wait_for(r"step 1[2-9]/40|step 2\d/40")
    assert run.end(signal.SIGKILL) == -signal.SIGKILL
    run = Run(gone, words, tmp_path / "stopped")
    run.wait_for(r"\nstep \d+/40")
    assert run.end(signal.SIGTERM) == 75, run.log.read_text()
    run = Run(gone, words, tmp_path / "finished")
    assert run.end() == 0, run.log.read_text()
    assert f"resuming from {directory} at step" in run.log.read_text()

    for (path, one), (_, other) in zip(
        *(jax.tree_util.tree_leaves_with_path(state_of(d, 40)) for d in (directory, uninterrupted)), strict=True
    ):
        np.testing.assert_array_equal(one, other, err_msg=str(path))
    for shard in ("shard_00000", "shard_00001"):
        one, other = (d / f"checkpoints/40/data/{shard}" for d in (directory, uninterrupted))
        assert one.read_bytes() == other.read_bytes()
    one, other = ((d / "eval/results.jsonl").read_text() for d in (directory, uninterrupted))
    assert one == other


def test_eval_on_the_tokens(uninterrupted, gone, tmp_path):
    model = shutil.copytree(uninterrupted, tmp_path / "model")
    run = Run(gone, ["eval", f"--checkpoint={model}"], tmp_path / "log")
    assert run.end() == 0, run.log.read_text()
    shown = re.fullmatch(r"text_span_corruption  step 40  loss (\S+)  accuracy \S+  tokens \d+\n", run.log.read_text())
    last = json.loads((uninterrupted / "eval/results.jsonl").read_text().splitlines()[-1])
    assert shown and abs(float(shown[1]) - last["loss"]) < 1e-3


def test_what_needs_more_says_so(uninterrupted, gone, tmp_path):
    run = Run(gone, ["infer", f"--checkpoint={uninterrupted}", "--text=a"], tmp_path / "log")
    assert run.end() == 2
    assert run.log.read_text() == (
        "t5x_lite: error: sentencepiece is not installed. The verb infer needs it. "
        "Install all that t5x_lite needs: pip install t5x_lite.\n"
    )


def test_a_run_goes_on_where_all_is_installed(uninterrupted, flags, tmp_path, capsys):
    """From the model directory alone, with the tokens in another place."""
    model = shutil.copytree(uninterrupted, tmp_path / "model")
    own = [f"--gin_file={model}/config.gin", f"--gin.MODEL_DIR={model}", "--gin.TRAIN_STEPS=44"]
    assert cli.run(["train", *own]) == 0
    assert checkpoint.steps(str(model))[-1] == 44
    assert list(model.glob("events*"))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"TOKENS_DIR": "gone"}, "VOCABULARY is not set. TOKENS_DIR=.*gone has no copy of it"),
        ({"MIXTURE_OR_TASK_NAME": "text_x"}, "cannot be read as MIXTURE_OR_TASK_NAME=text_x"),
        ({"VOCABULARY": "bytes"}, "VOCABULARY=bytes is not what the tokens in .* were made with"),
        ({"TASK_FEATURE_LENGTHS": {"inputs": 40, "targets": 4}}, "TASK_FEATURE_LENGTHS gives the targets 4 tokens"),
        ({"architecture.Architecture.vocab_size": 256}, "the vocabulary .* has 500 ids, but the model's table has 256"),
        ({"RANDOM_SEED": 1}, "RANDOM_SEED"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_compiled(uninterrupted, flags, tmp_path, capsys, changed, text):
    directory = tmp_path / "model"
    if "RANDOM_SEED" in changed:  # another order than the one that a position is in
        shutil.copytree(uninterrupted, directory)
        changed["TRAIN_STEPS"] = 50
    words = flags(directory, **{k: v for k, v in changed.items() if k != "TOKENS_DIR"})
    words += [f"--gin.{name}={changed[name]}" for name in ("TOKENS_DIR", "VOCABULARY") if name in changed]
    assert cli.run(words) == 2
    assert re.search(text, capsys.readouterr().err)


def test_other_tokens_under_a_position_are_refused(uninterrupted, caches, flags, tmp_path, capsys):
    model = shutil.copytree(uninterrupted, tmp_path / "model")
    folder = shutil.copytree(caches / "text_span_corruption", tmp_path / "tokens")
    first, second = sorted(folder.glob("train.tfrecord-*"))[:2]
    first.write_bytes(first.read_bytes() + second.read_bytes())
    assert cli.run(flags(model, folder, TRAIN_STEPS=50)) == 2
    assert "the tokens" in capsys.readouterr().err


def test_a_damaged_record_ends_the_run(caches, flags, tmp_path, capsys):
    folder = shutil.copytree(caches / "text_span_corruption", tmp_path / "tokens")
    for path in folder.glob("train.tfrecord-*"):
        data = bytearray(path.read_bytes())
        data[-5] ^= 1  # in its last record
        path.write_bytes(data)
    assert cli.run(flags(tmp_path / "model", folder)) == 2
    said = capsys.readouterr().err
    assert "cannot be read. The checksum of its data is wrong." in said and str(folder) in said
    assert not (tmp_path / "model").exists()


def test_tokens_without_a_validation_split(caches, flags, tmp_path, capsys):
    folder = shutil.copytree(caches / "text_span_corruption", tmp_path / "tokens")
    for path in folder.glob("*validation*"):
        path.unlink()
    assert cli.run(flags(tmp_path / "model", folder, TRAIN_STEPS=2)) == 0
    assert "has no validation split: nothing is evaluated" in capsys.readouterr().err
