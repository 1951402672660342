"""Hosts as processes of this machine: two train as one does, stop as one, and end when one of them is lost."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from t5x_lite import cli
from t5x_lite.train import checkpoint
from t5x_lite.train.metrics import read_jsonl

ROOT = Path(__file__).parents[2]
SECONDS = 180
# Neither an evaluation nor a checkpoint, so that nothing but steps can hang.
ENDLESS = {"TRAIN_STEPS": 10**7, "SAVE_PERIOD": 10**7, "EVAL_PERIOD": 0, "LOG_PERIOD": 20}


@pytest.fixture(scope="module")
def flags_of(train_flags, caches, corpus):
    """A function: model directory, changed macros -> the command line of a short run that needs no TensorFlow."""

    def flags(directory, **changed):
        macros = {
            "TOKENS_DIR": caches / "text_span_corruption", "DATA_SHARDS": 4, "TRAIN_STEPS": 8, "LOG_PERIOD": 1,
            "EVAL_PERIOD": 4, "HOST_TIMEOUT": 10,
        }  # fmt: skip
        return train_flags(directory, **macros | changed)

    return flags


def mesh(**sizes):
    return {"PARTITION": "@partition.Partition()", "partition.Partition.mesh": sizes}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


class Hosts:
    """Processes that are given one command, and what they say."""

    def __init__(self, folder, flags, hosts=2, devices=1, address="localhost", prefixes=None):
        env = os.environ | {
            "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        where = f"{address}:{free_port()}"
        self.logs = [folder / f"host{host}" for host in range(hosts)]
        self.processes = []
        for host, log in enumerate(self.logs):
            own = [f"--coordinator_address={where}", f"--num_processes={hosts}", f"--process_id={host}"]
            command = [sys.executable, "-m", "t5x_lite", *(flags[host] if isinstance(flags[0], list) else flags)]
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [*(prefixes[host] if prefixes else []), *command, *(own if hosts > 1 else [])],
                        cwd=folder,
                        env=env,
                        stdout=file,
                        stderr=file,
                    )
                )

    def said(self, host=0) -> str:
        return self.logs[host].read_text()

    def wait_for(self, pattern, host=0):
        deadline = time.monotonic() + SECONDS
        while not re.search(pattern, self.said(host)):
            assert time.monotonic() < deadline and all(p.poll() is None for p in self.processes), self.all()
            time.sleep(0.05)

    def all(self) -> str:
        return "\n\n".join(self.said(host) for host in range(len(self.logs)))

    def end(self) -> list[int]:
        try:
            return [process.wait(SECONDS) for process in self.processes]
        finally:
            self.kill()

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def losses(directory):
    return [(line["step"], line["loss"]) for line in read_jsonl(epath.Path(directory) / "metrics.jsonl")]


def params(directory, step):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    saved = epath.Path(directory) / f"checkpoints/{step}"
    shapes = jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here), dict(checkpoint.contents(saved)["params"])
    )
    return jax.device_get(checkpoint.restore_part(saved, {"params": shapes})["params"])


def positions(directory, step):
    folder = Path(directory) / f"checkpoints/{step}/data"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(("shard", "position"))}


@pytest.fixture(scope="module")
def one(flags_of, tmp_path_factory):
    """A run on one host of four devices."""
    folder = tmp_path_factory.mktemp("one")
    hosts = Hosts(folder, flags_of(folder / "model", **mesh(data=2, fsdp=2)), hosts=1, devices=4)
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


def test_two_hosts_train_as_one(one, flags_of, tmp_path):
    hosts = Hosts(tmp_path, flags_of(tmp_path / "model", **mesh(data=2, fsdp=2)), devices=2)
    assert hosts.end() == [0, 0], hosts.all()
    assert "4 x cpu of 2 hosts, each reading 2 of 4 data shards" in hosts.said(0)
    # The first host speaks for all, but for Gloo, which speaks for itself and without regard for line ends.
    assert not [line for line in hosts.said(1).splitlines() if "Gloo" not in line and "connected" not in line]
    assert len(list((tmp_path / "model").glob("events.*"))) == 1
    assert_as_one(tmp_path / "model", one)
    # What two hosts wrote is read by one, on another mesh.
    shutil.rmtree(tmp_path / "model/checkpoints/8")
    assert cli.run(flags_of(tmp_path / "model", **mesh(model=2))) == 0
    assert_as_one(tmp_path / "model", one)


def test_one_hosts_run_goes_on_with_two_that_compute_each_row_together(one, flags_of, tmp_path):
    directory = Path(shutil.copytree(one, tmp_path / "model"))
    shutil.rmtree(directory / "checkpoints/8")
    hosts = Hosts(tmp_path, flags_of(directory, **mesh(model=2)))
    assert hosts.end() == [0, 0], hosts.all()
    assert f"resuming from {directory} at step 4" in hosts.said(0)
    assert "each reading 4 of 4 data shards" in hosts.said(0)
    assert_as_one(directory, one)


def test_what_two_hosts_decode_for_the_metrics_of_tasks_is_what_one_does(tmp_path):
    for path in (ROOT / "examples/movie_reviews").iterdir():
        shutil.copy(path, tmp_path)
    short = ["--gin.DATA_SHARDS=2", "--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=2", "--gin.LOG_PERIOD=1"]
    found = {}
    for count in (1, 2):
        flags = ["train", "--gin_file=tiny.gin", f"--gin.MODEL_DIR=model{count}", *short]
        hosts = Hosts(tmp_path, flags, hosts=count, devices=2 // count)
        assert hosts.end() == [0] * count, hosts.all()
        folder = tmp_path / f"model{count}/eval"
        found[count] = {path.name: [*map(json.loads, path.open())] for path in folder.iterdir()}
    results = {count: found[count].pop("results.jsonl") for count in found}
    assert found[1] == found[2] and len(found[1]) == 2 and all(found[1].values())
    for one, two in zip(results[1], results[2], strict=True):
        assert one.keys() == two.keys() and "task_accuracy" in one
        assert [two[k] for k in one] == [
            pytest.approx(v, rel=1e-5) if isinstance(v, float) else v for v in one.values()
        ]


def test_a_signal_to_one_host_stops_all_at_one_step(flags_of, tmp_path):
    hosts = Hosts(tmp_path, flags_of(tmp_path / "model", **ENDLESS))
    hosts.wait_for(r"\nstep 20/")
    hosts.processes[1].send_signal(signal.SIGTERM)
    assert hosts.end() == [75, 75], hosts.all()
    assert "t5x_lite: host 1 of 2: SIGTERM received: saving a checkpoint, then stopping" in hosts.said(1)
    [step] = checkpoint.steps(str(tmp_path / "model"))
    for host in (0, 1):
        assert f"t5x_lite: preempted: stopped at step {step} of 10000000, which is saved" in hosts.said(host)
    assert set(positions(tmp_path / "model", step)) == {"position.json", *(f"shard_{k:05d}" for k in range(4))}


@pytest.mark.parametrize(("number", "victim"), [(signal.SIGKILL, 1), (signal.SIGSTOP, 0)])
def test_a_lost_host_ends_the_other_and_says_what_is_safe(number, victim, flags_of, tmp_path):
    with Hosts(tmp_path, flags_of(tmp_path / "model", **ENDLESS | {"SAVE_PERIOD": 20})) as hosts:
        hosts.wait_for(r"\nstep 60/")
        hosts.processes[victim].send_signal(number)
        other = 1 - victim
        assert hosts.processes[other].wait(SECONDS) == 1, hosts.all()
        last = hosts.said(other).splitlines()[-1]
        said = re.fullmatch(
            rf"t5x_lite: error: host {other} of 2 ends because another one was lost, or the connection to it: .*\. "
            r"The checkpoint of step (\d+) is committed and safe\. Start the same command on all hosts again\.",
            last,
        )
        assert said and int(said[1]) == checkpoint.steps(str(tmp_path / "model"))[-1], hosts.all()


def test_a_hang_shows_every_thread_and_ends_the_run(flags_of, tmp_path):
    flags = flags_of(tmp_path / "model", **ENDLESS, HANG_TIMEOUT=20) + ["--gin.HOST_TIMEOUT=1000"]
    with Hosts(tmp_path, flags) as hosts:
        hosts.wait_for(r"\nstep 20/")
        hosts.processes[1].send_signal(signal.SIGSTOP)
        assert hosts.processes[0].wait(SECONDS) == 1, hosts.all()
        said = hosts.said(0)
    assert "t5x_lite: host 0 of 2: nothing has moved for 20 s; its threads:" in said
    assert re.search(r"loop\.py\", line \d+ in run", said) and re.search(r"batches\.py\", line \d+ in _produce", said)
    assert re.search(
        r"t5x_lite: error: host 0 of 2: nothing has moved for 20 s: step \d+ is under way\. No checkpoint is committed "
        r"yet\. Look at the threads above .* --gin\.HANG_TIMEOUT\.$",
        said.strip(),
    ), said


def test_hosts_that_differ_are_refused(flags_of, tmp_path):
    flags = [flags_of(tmp_path / "model", RANDOM_SEED=seed) for seed in (0, 1)]
    hosts = Hosts(tmp_path, flags)
    assert hosts.end() == [2, 2], hosts.all()
    for host in (0, 1):
        assert re.search(
            r"t5x_lite: error: the configuration on host 1 is \w+, on host 0 it is \w+\. The hosts of a run compute "
            r"one thing together\. Start the same command with the same files on all\.",
            hosts.said(host),
        )
    assert not (tmp_path / "model").exists()


@pytest.fixture
def namespaces(tmp_path):
    """Two network namespaces and a cable between them: what to write before a command for each, the first one's
    address, and a function that cuts the cable."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip")
    names = [f"t5x{os.getpid() % 10**6}{end}" for end in "ab"]

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def inside(name, number):
        # Gloo listens at the address that the name of its machine stands for.
        hosts = tmp_path / f"hosts{number}"
        hosts.write_text(f"127.0.0.1 localhost\n10.77.0.{number} {socket.gethostname()}\n")
        seen = f'mount --bind {hosts} /etc/hosts && exec "$@"'
        return ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-c", seen, "sh"]

    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", names[1], "netns", names[1])
            for number, name in enumerate(names, start=1):
                ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", name)
                ip("-n", name, "link", "set", name, "up")
                ip("-n", name, "link", "set", "lo", "up")
            prefixes = [inside(name, number) for number, name in enumerate(names, start=1)]
            for prefix in prefixes:
                subprocess.run([*prefix, "true"], check=True, capture_output=True)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces can be made here: {error.stderr.decode().strip()}")
        yield prefixes, "10.77.0.1", lambda: ip("-n", names[1], "link", "set", names[1], "down")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def test_machines_that_lose_their_connection_both_end(namespaces, flags_of, tmp_path):
    prefixes, address, cut = namespaces
    flags = flags_of(tmp_path / "model", **ENDLESS | {"SAVE_PERIOD": 20})
    with Hosts(tmp_path, flags, address=address, prefixes=prefixes) as hosts:
        hosts.wait_for(r"\nstep 60/")
        cut()
        assert hosts.end() == [1, 1], hosts.all()
    for host in (0, 1):
        last = hosts.said(host).splitlines()[-1]
        assert last.startswith(f"t5x_lite: error: host {host} of 2 ends because another one was lost"), hosts.all()
