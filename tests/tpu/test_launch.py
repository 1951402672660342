"""Launching from the command line, on a gcloud on PATH that takes the GA flags and no others."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from t5x_lite import cli
from t5x_lite.tpu import bundle, gc, gcloud, launch, preflight
from tests.tpu.fake_gcloud import Fake, parse

SLICE = ["--accelerator=v5litepod-16", "--zone=us-west4-a", "--project=my-project", "--bucket=gs://my-bucket"]
MODEL = ["--gin_file=models/t5_1_1_tiny.gin", "--gin_file=runs/pretrain.gin", "--gin.TRAIN_STEPS=7"]
DATA = ["--gin.MIXTURE_OR_TASK_NAME=c4_v220_span_corruption", "--gin.DATA_DIR=gs://my-bucket/tfds"]
TRAIN = ["train", *MODEL, *DATA, "--gin.VOCABULARY=gs://my-bucket/spiece.model", "--gin.BATCH_SIZE=32"]


@pytest.fixture
def world(gcloud_on_path, tmp_path, monkeypatch):
    """A working directory and, above it, what a gcloud on PATH holds."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


PROGRAM = gcloud.call
ROOT = Path(bundle.__file__).parents[1]


@pytest.fixture
def laid_out(world, monkeypatch):
    """What takes long is quick: the job's dry run is said to have gone well, and gcloud is in this process."""
    make_quick(world, monkeypatch)


def make_quick(world, monkeypatch):
    printed = "MODEL_DIR = None\nVOCABULARY = 'gs://my-bucket/spiece.model'\nwarning: does not fit: 1 GiB too much\n"
    monkeypatch.setattr(preflight, "dry_run", lambda job, folder: printed)

    def call(words, timeout):
        fake = cloud(world)
        answer = fake(words)
        fake.save()
        return answer

    monkeypatch.setattr(gcloud, "call", call)


def cloud(world) -> Fake:
    return Fake(world / "cloud")


def future(world, *futures):
    fake = cloud(world)
    fake.state["futures"] = list(futures)
    fake.save()


def test_from_launch_to_the_end(world, capfd, monkeypatch):
    """Every verb in turn, the first with the real dry run and the program gcloud."""
    future(world, ["PROVISIONING", *["ACTIVE*"] * 8, "SUSPENDED"], ["ACTIVE*", "ACTIVE!done"])
    command = ["tpu", "launch", "--name=small", *SLICE, "--spot", "--poll_seconds=0.01", "--", *TRAIN]
    assert cli.run(command) == 0, capfd.readouterr().err
    out = capfd.readouterr().out
    assert "gs://my-bucket/t5x_lite/small/model" in out
    make_quick(world, monkeypatch)
    of = ["--name=small", "--bucket=gs://my-bucket"]
    # The same again, as after a crash, asks for nothing more.
    assert cli.run(command) == 0 and cloud(world).state["created"] == 1
    capfd.readouterr()
    # Another one of that name is refused.
    assert cli.run([*command, "--gin.RANDOM_SEED=1"]) == 2
    assert "is the name of a job that is under way" in capfd.readouterr().err

    assert cli.run(["tpu", "status", *of]) == 0
    shown = capfd.readouterr().out
    assert "small: 1 x v5litepod-16, 4 hosts, spot" in shown and "us-west4-a: ACTIVE, attempt 1" in shown
    assert "workers   none of 4 has reported yet" in shown
    assert cli.run(["tpu", "status", *of]) == 0 and cli.run(["tpu", "status", *of]) == 0
    assert re.search(r"worker    0-3: running, 0 restarts, \d+ s ago", capfd.readouterr().out)
    assert cli.run(["tpu", "list", "--project=my-project", "--zone=us-west4-a"]) == 0
    assert re.search(r"small +us-west4-a +ACTIVE +v5litepod-16 +gs://my-bucket/t5x_lite/small", capfd.readouterr().out)
    assert cli.run(["tpu", "ssh", *of, "--worker=all", "--", "ls", "-l"]) == 0
    fake = cloud(world)
    assert "--command=ls -l" in fake.state["calls"][-1]
    for words, line in (
        (["ls", "a b", "$(touch hacked)"], "ls 'a b' '$(touch hacked)'"), (["cd /tmp && ls"], "cd /tmp && ls")
    ):  # fmt: skip
        assert cli.run(["tpu", "ssh", *of, "--", *words]) == 0
        assert f"--command={line}" in cloud(world).state["calls"][-1]
    fake = cloud(world)
    fake.put("gs://my-bucket/t5x_lite/small/logs/0-0/b-000001.log", b"second\n")
    fake.put("gs://my-bucket/t5x_lite/small/logs/0-0/b-000000.log", b"first\n")
    fake.save()
    capfd.readouterr()
    assert cli.run(["tpu", "logs", *of]) == 0 and capfd.readouterr().out == "first\nsecond\n"

    assert cli.run(["tpu", "watch", *of, "--poll_seconds=0.01"]) == 0
    fake = cloud(world)
    assert fake.state["created"] == 2 and fake.state["most_live"] == 1
    assert not fake.state["resources"] and not fake.state["nodes"]
    assert cli.run(["tpu", "logs", *of, "--follow", "--poll_seconds=0.01"]) == 0
    # What is over may be launched anew.
    assert cli.run(command) == 0 and cloud(world).state["created"] == 3
    capfd.readouterr()
    assert cli.run(["tpu", "logs", *of]) == 0 and capfd.readouterr().out == ""  # of this launch
    assert cli.run(["tpu", "stop", *of, "--poll_seconds=0.01"]) == 0
    assert not cloud(world).state["resources"]
    assert cli.run(["tpu", "watch", *of]) == 0


@pytest.mark.parametrize("changed, said", [
    (["--gin.BATCH_SIZE=30"], "cannot run on 1 x v5litepod-16"),
    (["--gin.TRAIN_STEPS=few"], "cannot run on 1 x v5litepod-16"),
    (["--gin.MODEL_DIR=runs/small"], "is not in a bucket"),
    (["--gin.VOCABULARY=spiece.model"], "--include=spiece.model"),
])  # fmt: skip
def test_a_job_that_cannot_run_asks_for_nothing(changed, said, world, capfd):
    Path("spiece.model").touch()
    assert cli.run(["tpu", "launch", "--name=small", *SLICE, "--", *TRAIN, *changed]) == 2
    assert said in capfd.readouterr().err
    assert not cloud(world).state["calls"] and not cloud(world).state["objects"]


def test_a_refused_launch_says_why_and_may_be_made_anew(world, laid_out, capfd):
    fake = cloud(world)
    quota = "ERROR: Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerRegionForTPUAPI' has been exceeded. Limit: 0"
    fake.state["faults"] = [{"match": "queued-resources create", "times": 1, "stderr": quota}]
    fake.save()
    command = ["tpu", "launch", "--name=small", *SLICE, "--", *TRAIN]
    assert cli.run(command) == 1
    error = capfd.readouterr().err
    assert "TPUV5sPreemptibleLitepodPerProjectPerRegionForTPUAPI" in error and "warning: does not fit: 1 GiB" in error
    assert cli.run([*command, "--gin.RANDOM_SEED=1"]) == 0
    assert cloud(world).state["created"] == 1


def test_a_bucket_that_is_not_there(world, laid_out, capfd):
    fake = cloud(world)
    fake.state["bucket_missing"] = True
    fake.save()
    assert cli.run(["tpu", "launch", "--name=small", *SLICE, "--", *TRAIN]) == 1
    assert "gcloud storage buckets create" in capfd.readouterr().err


def test_without_gcloud(world, laid_out, capfd, monkeypatch):
    monkeypatch.setattr(gcloud, "call", PROGRAM)
    monkeypatch.setenv("PATH", str(world / "nothing"))
    assert cli.run(["tpu", "launch", "--name=small", *SLICE, "--", *TRAIN]) == 1
    assert "Install the Google Cloud CLI" in capfd.readouterr().err


# The commands of a dry run, but for digests and folders of this machine.
GOLDEN = """
gcloud storage cp KEPT/watched URL/watched
gcloud storage objects list 'URL/*' --format=json
gcloud storage cp KEPT/code-SHA.tar.gz URL/code-SHA.tar.gz
gcloud storage cp KEPT/job.json URL/job.json --if-generation-match=0
gcloud storage cp KEPT/watched URL/watched
gcloud storage objects list 'URL/*' 'URL/heartbeat/*' --format=json
gcloud compute tpus tpu-vm list --zone=us-west4-a --project=my-project --format=json
gcloud compute tpus queued-resources describe small --zone=us-west4-a --project=my-project --format=json
gcloud storage cp KEPT/claim.json URL/claim.json --if-generation-match=0
gcloud storage cp KEPT/watched URL/watched
gcloud storage objects list 'URL/*' 'URL/heartbeat/*' --format=json
gcloud storage cat URL/claim.json
gcloud compute tpus tpu-vm list --zone=us-west4-a --project=my-project --format=json
gcloud compute tpus queued-resources describe small --zone=us-west4-a --project=my-project --format=json
gcloud storage objects list URL/claim.json --format=json
gcloud compute tpus queued-resources create small --zone=us-west4-a --project=my-project \
--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite CAPACITY \
--scopes=https://www.googleapis.com/auth/cloud-platform \
--labels=t5x-lite=launch,t5x-lite-job=small,t5x-lite-attempt=1 \
--metadata=t5x-lite-job=URL,t5x-lite-attempt=1,t5x-lite-project=my-projectENDS \
--metadata-from-file=startup-script=STARTUP --async --quiet
""".strip()


def plain(text: str) -> str:
    text = re.sub(r"\S+/tpu/[0-9a-f]{16}/", "KEPT/", text.strip().replace("gs://my-bucket/t5x_lite/small", "URL"))
    return re.sub(r"startup-script=\S+", "startup-script=STARTUP", re.sub(r"code-[0-9a-f]{64}", "code-SHA", text))


@pytest.mark.parametrize("flags, capacity", [
    ([], "--node-id=small"),
    (["--spot", "--max_hours=2"], "--node-id=small --spot --valid-until-duration=7200s"),
    (["--reserved", "--num_slices=2"], "--node-count=2 --node-prefix=small --reserved"),
    (["--service_account=a@p.iam.gserviceaccount.com", "--network=n", "--subnetwork=s", "--internal_ips"],
     "--node-id=small --service-account=a@p.iam.gserviceaccount.com --network=n --subnetwork=s --internal-ips"),
])  # fmt: skip
def test_a_dry_run_prints_what_would_run(flags, capacity, world, laid_out, capfd, clock):
    assert cli.run(["tpu", "launch", "--name=small", *SLICE, *flags, "--dry_run", "--", *TRAIN]) == 0
    out = capfd.readouterr().out
    ends = f",t5x-lite-ends={clock() + 7200:.0f}" if "--max_hours=2" in flags else ""
    assert plain(out) == GOLDEN.replace("CAPACITY", capacity).replace("ENDS", ends)
    assert not cloud(world).state["calls"]
    for line in out.strip().splitlines():
        parse(shlex.split(line)[1:])  # as GA has it
    # By hand, line by line, it does what a launch does.
    for line in out.strip().splitlines() if "--spot" in flags else ():
        subprocess.run(["sh", "-c", line], check="describe" not in line, capture_output=True)
    assert cloud(world).state["created"] == ("--spot" in flags)


def test_a_gin_file_of_the_job(world, laid_out, capfd):
    Path("job.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom t5x_lite.tpu import spec\n"
        'spec.JobSpec.name = "small"\nspec.JobSpec.accelerator = "v5e:4x4"\nspec.JobSpec.zone = "us-west4-a"\n'
        'spec.JobSpec.project = "my-project"\nspec.JobSpec.bucket = "gs://my-bucket"\n'
        f"spec.JobSpec.command = {TRAIN}\n"
    )
    assert cli.run(["tpu", "launch", "--gin_file=job.gin", "--zone=us-west1-c", "--gin.spec.JobSpec.spot=True"]) == 0
    [create] = [call for call in cloud(world).state["calls"] if "create" in call]
    assert {"--zone=us-west1-c", "--spot", "--accelerator-type=v5litepod-16"} <= set(create)
    capfd.readouterr()
    assert cli.run(["tpu", "launch", "--gin_file=job.gin", "--gin.spec.JobSpec.name=a b"]) == 2
    assert "--name is 'a b'" in capfd.readouterr().err
    assert cli.run(["tpu", "launch", *SLICE, "--name=small", "--gin.TRAIN_STEPS=2", "--", "train"]) == 2
    assert "Write the gin flags of training behind --" in capfd.readouterr().err


def test_hostile_words_are_quoted_where_they_are_printed_and_never_run(world, laid_out, capfd):
    words = ["a b", "it's", '"', "$(touch hacked)", "`touch hacked`", "a\nb; touch hacked", "--x=$HOME"]
    hostile = [f"--gin.A{k}={word}" for k, word in enumerate(words)]
    command = ["tpu", "launch", "--name=small", *SLICE, "--env=A=$(touch hacked)\n'", "--", *TRAIN, *hostile]
    assert cli.run(command) == 0, capfd.readouterr().err
    stored = json.loads(cloud(world).text("gs://my-bucket/t5x_lite/small/job.json"))
    assert stored["command"][: len(TRAIN) + len(hostile)] == TRAIN + hostile
    assert "hacked" not in str([call for call in cloud(world).state["calls"]])
    assert not list(world.rglob("hacked"))


def test_on_a_tpu_vm_that_is_there(world, laid_out, capfd):
    fake = cloud(world)
    fake.state["nodes"]["us-west4-a/mine"] = {"name": "x/nodes/mine", "acceleratorType": "v5litepod-16"}
    fake.save()
    command = ["tpu", "run", "--tpu=mine", "--name=small", *SLICE[1:], "--", *TRAIN]
    assert cli.run(command) == 0, capfd.readouterr().err
    ssh = cloud(world).state["calls"][-1]
    assert ssh[3:5] == ["ssh", "mine"] and "--worker=all" in ssh
    assert "gs://my-bucket/t5x_lite/small/startup.py" in cloud(world).state["objects"]
    fake = cloud(world)
    fake.state["ssh_fails"] = [3]
    fake.save()
    capfd.readouterr()
    assert cli.run(command) == 1
    error = capfd.readouterr().err
    assert "not started on all workers of mine" in error and "workers 3" in error
    assert cli.run(["tpu", "watch", "--name=small", "--bucket=gs://my-bucket"]) == 2
    assert cli.run(["tpu", "stop", "--name=small", "--bucket=gs://my-bucket"]) == 0
    assert "us-west4-a/mine" in cloud(world).state["nodes"]
    fake = cloud(world)
    fake.state["nodes"]["us-west4-a/gone"] = {"acceleratorType": "v5litepod-16", "state": "PREEMPTED"}
    fake.save()
    capfd.readouterr()
    for tpu, more, said in (
        ("other", [], "--tpu=other is not there"), ("gone", [], "--tpu=gone is PREEMPTED"),
        ("mine", ["--accelerator=v5e:2x4"], "The TPU VM mine is v5litepod-16"),
    ):  # fmt: skip
        assert cli.run(["tpu", "run", f"--tpu={tpu}", *command[3:6], *more, *command[6:]]) == 2
        assert said in capfd.readouterr().err
    for tpu in ("a b", "$(x)", "-x", "a\n"):
        assert cli.run(["tpu", "run", f"--tpu={tpu}", *command[3:]]) == 2


@pytest.mark.parametrize("command, said", [
    (["eval", "--chekpoint=gs://b/m"], "unknown flag --chekpoint=gs://b/m. Nearest: --checkpoint"),
    (["eval"], "--checkpoint"),
    (["eval", "--checkpoint=model"], "--checkpoint=model is not in a bucket"),
    (["eval", "--checkpoint=gs://b/m", "--output_dir=out"], "--output_dir=out is not in a bucket"),
    (["infer", "--checkpoint=gs://b/m", "--input=gs://b/x.txt", "--output", "o.jsonl"], "--output=o.jsonl is not in"),
    (["infer", "--checkpoint=gs://b/m", "--input=x.txt"], "--include=x.txt"),
    (["train", "--gin_fil=job.gin"], "unknown flag --gin_fil"),
    (["train", "--dry_run"], "--dry_run stands behind --"),
    (["train", "--topology=v5e:2x2"], "--topology stands behind --. It describes slices that are not here. Name"),
    (["train", "--num_slices", "2"], "--num_slices stands behind --"),
    (["train", "--process_id=0"], "--process_id stands behind --. The hosts of a slice find each other by its meta"),
    (["train", "eval"], "unknown argument eval"),
])  # fmt: skip
def test_a_command_that_would_fail_on_a_tpu_vm_is_refused_here(command, said, world, laid_out, capfd):
    Path("x.txt").write_text("a")
    flags = ["--name=small", *SLICE, "--accelerator=v5litepod-8"]
    assert cli.run(["tpu", "launch", *flags, "--", *command]) == 2
    assert said in capfd.readouterr().err
    assert not cloud(world).state["calls"]


def test_a_command_without_the_two_dashes(capfd):
    assert cli.run(["tpu", "launch", "--name=small", *SLICE, "train", "--gin_file=job.gin"]) == 2
    assert "A command that is to run stands behind --" in capfd.readouterr().err


def test_what_goes_along_may_be_read(world, laid_out, capfd):
    Path("x.txt").write_text("a")
    flags = ["--name=small", *SLICE, "--accelerator=v5litepod-8", "--include=x.txt"]
    command = ["infer", "--checkpoint=gs://b/m", "--input=./x.txt", "--output=gs://b/o.jsonl"]
    assert cli.run(["tpu", "launch", *flags, "--", *command]) == 0, capfd.readouterr().err


def test_a_job_is_laid_out_with_what_goes_along_alone(world, capfd):
    """A vocabulary beside the gin file is not on a TPU VM unless it is included; nor is a gin file that is missing."""
    Path("job.gin").write_text("include 'runs/pretrain.gin'\nVOCABULARY = 'here/spiece.model'\n")
    Path("here").mkdir()
    Path("here/spiece.model").touch()
    command = [word for word in TRAIN if "VOCABULARY" not in word and "runs/" not in word] + ["--gin_file=job.gin"]
    launch_ = ["tpu", "launch", "--name=small", *SLICE, "--dry_run"]
    assert cli.run([*launch_, "--", *command]) == 2
    assert "--include=here/spiece.model" in capfd.readouterr().err
    assert cli.run([*launch_, "--include=here", "--", *command]) == 0, capfd.readouterr().err


def test_macros_are_read_from_what_a_dry_run_prints():
    printed = "A = 1\nMODEL_DIR = \\\n    'gs://b/m'\nDATA_GLOB = \\\n    ('gs://b/a'\n     'b')\nVOCABULARY = None\n"
    assert [preflight.bound(printed, name) for name in ("MODEL_DIR", "DATA_GLOB", "VOCABULARY", "A")] == [
        "gs://b/m", "gs://b/ab", None, None
    ]  # fmt: skip


def owned(fake, name, state, url="gs://my-bucket/t5x_lite/gone", labels="t5x-lite=launch,t5x-lite-attempt=1"):
    words = f"gcloud compute tpus queued-resources create {name} --zone=us-west4-a --project=my-project --quiet"
    kind = f"--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite --node-id={name}"
    of = f"--labels={labels},t5x-lite-job={name} --metadata=t5x-lite-job={url}"
    fake.state["futures"].append([state])
    assert fake([*words.split(), *kind.split(), *of.split()])[0] == 0
    fake.become(f"us-west4-a/{name}", state)


def test_gc_deletes_what_is_ours_and_not_needed(world, laid_out, capfd, monkeypatch):
    assert cli.run(["tpu", "launch", "--name=small", *SLICE, "--", *TRAIN]) == 0
    fake = cloud(world)
    owned(fake, "failed", "FAILED=no more capacity", "gs://my-bucket/t5x_lite/small")
    owned(fake, "orphan", "ACTIVE")
    owned(fake, "theirs", "FAILED", labels="owner=somebody")
    fake.state["nodes"]["us-west4-a/lost"] = {
        "name": "x/nodes/lost", "state": "READY", "labels": {"t5x-lite": "launch", "t5x-lite-job": "lost"},
    }  # fmt: skip
    fake.state["nodes"]["us-west4-a/other"] = {"name": "x/nodes/other", "state": "READY"}
    fake.save()
    gc = ["tpu", "gc", "--project=my-project", "--zone=us-west4-a"]
    capfd.readouterr()
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    assert cli.run(gc) == 2  # nobody is there to be asked
    shown = capfd.readouterr()
    assert "small in us-west4-a: CREATING, in use" in shown.out or "small in us-west4-a: ACCEPTED, in use" in shown.out
    assert "theirs" not in shown.out and "--yes" in shown.err
    assert not any("delete" in call for call in cloud(world).state["calls"])
    assert cli.run([*gc, "--dry_run"]) == 0 and "queued-resources delete orphan" in capfd.readouterr().out
    assert cli.run([*gc, "--yes"]) == 0
    deleted = [call[4] for call in cloud(world).state["calls"] if "delete" in call]
    assert deleted == ["failed", "orphan", "lost"]
    capfd.readouterr()
    assert cli.run([*gc, "--yes"]) == 0
    assert cli.run([*gc, "--yes", "--all"]) == 0
    assert [call[4] for call in cloud(world).state["calls"] if "delete" in call][3:] == ["small"]


def test_gc_leaves_what_is_made_while_it_looks(world, laid_out, capfd, monkeypatch):
    """A TPU VM that is there before its queued resource is listed, and one that gets a queued resource afterwards."""
    call = gcloud.call

    def made_between(words, timeout):
        answer = call(words, timeout)
        if words[3:5] == ["queued-resources", "list"] and not cloud(world).state["created"]:
            fake = cloud(world)
            owned(fake, "young", "ACTIVE")
            fake.save()
        return answer

    monkeypatch.setattr(gcloud, "call", made_between)
    of = ["--project=my-project", "--zone=us-west4-a"]
    assert cli.run(["tpu", "gc", *of, "--yes"]) == 0
    assert "us-west4-a/young" in cloud(world).state["nodes"]
    found = gc.Found(
        "tpu-vm", "us-west4-a", "young", "READY", cloud(world).state["nodes"]["us-west4-a/young"]["createTime"], "x"
    )
    assert not gc.delete(found, "my-project")
    assert "us-west4-a/young" in cloud(world).state["nodes"]


@pytest.mark.parametrize("answer, deleted", [("y", 1), ("", 0), ("n", 0)])
def test_gc_asks_first(answer, deleted, world, laid_out, capfd, monkeypatch):
    fake = cloud(world)
    owned(fake, "failed", "FAILED")
    fake.save()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: answer)
    assert cli.run(["tpu", "gc", "--project=my-project", "--zone=us-west4-a"]) == 0
    assert sum("delete" in call for call in cloud(world).state["calls"]) == deleted


def test_a_command_is_for_those_that_run_one(capfd):
    assert cli.run(["tpu", "list", "--project=my-project", "--zone=us-west4-a", "--", "train"]) == 2
    assert "is given a command" in capfd.readouterr().err


def test_a_rehearsal_knows_what_it_wrote(tmp_path, capfd):
    rehearsal = launch.Rehearsal()
    path = tmp_path / "claim.json"
    path.write_text("{}")
    assert rehearsal(["gcloud", "storage", "cat", "gs://b/claim.json"], 1)[0] == 1
    assert rehearsal(["gcloud", "storage", "cp", str(path), "gs://b/claim.json"], 1)[0] == 0
    assert rehearsal(["gcloud", "storage", "cat", "gs://b/claim.json"], 1)[1] == "{}"
