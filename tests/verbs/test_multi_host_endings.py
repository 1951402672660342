"""How a run of two hosts ends, processes of this machine: asked to, lost, hung, cut off, or unlike each other."""

import os
import re
import shutil
import signal
import socket
import subprocess

import pytest

from t5x_lite.train import checkpoint
from tests.verbs.host_processes import SECONDS, Hosts, positions

# Neither an evaluation nor a checkpoint, so that nothing but steps can hang.
ENDLESS = {"TRAIN_STEPS": 10**7, "SAVE_PERIOD": 10**7, "EVAL_PERIOD": 0, "LOG_PERIOD": 20}


def test_a_signal_to_one_host_stops_all_at_one_step(host_flags, tmp_path):
    hosts = Hosts(tmp_path, host_flags(tmp_path / "model", **ENDLESS))
    hosts.wait_for(r"\nstep 20/")
    hosts.processes[1].send_signal(signal.SIGTERM)
    assert hosts.end() == [75, 75], hosts.all()
    assert "t5x_lite: host 1 of 2: SIGTERM received: saving a checkpoint, then stopping" in hosts.said(1)
    [step] = checkpoint.steps(str(tmp_path / "model"))
    for host in (0, 1):
        assert f"t5x_lite: preempted: stopped at step {step} of 10000000, which is saved" in hosts.said(host)
    assert set(positions(tmp_path / "model", step)) == {"position.json", *(f"shard_{k:05d}" for k in range(4))}


@pytest.mark.parametrize(("number", "victim"), [(signal.SIGKILL, 1), (signal.SIGSTOP, 0)])
def test_a_lost_host_ends_the_other_and_says_what_is_safe(number, victim, host_flags, tmp_path):
    with Hosts(tmp_path, host_flags(tmp_path / "model", **ENDLESS | {"SAVE_PERIOD": 20})) as hosts:
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


def test_a_hang_shows_every_thread_and_ends_the_run(host_flags, tmp_path):
    flags = host_flags(tmp_path / "model", **ENDLESS, HANG_TIMEOUT=10) + ["--gin.HOST_TIMEOUT=1000"]
    with Hosts(tmp_path, flags) as hosts:
        hosts.wait_for(r"\nstep 20/")
        hosts.processes[1].send_signal(signal.SIGSTOP)
        assert hosts.processes[0].wait(SECONDS) == 1, hosts.all()
        said = hosts.said(0)
    assert "t5x_lite: host 0 of 2: nothing has moved for 10 s; its threads:" in said
    assert re.search(r"loop\.py\", line \d+ in run", said) and re.search(r"batches\.py\", line \d+ in _produce", said)
    assert re.search(
        r"t5x_lite: error: host 0 of 2: nothing has moved for 10 s: step \d+ is under way\. No checkpoint is committed "
        r"yet\. Look at the threads above .* --gin\.HANG_TIMEOUT\.$",
        said.strip(),
    ), said


def test_hosts_that_differ_are_refused(host_flags, tmp_path):
    flags = [host_flags(tmp_path / "model", RANDOM_SEED=seed) for seed in (0, 1)]
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


def test_machines_that_lose_their_connection_both_end(namespaces, host_flags, tmp_path):
    prefixes, address, cut = namespaces
    flags = host_flags(tmp_path / "model", **ENDLESS | {"SAVE_PERIOD": 20})
    with Hosts(tmp_path, flags, address=address, prefixes=prefixes) as hosts:
        hosts.wait_for(r"\nstep 60/")
        cut()
        assert hosts.end() == [1, 1], hosts.all()
    for host in (0, 1):
        last = hosts.said(host).splitlines()[-1]
        assert last.startswith(f"t5x_lite: error: host {host} of 2 ends because another one was lost"), hosts.all()
