"""The guide of docs/launch_on_tpu.md, followed line by line as a new user would, and the templates beside it."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from t5x_lite import cli
from t5x_lite.tpu import bundle, gcloud, preflight, startup
from t5x_lite.tpu.spec import JobSpec
from tests.test_docs import GUIDE, commands
from tests.tpu.conftest import JOB
from tests.tpu.fake_gcloud import Fake

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(gcloud_on_path, tmp_path, monkeypatch):
    """A folder with the reader's files, and a cloud without a bucket yet."""
    fake = Fake(tmp_path / "cloud")
    fake.state["bucket_missing"] = True
    fake.state["futures"] = [["PROVISIONING", "ACTIVE*", "SUSPENDED"], ["ACTIVE*", "ACTIVE!done"]]
    fake.save()
    (tmp_path / "home/c4/en").mkdir(parents=True)
    (tmp_path / "home/c4/en/c4-train.0.json.gz").touch()
    (tmp_path / "home/spiece.model").touch()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path


def test_every_command_of_the_guide_runs(home, monkeypatch, capfd):
    dry_run, seen = preflight.dry_run, {}

    def call(words, timeout):
        """The program's work, in this process."""
        fake = Fake(home / "cloud")
        answer = fake(words)
        fake.save()
        return answer

    def once(job, folder):
        """Each slice once: laying a job out takes seconds."""
        key = (job.accelerator, job.command)
        seen[key] = seen.get(key) or dry_run(job, folder)
        return seen[key]

    monkeypatch.setattr(preflight, "dry_run", once)
    for line in commands(GUIDE):
        words = shlex.split(line)
        monkeypatch.setattr(gcloud, "call", call)
        if words[0] == "gcloud":
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            continue
        assert words[:2] == ["t5x_lite", "tpu"], line
        if words[2] in ("watch", "stop", "logs"):
            words.append("--poll_seconds=0.01")
        if words[2] == "logs":
            fake = Fake(home / "cloud")
            fake.put("gs://my-bucket/t5x_lite/base/logs/0-0/a-000000.log", b"step 1/524288\n")
            fake.save()
        assert cli.run(words[1:]) == 0, f"{line}\n{capfd.readouterr().err}"
        assert "warning" not in capfd.readouterr().err, line  # such as that it does not fit the chips
    fake = Fake(home / "cloud")
    assert fake.state["created"] == 3 and fake.state["most_live"] == 1
    assert list(fake.state["resources"]) == ["us-west4-a/base-eval"]
    for path in ("gke/jobset.yaml", "skypilot/job.yaml"):
        [url] = re.findall(r"gs://\S+/t5x_lite/[\w-]+", (ROOT / "tpu" / path).read_text())
        assert f"{url}/startup.py" in fake.state["objects"]


def test_the_guide_links_and_names_what_is_there():
    text = (ROOT / GUIDE).read_text()
    for path in re.findall(r"`(tpu/\S+\.yaml)`", text):
        assert (ROOT / path).is_file()
    [block] = re.findall(r"```gin\n(.*?)```", text, flags=re.S)
    fields = {line.split(" = ")[0].removeprefix("spec.JobSpec.") for line in block.splitlines() if " = " in line}
    assert fields <= set(JobSpec.__dataclass_fields__)


@pytest.mark.parametrize("path", ["gke/jobset.yaml", "skypilot/job.yaml"])
def test_templates_start_a_published_job(path, home):
    """What a template runs on a host, run here, starts the job that its JOB names."""
    yaml = pytest.importorskip("yaml")
    found = yaml.safe_load((ROOT / "tpu" / path).read_text())
    if path.startswith("gke"):
        slice_ = found["spec"]["replicatedJobs"][0]["template"]["spec"]
        pod = slice_["template"]["spec"]
        [container] = pod["containers"]
        # Where JobSet's own documentation has it: a slice never gets pods of two jobs.
        assert found["metadata"]["annotations"] == {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
        # What the job has given up is not started again; what was preempted (75) is.
        [rule] = slice_["podFailurePolicy"]["rules"]
        assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [1, 2] and not slice_["backoffLimit"]
        assert slice_["parallelism"] == slice_["completions"] == 4 and container["resources"]["limits"]
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
        [script], [env] = container["args"], container["env"]
        url = env["value"]
        script = script.replace("/tmp/startup.py", "startup.py")
    else:
        script, url = found["run"], found["envs"]["JOB"]
    name = url.removeprefix("gs://my-bucket/t5x_lite/")
    python = home / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {home}/ran\n')
    python.chmod(0o755)
    job = JobSpec(**JOB | {"name": name, "accelerator": "v5litepod-8", "command": ("eval",)})
    archive, digest = bundle.build(job, home)
    values = job.as_json() | {"launched": 1.0, "code": digest, "python": str(python), "beat_seconds": 1}
    fake = Fake(home / "cloud")
    fake.state["bucket_missing"] = False
    fake.put(f"{url}/code-{digest}.tar.gz", archive)
    fake.put(f"{url}/job.json", json.dumps(values).encode())
    fake.put(f"{url}/startup.py", Path(startup.__file__).read_bytes())
    fake.save()
    environment = os.environ | {"JOB": url, "T5X_LITE_HOME": str(home / "host"), "TPU_WORKER_ID": "0"}
    environment |= {"MEGASCALE_SLICE_ID": "0", "GCE_METADATA_HOST": "127.0.0.1:9"}
    subprocess.run(["bash", "-ec", script], env=environment, check=True, capture_output=True)
    assert (home / "ran").read_text().split() == ["-m", "t5x_lite", "eval"]
    assert json.loads(Fake(home / "cloud").text(f"{url}/exit.json"))["result"] == "done"
