"""Checkpoints: bit for bit from any mesh to any other, whole or not at all, and what is said of the wrong one."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from etils import epath

from t5x_lite import program
from t5x_lite.errors import UserError
from t5x_lite.train import checkpoint, optimizer
from tests.train import tiny

pytestmark = pytest.mark.sharded

IDENTITY = {"DATA_SHARDS": 2, "TASK_FEATURE_LENGTHS": {"inputs": 12, "targets": 10}, "PACK": True}
SHARDS = {0: b"zero", 1: b"\x00one" * 100}


def laid_out(partition=tiny.ONE, devices=1, **changed):
    job = tiny.job(partition, **changed)
    mesh = partition.build(jax.devices()[:devices])
    with jax.set_mesh(mesh):
        return program.lay_out(job, jax.sharding.get_mesh())


def drawn(abstract, seed=0):
    """A state of random numbers on the shardings of `abstract`, and the same as numpy."""
    rng = np.random.default_rng(seed)

    def one(s):
        return (100 * rng.standard_normal(s.shape)).astype(s.dtype)

    values = jax.tree.map(one, abstract)
    return jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), values, abstract), values


def assert_bits(restored, values, abstract):
    for (path, leaf), (_, value), (_, s) in zip(
        *(jax.tree_util.tree_leaves_with_path(t) for t in (restored, values, abstract)), strict=True
    ):
        assert leaf.sharding == s.sharding and leaf.dtype == value.dtype, path
        np.testing.assert_array_equal(np.asarray(leaf), value, err_msg=str(path))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A checkpoint of step 7, written under fsdp on four devices, and its values."""
    directory = tmp_path_factory.mktemp("model")
    state, values = drawn(laid_out(tiny.shipped("fsdp"), 4).state)
    with checkpoint.manager(str(directory), keep=3) as checkpoints:
        checkpoint.save(checkpoints, 7, state, checkpoint.Position(IDENTITY, 700, SHARDS))
    return directory, values


def restore(directory, abstract, identity=IDENTITY, shards=(0, 1), step=7):
    checkpoint.check(epath.Path(directory) / f"checkpoints/{step}", abstract, identity)
    with checkpoint.manager(str(directory), keep=None, read_only=True) as checkpoints:
        return checkpoint.restore(checkpoints, step, abstract, list(shards))


# Every shipped layout on all devices, and two on fewer.
MESHES = [*((name, 8) for name in tiny.MESHES), ("data", 1), ("fsdp", 4)]


@functools.cache
def state_on(name: str, devices: int):
    return laid_out(tiny.on_mesh(name), devices).state


@pytest.fixture(scope="module", params=MESHES, ids=lambda m: f"{m[0]}-{m[1]}")
def written_on(request, tmp_path_factory):
    """A checkpoint written under each layout, and its values."""
    directory = tmp_path_factory.mktemp("model")
    state, values = drawn(state_on(*request.param))
    with checkpoint.manager(str(directory), keep=3) as checkpoints:
        checkpoint.save(checkpoints, 7, state, checkpoint.Position(IDENTITY, 700, SHARDS))
    return directory, values


@pytest.mark.parametrize("mesh", MESHES, ids=lambda m: f"{m[0]}-{m[1]}")
def test_restored_equals_saved_across_all_pairs_of_meshes(written_on, mesh):
    directory, values = written_on
    abstract = state_on(*mesh)
    state, position = restore(directory, abstract)
    assert_bits(state, values, abstract)
    assert (position.shards, position.tokens_seen, position.identity) == (SHARDS, 700, IDENTITY)


def test_a_host_reads_its_own_shards(written):
    assert restore(written[0], laid_out().state, shards=[1])[1].shards == {1: SHARDS[1]}


def test_parameters_alone(written):
    directory, values = written
    abstract = {"params": laid_out(tiny.shipped("tensor"), 4).params}
    part = checkpoint.restore_part(epath.Path(directory) / "checkpoints/7", abstract)
    assert_bits(part, {"params": values["params"]}, abstract)
    assert set(checkpoint.contents(epath.Path(directory) / "checkpoints/7")) >= {"params", "step", "opt_state"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"DATA_SHARDS": 4}, r"DATA_SHARDS is 4, but the data position in \S+7 was saved under 2\..*SHARDS back"),
        ({"PACK": False}, r"PACK is False, but .* under True\. The stream of examples .*INITIAL_CHECKPOINT_PATH"),
        (
            {"TASK_FEATURE_LENGTHS": {"inputs": 14, "targets": 10}},
            r"TASK_FEATURE_LENGTHS is \{'inputs': 14, .*\}, but .* saved under \{'inputs': 12",
        ),
    ],
)
def test_a_position_of_another_cut_is_refused(written, changed, message):
    with pytest.raises(UserError, match=message):
        restore(written[0], laid_out().state, IDENTITY | changed)


def test_another_model_is_refused(written):
    wider = laid_out(model=dataclasses.replace(tiny.ARCHITECTURE, mlp_dim=64)).state
    message = r"params/\S*/mlp/\S* has shape \[2, 32, 48\] in the checkpoint \S*7, but this job needs \[2, 32, 64\]\."
    with pytest.raises(UserError, match=message + " The checkpoint is of another model"):
        restore(written[0], wider)
    tied = laid_out(model=dataclasses.replace(tiny.ARCHITECTURE, tied_head=True)).state
    with pytest.raises(UserError, match=r"holds params/decoder/logits_dense/\S*, which this job's model does not have"):
        restore(written[0], tied)
    relu = laid_out(model=dataclasses.replace(tiny.ARCHITECTURE, mlp_activations=("relu",)))
    with pytest.raises(UserError, match=r"params/\S*/mlp/wi/kernel is absent in the checkpoint"):
        checkpoint.restore_part(epath.Path(written[0]) / "checkpoints/7", {"params": relu.params})


def test_another_optimizer_is_refused(written):
    other = laid_out(optimizer=optimizer.adamw_rms()).state
    with pytest.raises(UserError, match=r"opt_state/\S* .* is of another optimizer\. Use the same optim/\S*\.gin\.$"):
        restore(written[0], other)
    # A start may leave it behind.
    start = epath.Path(written[0]) / "checkpoints/7"
    with pytest.raises(UserError, match=r"another optimizer\. .* begin its state anew with .*OPTIMIZER_STATE=False"):
        checkpoint.check(start, {"opt_state": other["opt_state"]}, None)
    checkpoint.check(start, {"params": other["params"]}, None)


def test_a_converted_checkpoint_is_no_run_to_resume(tmp_path):
    laid = laid_out()
    params, values = drawn(laid.params)
    checkpoint.save_params(str(tmp_path), 0, params)
    part = checkpoint.restore_part(epath.Path(tmp_path) / "checkpoints/0", {"params": laid.params})
    assert_bits(part, {"params": values}, {"params": laid.params})
    with pytest.raises(UserError, match=r"0 holds no optimizer state\. .*--gin.INITIAL_CHECKPOINT_PATH .*MODEL_DIR"):
        restore(tmp_path, laid.state, step=0)


def test_the_newest_are_kept_and_all_is_whole(tmp_path):
    laid = laid_out()
    state, _ = drawn(laid.state)
    with checkpoint.manager(str(tmp_path), keep=2) as checkpoints:
        for step in (2, 4, 6, 8):
            checkpoint.save(checkpoints, step, state, checkpoint.Position(IDENTITY, 100 * step, {0: b"%d" % step}))
    assert checkpoint.steps(str(tmp_path)) == [6, 8]
    assert restore(tmp_path, laid.state, shards=[0], step=6)[1].shards == {0: b"6"}

    # What a killed writer leaves is no checkpoint, and is gone after the next start.
    folder = tmp_path / "checkpoints"
    torn = folder / "10.orbax-checkpoint-tmp-1"
    (torn / "state").mkdir(parents=True)
    (torn / "state/half").write_bytes(b"...")
    assert checkpoint.steps(str(tmp_path)) == [6, 8]
    assert checkpoint.find(str(tmp_path))[1] == 8
    with checkpoint.manager(str(tmp_path), keep=2) as checkpoints:
        checkpoint.save(checkpoints, 10, state, checkpoint.Position(IDENTITY, 1000, {0: b"10"}))
    assert sorted(path.name for path in folder.iterdir()) == ["10", "8"]


def test_references(written, tmp_path):
    directory = str(written[0])
    expected = (epath.Path(directory), 7)
    for reference in (directory, f"{directory}@latest", f"{directory}@7", f"{directory}/checkpoints/7"):
        assert checkpoint.find(reference) == expected
    (tmp_path / "begun/checkpoints").mkdir(parents=True)
    refused = {
        f"{directory}@8": r"--checkpoint=\S+@8 names no checkpoint\. \S+ has the steps 7\. Write \S+@latest or \S+@7",
        f"{directory}@newest": r"names no checkpoint\. \S+ has the steps 7\. Write",
        f"{directory}@all": r"names no checkpoint\. \S+ has the steps 7\. Only eval takes @all: write \S+@latest or",
        f"{directory}/checkpoints/9": r"has the steps 7",
        str(tmp_path / "gone"): r"--checkpoint=\S+gone is no directory",
        str(tmp_path / "begun"): r"begun has no committed checkpoint yet\. .* go on with its train command",
        str(tmp_path): r"is no model directory\. It has no checkpoints/STEP with a committed .*t5x_lite convert",
    }
    for reference, message in refused.items():
        with pytest.raises(UserError) as caught:
            checkpoint.find(reference)
        assert re.search(message, str(caught.value)), str(caught.value)
    with pytest.raises(UserError, match="^--gin.INITIAL_CHECKPOINT_PATH="):
        checkpoint.find(str(tmp_path), "--gin.INITIAL_CHECKPOINT_PATH")
    assert checkpoint.steps(str(tmp_path / "gone")) == []
