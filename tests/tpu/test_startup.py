"""The startup script, run for real: a metadata server on this machine, a bucket in a folder, and a job that trains."""

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import t5x_lite
from t5x_lite import cli
from t5x_lite.tpu import bundle, host, startup
from t5x_lite.tpu.spec import JobSpec
from tests.tpu.conftest import JOB
from tests.tpu.fake_gcloud import Fake
from tests.verbs.test_resume import state_of

SCRIPT = Path(startup.__file__)

# Seconds after which something hangs.
GUARD = 600


@pytest.mark.parametrize("status, seconds, failures, expected", [
    (0, 9, 3, ("done", 0, 0)),
    (75, 9, 3, ("restart", 0, 0)),
    (2, 9, 0, ("failed", 0, 1)),
    (1, 9, 0, ("restart", 10, 1)),
    (-9, 9, 2, ("restart", 40, 3)),
    (1, 9, 6, ("restart", 600, 7)),
    (1, 9, 7, ("failed", 0, 8)),
    (1, 1800, 7, ("restart", 10, 1)),
])  # fmt: skip
def test_what_follows_a_run(status, seconds, failures, expected):
    assert host.after(status, seconds, failures) == expected


@pytest.fixture
def metadata():
    """A metadata server: a dictionary of path -> text, with its address under "host"."""
    values = {}

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = values.get(self.path.removeprefix("/computeMetadata/v1/instance/"))
            asked = self.headers.get("Metadata-Flavor") == "Google"
            self.send_response(200 if found is not None and asked else 404)
            self.end_headers()
            self.wfile.write((found or "").encode() if asked else b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    values["host"] = f"127.0.0.1:{server.server_port}"
    yield values
    server.shutdown()


class Machine:
    """A TPU VM with a bucket, which may be lost and made anew."""

    def __init__(self, folder: Path, metadata: dict):
        self.folder, self.metadata = folder, metadata
        self.cloud = folder / "cloud"
        self.cloud.mkdir()
        (folder / "bin").mkdir()
        (folder / "bin/gcloud").symlink_to(Path(__file__).with_name("fake_gcloud.py"))
        self.number = 0

    def fake(self) -> Fake:
        return Fake(self.cloud)

    def put(self, url: str, content: bytes) -> None:
        fake = self.fake()
        fake.put(url, content)
        fake.save()

    def boot(self, attempt: int, *arguments: str, queued: int = 0, again: bool = False) -> subprocess.Popen:
        """Starts the script, as root would at boot, on a machine that is new, or `again` on the last one.

        Args:
          attempt: of the machine.
          arguments: of the script: it is started by hand.
          queued: the attempt that bears the job's name; default: this one.
          again: whether it is the same machine.
        """
        self.number += not again
        self.metadata |= {
            "attributes/t5x-lite-job": "gs://my-bucket/t5x_lite/small",
            "attributes/t5x-lite-attempt": str(attempt),
            "attributes/agent-worker-number": "0",
            "attributes/tpu-env": "ZONE: 'us-west4-a'\nWORKER_ID: '0'\n",
            "zone": "projects/1/zones/us-west4-a",
        }
        if not arguments:
            self.queue(queued or attempt)
        home = self.folder / f"machine-{self.number}"
        home.mkdir(exist_ok=True)
        environment = os.environ | {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "FAKE_GCLOUD": str(self.cloud),
            "GCE_METADATA_HOST": self.metadata["host"],
            "T5X_LITE_HOME": str(home),
            "HOME": str(home),
            "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
            "JAX_PLATFORMS": "cpu",
        }
        environment.pop("PYTHONPATH", None)
        with open(home / "console", "a") as console:
            return subprocess.Popen(
                [sys.executable, "-S", str(SCRIPT), *arguments], env=environment, cwd="/", stdin=subprocess.DEVNULL,
                stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip

    def queue(self, attempt: int) -> None:
        """What Cloud TPU has under the job's name."""
        labels = {"t5x-lite": "launch", "t5x-lite-job": "small", "t5x-lite-attempt": str(attempt)}
        fake = self.fake()
        fake.state["resources"]["us-west4-a/small"] = {
            "name": "small", "state": {"state": "ACTIVE"}, "future": [], "nodes": ["small"],
            "tpu": {"nodeSpec": [{"node": {"labels": labels, "metadata": {}}}]},
        }  # fmt: skip
        fake.save()

    def deleted(self) -> list[list[str]]:
        """The commands that deleted something."""
        return [call for call in self.fake().state["calls"] if "delete" in call]

    def log(self) -> str:
        """What the last machine has printed, as the bucket has it."""
        fake = self.fake()
        parts = [url for url in sorted(fake.state["objects"]) if "/logs/" in url]
        return "".join(fake.text(url) for url in parts)

    def printed(self) -> str:
        home = self.folder / f"machine-{self.number}"
        return "".join(path.read_text() for path in [*home.rglob("*.log"), home / "console"])

    def record(self, name: str):
        fake = self.fake()
        url = f"gs://my-bucket/t5x_lite/small/{name}"
        return json.loads(fake.text(url)) if url in fake.state["objects"] else None


@pytest.fixture
def machine(tmp_path, metadata) -> Machine:
    return Machine(tmp_path, metadata)


def publish(machine: Machine, command, **changed) -> dict:
    """What a launch brings into the bucket."""
    job = JobSpec(**JOB | {"accelerator": "v5litepod-8", "command": tuple(command)})
    archive, digest = bundle.build(job, machine.folder)
    values = job.as_json() | {
        "launched": time.time(), "code": digest, "python": sys.executable, "beat_seconds": 1, "model_dir": None,
    } | changed  # fmt: skip
    machine.put(f"{job.url}/code-{digest}.tar.gz", archive)
    machine.put(f"{job.url}/job.json", json.dumps(values).encode())
    claim(machine, values, 1)
    return values


def claim(machine: Machine, values: dict, attempt: int) -> None:
    claimed = {"launched": values["launched"], "zone": "us-west4-a", "attempt": attempt}
    machine.put("gs://my-bucket/t5x_lite/small/claim.json", json.dumps(claimed).encode())


def wait_for(process, machine, condition):
    while not condition():
        assert process.poll() is None, machine.printed()
        time.sleep(0.05)


def test_two_preemptions_and_an_exact_end(machine, train_flags, tmp_path_factory):
    """Told to go, then torn away: each time a new machine goes on, and the model is the undisturbed one."""
    changed = {"TRAIN_STEPS": 60, "SAVE_PERIOD": 10, "EVAL_PERIOD": 0}
    undisturbed = tmp_path_factory.mktemp("undisturbed") / "model"
    assert cli.run(train_flags(undisturbed, **changed)) == 0
    model = machine.folder / "model"
    values = publish(machine, train_flags(model, **changed), model_dir=str(model), beat_seconds=5)

    process = machine.boot(1)
    wait_for(process, machine, lambda: re.search(r"step \d+/60", machine.printed()))
    assert machine.record("heartbeat/0-0")["worker"] == "0-0"
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(GUARD) == 75, machine.printed()
    assert "preempted: stopped at step" in machine.log() and not (model / "DONE").exists()

    claim(machine, values, 2)
    process = machine.boot(2)
    wait_for(process, machine, lambda: "resuming from" in machine.printed())
    wait_for(process, machine, lambda: re.search(r"step \d+/60", machine.printed()))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(GUARD)

    claim(machine, values, 3)
    process = machine.boot(3)
    assert process.wait(GUARD) == 0, machine.printed()
    assert (model / "DONE").exists()
    assert machine.record("exit.json")["result"] == "done"
    [ended] = machine.deleted()
    assert ended[:5] == ["compute", "tpus", "queued-resources", "delete", "small"] and "--zone=us-west4-a" in ended
    for one, other in zip(
        *(jax.tree.leaves(state_of(directory, 60)) for directory in (model, undisturbed)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def script(machine: Machine, text: str) -> str:
    """An interpreter that stands in for the job's Python."""
    path = machine.folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_words_of_a_command_reach_the_job_as_they_are(machine):
    hostile = ["a b", "it's", '"', "$(touch hacked)", "`touch hacked`", "a\nb", "*", "; touch hacked", "--x=$HOME"]
    python = script(machine, 'printf "%s\\0" "$@" > "$OUT"')
    out = machine.folder / "out"
    env = [f"OUT={out}", "QUOTE=it's $(touch hacked)\nx=y"]
    publish(machine, ["eval", *hostile], python=python, env=env)
    assert machine.boot(1).wait(GUARD) == 0, machine.printed()
    assert out.read_text().split("\0")[:-1] == ["-m", "t5x_lite", "eval", *hostile]
    assert not list(machine.folder.rglob("hacked"))


def test_wrong_input_is_not_tried_again(machine):
    publish(machine, ["eval"], python=script(machine, 'echo "t5x_lite: error: no such thing" >&2; exit 2'))
    assert machine.boot(1).wait(GUARD) == 1
    found = machine.record("exit.json")
    assert found["result"] == "failed" and "t5x_lite: error: no such thing" in found["why"]


def test_preempted_is_started_again(machine):
    runs = f"{machine.folder}/runs"
    python = script(machine, f'echo x >> {runs}; test "$(wc -l < {runs})" -ge 3 || exit 75')
    publish(machine, ["eval"], python=python)
    assert machine.boot(1).wait(GUARD) == 0
    assert machine.printed().count("the job exited with 75") == 2
    assert (machine.folder / "runs").read_text() == "x\n" * 3


@pytest.mark.parametrize("ends", ["stopped", "superseded", "hours"])
def test_it_stops_when_told(ends, machine):
    python = script(machine, f"trap 'echo saved > {machine.folder}/saved; exit 75' TERM; while :; do sleep 0.1; done")
    hours = {"launched": time.time() - 3596, "max_hours": 1} if ends == "hours" else {}
    values = publish(machine, ["eval"], python=python, **hours)
    process = machine.boot(1)
    wait_for(process, machine, lambda: (machine.record("heartbeat/0-0") or {}).get("state") == "running")
    if ends == "stopped":
        outcome = {"launched": values["launched"], "result": "stopped"}
        machine.put("gs://my-bucket/t5x_lite/small/exit.json", json.dumps(outcome).encode())
    if ends == "superseded":
        claim(machine, values, 2)
    assert process.wait(GUARD) == (1 if ends == "hours" else 0), machine.printed()
    assert (machine.folder / "saved").exists()
    assert len(machine.deleted()) == 1


def test_a_machine_whose_attempt_is_over_deletes_no_other_one(machine):
    """What bears its name by now is the next attempt's."""
    values = publish(machine, ["eval"], python=script(machine, "exit 1"))
    claim(machine, values, 2)
    machine.boot(1, queued=2).wait(GUARD)
    assert not machine.deleted() and "ending: superseded" in machine.printed()


@pytest.mark.parametrize("answer", ["{}", "no JSON", '{"tpu": 1}'])
def test_what_cannot_be_understood_is_not_deleted(answer, machine):
    values = publish(machine, ["eval"], python=script(machine, "exit 0"))
    fake = machine.fake()
    fake.state["faults"] = [{"match": "resources describe", "times": 1, "status": 0, "stdout": answer}]
    fake.save()
    assert values and machine.boot(1).wait(GUARD) == 0  # the second answer is one
    assert len(machine.deleted()) == 1 and "ending the machines failed" in machine.printed()


def test_a_machine_that_cannot_read_its_job_ends_itself(machine):
    """It has no other way to know that its hours are over."""
    machine.metadata["attributes/t5x-lite-ends"] = "1"
    machine.metadata["attributes/t5x-lite-project"] = "my-project"
    assert machine.boot(1).wait(GUARD) == 1
    [ended] = machine.deleted()
    assert ended[4] == "small" and {"--zone=us-west4-a", "--project=my-project"} <= set(ended)


@pytest.mark.parametrize("said, environment, name", [
    ({"agent-worker-number": "3"}, {}, "0-3"),
    ({"agent-worker-number": "3", "tpu-env": "ZONE: 'a'\nMEGASCALE_SLICE_ID: '1'\nWORKER_ID: '3'\n"}, {}, "1-3"),
    ({}, {"TPU_WORKER_ID": "2", "MEGASCALE_SLICE_ID": "1"}, "1-2"),
    ({}, {"TPU_WORKER_ID": "2"}, "0-2"),
    ({}, {}, "0-0"),
])  # fmt: skip
def test_which_worker_of_which_slice_it_is(said, environment, name, metadata, monkeypatch):
    """On a TPU VM by its metadata, of several slices too; on Kubernetes by the environment."""
    monkeypatch.setenv("GCE_METADATA_HOST", metadata["host"])
    for variable in ("TPU_WORKER_ID", "MEGASCALE_SLICE_ID"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    metadata |= {f"attributes/{key}": value for key, value in said.items()}
    assert host.worker() == name


@pytest.fixture
def on_host(tmp_path):
    """A host of a job, without a bucket."""
    job = {"name": "small", "project": "my-project", "launched": 1.0, "command": ["eval"]}
    return host.Host(host.Bucket("gs://my-bucket/t5x_lite/small"), job, 1, "0-0", tmp_path, tmp_path / "log")


def test_an_installation_that_hangs_is_ended(on_host):
    threading.Timer(0.5, on_host.end, args=("failed",)).start()
    began = time.monotonic()
    with pytest.raises(subprocess.CalledProcessError):
        on_host.command("sleep", "1000")
    assert time.monotonic() - began < 60


def test_a_process_that_cannot_be_killed_ends_with_the_machines(on_host, monkeypatch):
    """A TPU that does not answer holds it in the kernel."""
    seen = []
    monkeypatch.setattr(on_host, "process", SimpleNamespace(kill=lambda: seen.append("kill")))
    monkeypatch.setattr(on_host, "end_machines", lambda: seen.append("end"))
    monkeypatch.setattr(os, "_exit", lambda status: seen.append(status))
    on_host.insist(-1)
    on_host.insist(1)
    assert seen == ["kill"]
    on_host.insist(host.DYING + 1)
    assert seen[:3] == ["kill", "end", 1]


def test_a_preemption_that_is_told_in_time(machine):
    python = script(machine, f"trap 'echo saved > {machine.folder}/saved; exit 75' TERM; while :; do sleep 0.1; done")
    publish(machine, ["eval"], python=python)
    machine.metadata["preempted"] = "FALSE"
    process = machine.boot(1)
    wait_for(process, machine, lambda: (machine.record("heartbeat/0-0") or {}).get("state") == "running")
    machine.metadata["preempted"] = "TRUE"
    assert process.wait(GUARD) == 75
    assert (machine.folder / "saved").exists() and not machine.deleted()


def test_the_end_of_a_long_log_is_not_lost(machine):
    text = "head -c 40000000 /dev/zero | tr '\\0' x; echo; echo the last words"
    publish(machine, ["eval"], python=script(machine, text), beat_seconds=60)
    assert machine.boot(1).wait(GUARD) == 0
    log = machine.log()
    assert log.count("x" * 1000) == 40000 and "the last words" in log


def test_on_a_machine_that_is_there_already(machine):
    """It goes to the background; a second one of another job is told, and the same one is not started twice."""
    python = script(machine, "trap 'exit 75' TERM; while :; do sleep 0.1; done")
    values = publish(machine, ["eval"], python=python)
    url = "gs://my-bucket/t5x_lite/small"
    assert machine.boot(0, url, "--background").wait(GUARD) == 0
    assert machine.boot(0, url, "--background", again=True).wait(GUARD) == 0
    assert "runs on this machine already" in machine.printed()
    machine.put("gs://my-bucket/t5x_lite/other/job.json", json.dumps(values).encode())
    other = machine.boot(0, "gs://my-bucket/t5x_lite/other", "--background", again=True)
    assert other.wait(GUARD) == 2 and f"ERROR: there runs still {url}" in machine.printed()
    outcome = {"launched": values["launched"], "result": "stopped"}
    machine.put(f"{url}/exit.json", json.dumps(outcome).encode())
    end = time.monotonic() + 60
    while "ending: stopped" not in machine.printed():
        assert time.monotonic() < end, machine.printed()
        time.sleep(0.1)
    assert not machine.deleted()


def test_a_job_that_does_not_stop_is_killed(machine):
    python = script(machine, "trap '' TERM; while :; do sleep 0.1; done")
    values = publish(machine, ["eval"], python=python, grace_seconds=1)
    process = machine.boot(1)
    wait_for(process, machine, lambda: (machine.record("heartbeat/0-0") or {}).get("state") == "running")
    outcome = {"launched": values["launched"], "result": "stopped"}
    machine.put("gs://my-bucket/t5x_lite/small/exit.json", json.dumps(outcome).encode())
    assert process.wait(GUARD) == 0, machine.printed()


def test_a_machine_that_came_too_late_ends_itself(machine):
    values = publish(machine, ["eval"], python=script(machine, "exit 1"))
    claim(machine, values, 2)
    assert machine.boot(1).wait(GUARD) == 0
    assert machine.record("heartbeat/0-0")["state"] == "superseded" and len(machine.deleted()) == 1


def test_the_script_stands_alone():
    """It is all that a machine has at first: the standard library of any python3 from 3.8 on."""
    import ast

    own = {"t5x_lite", "t5x_lite.tpu", "t5x_lite.tpu.startup"}
    for file in (SCRIPT, Path(host.__file__), SCRIPT.with_name("__init__.py"), Path(t5x_lite.__file__)):
        tree = ast.parse(file.read_text(), feature_version=(3, 8))
        names = {n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {name.partition(".")[0] for name in names - own} <= set(sys.stdlib_module_names)
    assert len(SCRIPT.read_bytes()) < 256 * 1024  # the most that a metadata value holds
    assert SCRIPT.read_text().startswith("#!")
