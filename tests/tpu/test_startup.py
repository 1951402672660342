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

import jax
import numpy as np
import pytest

from t5x_lite import cli
from t5x_lite.tpu import bundle, startup
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
    assert startup.after(status, seconds, failures) == expected


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

    def boot(self, attempt: int, *arguments: str) -> subprocess.Popen:
        """Starts the script, as root would at boot, on a machine that is new."""
        self.number += 1
        self.metadata |= {
            "attributes/t5x-lite-job": "gs://my-bucket/t5x_lite/small",
            "attributes/t5x-lite-attempt": str(attempt),
            "attributes/agent-worker-number": "0",
            "attributes/tpu-env": "ZONE: 'us-west4-a'\nWORKER_ID: '0'\n",
            "zone": "projects/1/zones/us-west4-a",
        }
        home = self.folder / f"machine-{self.number}"
        home.mkdir()
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
        with open(home / "console", "w") as console:
            return subprocess.Popen(
                [sys.executable, "-S", str(SCRIPT), *arguments], env=environment, cwd="/", stdin=subprocess.DEVNULL,
                stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip

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
    [ended] = [call for call in machine.fake().state["calls"] if call[:1] == ["compute"]]
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
    deleted = any("delete" in call for call in machine.fake().state["calls"])
    assert deleted == (ends != "superseded")


def test_a_job_that_does_not_stop_is_killed(machine):
    python = script(machine, "trap '' TERM; while :; do sleep 0.1; done")
    values = publish(machine, ["eval"], python=python, grace_seconds=1)
    process = machine.boot(1)
    wait_for(process, machine, lambda: (machine.record("heartbeat/0-0") or {}).get("state") == "running")
    outcome = {"launched": values["launched"], "result": "stopped"}
    machine.put("gs://my-bucket/t5x_lite/small/exit.json", json.dumps(outcome).encode())
    assert process.wait(GUARD) == 0, machine.printed()


def test_a_machine_that_came_too_late_does_nothing(machine):
    values = publish(machine, ["eval"], python=script(machine, "exit 1"))
    claim(machine, values, 2)
    assert machine.boot(1).wait(GUARD) == 0
    assert machine.record("heartbeat/0-0") is None or "starting" not in str(machine.record("heartbeat/0-0"))
    assert not any("delete" in call for call in machine.fake().state["calls"])


def test_the_script_stands_alone():
    """It is all that a machine has at first: the standard library of any python3 from 3.8 on."""
    import ast

    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    names = {n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)
    assert len(SCRIPT.read_bytes()) < 256 * 1024  # the most that a metadata value holds
    assert SCRIPT.read_text().startswith("#!")
