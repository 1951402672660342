"""Who a host is among several: as flags, environment and clusters say it, and what is refused."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from jax._src.clusters import slurm_cluster

from t5x_lite import cli
from t5x_lite.errors import UserError
from t5x_lite.parallel import hosts
from t5x_lite.parallel.hosts import Place

SLURM = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "node[003-004]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip
FLAGS = {"coordinator_address": "10.0.0.1:8476", "num_processes": 2, "process_id": 1}
VARIABLES = {"JAX_COORDINATOR_ADDRESS": "10.0.0.9:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "0"}


@pytest.fixture
def slurm(monkeypatch):
    def with_(**changed):
        for name, value in (SLURM | changed).items():
            monkeypatch.setenv(name, value)

    return with_


def test_a_host_that_is_told_nothing_is_alone():
    assert hosts.place({}, {}) is None
    assert hosts.place({"num_processes": 1}, {}) is None


def test_plain_hosts_are_told_by_flags_or_by_the_environment_and_flags_win():
    assert hosts.place(FLAGS, {}) == Place("10.0.0.1:8476", 2, 1)
    assert hosts.place({}, VARIABLES) == Place("10.0.0.9:1", 3, 0)
    assert hosts.place({"process_id": 2}, VARIABLES) == Place("10.0.0.9:1", 3, 2)


def test_slurm_tells_who_is_who(slurm):
    slurm()
    address = f"node003:{77 % 2**12 + 65535 - 2**12 + 1}"
    assert hosts.place({}) == Place(address, 2, 1)  # the only task of its machine: all devices
    assert hosts.place({"coordinator_address": "ib0:5"}) == Place("ib0:5", 2, 1)
    slurm(SLURM_STEP_TASKS_PER_NODE="4(x2)", SLURM_NTASKS="8", SLURM_PROCID="6", SLURM_LOCALID="2")
    assert hosts.place({}) == Place(address, 8, 6, (2,))
    slurm(SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_LOCALID="0")
    assert hosts.place({}) is None
    assert slurm_cluster.SlurmCluster.is_env_present()


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (
            {"num_processes": 2}, {},
            r"--num_processes=2 is given without --coordinator_address and --process_id\. .*neither SLURM nor Open MPI "
            r"nor Cloud TPU.*--process_id or JAX_PROCESS_ID, or none of the three",
        ),
        ({}, {"JAX_PROCESS_ID": "0"}, r"JAX_PROCESS_ID=0 is given without --coordinator_address and --num_processes"),
        (FLAGS | {"process_id": 2}, {}, r"--process_id=2 is not below 2, the number of processes\. .*from 0\."),
        ({}, VARIABLES | {"JAX_NUM_PROCESSES": "two"}, r"JAX_NUM_PROCESSES=two is no number\."),
        (FLAGS | {"coordinator_address": "10.0.0.1"}, {}, r"--coordinator_address=10\.0\.0\.1 is no HOST:PORT\."),
    ],
)  # fmt: skip
def test_half_of_the_settings_and_wrong_ones_are_refused(flags, environment, message):
    with pytest.raises(UserError, match=message):
        hosts.place(flags, environment)


ALONE = """
import socket, sys
from t5x_lite.parallel import hosts
hosts._STARTING = 3
with socket.socket() as listener:
    listener.bind(("localhost", 0))
    port = listener.getsockname()[1]
with hosts.joined(hosts.Place(f"localhost:{port}", 2, int(sys.argv[1])), 10, lambda: "nothing"):
    pass
"""


@pytest.mark.parametrize("number", [0, 1])
def test_hosts_that_do_not_meet_end_in_words(number):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(number)], env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(
        rf"t5x_lite: error: host {number} of 2 did not meet the others at localhost:\d+ within \d+ s\. Nothing has "
        r"been read or written\. Start the same command on all hosts, and let each reach that address\.",
        done.stderr.splitlines()[-1],
    ), done.stderr


ABORTED = """
import os, sys
from t5x_lite import errors
from t5x_lite.parallel import hosts
end = hosts._Ending(hosts.Place("localhost:1", 2, 1), 10, lambda: "nothing")
end.install()
end.because({"error": errors.UserError("a is b", "c", "d"), "preempted": errors.Preempted("stopped")}[sys.argv[1]])
os.abort()
"""


@pytest.mark.parametrize(
    ("ended", "status", "said"),
    [("error", 2, "t5x_lite: error: a is b. C. D.\n"), ("preempted", 75, "t5x_lite: preempted: stopped\n")],
)
def test_a_host_whose_run_has_ended_says_why_also_when_the_first_one_goes_before_it(ended, status, said):
    done = subprocess.run([sys.executable, "-c", ABORTED, ended], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, said)


def test_a_verb_of_one_host_is_refused_on_several(slurm):
    hosts.check_alone()
    slurm()
    with pytest.raises(UserError, match=r"this is host 1 of 2\. Only train runs on several .*srun --nodes=1"):
        hosts.check_alone()


def test_the_commands_of_the_page_are_known():
    page = (Path(__file__).parents[2] / "docs/multi_host.md").read_text()
    found = re.findall(r"t5x_lite (train [^'\n]*)", "".join(re.findall(r"```bash\n(.*?)```", page, flags=re.S)))
    assert len(found) == 4
    for command in found:
        words, _ = cli._take_gin(shlex.split(command))
        assert cli.parser().parse_args(words).verb == "train"
