"""Several hosts, as processes of this machine: two train as one does, also on its checkpoints, and as two stop."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from t5x_lite import cli
from t5x_lite.train import checkpoint
from t5x_lite.train.metrics import read_jsonl
from tests.verbs.host_processes import ROOT, Hosts, positions


def mesh(**sizes):
    return {"PARTITION": "@partition.Partition()", "partition.Partition.mesh": sizes}


def losses(directory):
    return [(line["step"], line["loss"]) for line in read_jsonl(epath.Path(directory) / "metrics.jsonl")]


def params(directory, step):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    saved = epath.Path(directory) / f"checkpoints/{step}"
    shapes = jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here), dict(checkpoint.contents(saved)["params"])
    )
    return jax.device_get(checkpoint.restore_part(saved, {"params": shapes})["params"])


@pytest.fixture(scope="module")
def one(host_flags, tmp_path_factory):
    """A run on one host of four devices."""
    folder = tmp_path_factory.mktemp("one")
    hosts = Hosts(folder, host_flags(folder / "model", **mesh(data=2, fsdp=2)), hosts=1, devices=4)
    assert hosts.end() == [0], hosts.all()
    return folder / "model"


def assert_as_one(directory, one):
    found, expected = losses(directory), losses(one)
    assert [step for step, _ in found] == [step for step, _ in expected]
    np.testing.assert_allclose([v for _, v in found], [v for _, v in expected], rtol=2e-5)
    assert positions(directory, 8) == positions(one, 8)
    for ours, theirs in zip(*(jax.tree.leaves(params(d, 8)) for d in (directory, one)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    evaluations = [read_jsonl(epath.Path(d) / "eval/results.jsonl") for d in (directory, one)]
    assert [r["step"] for r in evaluations[0]] == [4, 8] == [r["step"] for r in evaluations[1]]
    for ours, theirs in zip(*evaluations):
        assert ours["tokens"] == theirs["tokens"] and ours["loss"] == pytest.approx(theirs["loss"], rel=2e-5)
    assert (directory / "DONE").exists()


def test_two_hosts_train_as_one(one, host_flags, tmp_path):
    hosts = Hosts(tmp_path, host_flags(tmp_path / "model", **mesh(data=2, fsdp=2)), devices=2)
    assert hosts.end() == [0, 0], hosts.all()
    assert "4 x cpu of 2 hosts, each reading 2 of 4 data shards" in hosts.said(0)
    # The first host speaks for all, but for Gloo, which speaks for itself and without regard for line ends.
    assert not [line for line in hosts.said(1).splitlines() if "Gloo" not in line and "connected" not in line]
    assert len(list((tmp_path / "model").glob("events.*"))) == 1
    assert_as_one(tmp_path / "model", one)
    # What two hosts wrote is read by one, on another mesh.
    shutil.rmtree(tmp_path / "model/checkpoints/8")
    assert cli.run(host_flags(tmp_path / "model", **mesh(model=2))) == 0
    assert_as_one(tmp_path / "model", one)


def test_one_hosts_run_goes_on_with_two_that_compute_each_row_together(one, host_flags, tmp_path):
    directory = Path(shutil.copytree(one, tmp_path / "model"))
    shutil.rmtree(directory / "checkpoints/8")
    hosts = Hosts(tmp_path, host_flags(directory, **mesh(model=2)))
    assert hosts.end() == [0, 0], hosts.all()
    assert f"resuming from {directory} at step 4" in hosts.said(0)
    assert "each reading 4 of 4 data shards" in hosts.said(0)
    assert_as_one(directory, one)


def test_what_two_hosts_decode_for_the_metrics_of_tasks_is_what_one_does(tmp_path):
    short = ["--gin.DATA_SHARDS=2", "--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=2", "--gin.LOG_PERIOD=1"]
    flags = ["train", "--gin_file=tiny.gin", "--gin.MODEL_DIR=model", *short]
    one, two = (shutil.copytree(ROOT / "examples/movie_reviews", tmp_path / count) for count in ("one", "two"))
    with Hosts(one, flags, hosts=1, devices=2) as alone, Hosts(two, flags, hosts=2) as both:
        assert alone.end() == [0] and both.end() == [0, 0], alone.all() + both.all()
    found = {
        count: {path.name: [*map(json.loads, path.open())] for path in (folder / "model/eval").iterdir()}
        for count, folder in ((1, one), (2, two))
    }
    results = {count: found[count].pop("results.jsonl") for count in found}
    assert found[1] == found[2] and len(found[1]) == 2 and all(found[1].values())
    for ours, theirs in zip(results[2], results[1], strict=True):
        assert ours.keys() == theirs.keys() and "task_accuracy" in ours
        assert [ours[k] for k in theirs] == [
            pytest.approx(v, rel=1e-5) if isinstance(v, float) else v for v in theirs.values()
        ]
