"""What goes with a job's code: all that it reads of the working directory, and nothing that is secret or elsewhere."""

import os
import re
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from t5x_lite import cli
from t5x_lite.errors import UserError
from t5x_lite.tpu import bundle
from t5x_lite.tpu.spec import JobSpec
from tests.tpu.conftest import JOB

ROOT = Path(bundle.__file__).parents[1]
SLICE = ["--accelerator=v5litepod-8", "--zone=us-west4-a", "--project=my-project", "--bucket=gs://my-bucket"]


def test_the_bundle_is_the_same_for_the_same_files_and_whole(tmp_path):
    (tmp_path / "job.gin").write_text("include 'more/part.gin'\ninclude 'runs/pretrain.gin'\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/part.gin").touch()
    (tmp_path / "my_tasks.py").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a b$(x).txt").write_text("x")
    command = ("train", "--gin_file=job.gin", "--module=my_tasks")
    job = JobSpec(**JOB | {"command": command, "include": ("data",)})
    archive, digest = bundle.build(job, tmp_path)
    assert bundle.build(job, tmp_path) == (archive, digest)
    names = set(tarfile.open(fileobj=BytesIO(archive)).getnames())
    own = {"work/job.gin", "work/more/part.gin", "work/my_tasks.py", "work/data/a b$(x).txt"}
    assert {name for name in names if name.startswith("work/")} == own
    assert {"code/requirements.lock", "code/t5x_lite/cli.py", "code/t5x_lite/tpu/startup.py"} < names
    assert {"code/t5x_lite/configs/runs/pretrain.gin", "code/t5x_lite/tasks/registry.py"} < names
    # It runs as it is.
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(tmp_path / "there", filter="data")
    done = subprocess.run(
        [os.sys.executable, "-m", "t5x_lite", "--version"], cwd=tmp_path / "there/work", capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "there/code")}, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("t5x_lite ")


def test_the_lock_of_a_tpu_vm_is_the_tested_one_and_libtpu():
    def pinned(path):
        return set(re.findall(r"^([\w.-]+(?:\[[\w,]+\])?==[^\\\n]+)", (ROOT / path).read_text(), flags=re.MULTILINE))

    more = {line.split("==")[0] for line in pinned("tpu/requirements.lock") - pinned("requirements.lock")}
    assert more == {"libtpu"}


def test_what_a_module_and_a_gin_file_import_goes_along(tmp_path):
    """All that lies in the working directory, and nothing that is installed."""
    for name, text in {
        "job.gin": "import my_models.tiny\nMIXTURE_OR_TASK_MODULE = 'more_tasks'\n",
        "my_models/__init__.py": "",
        "my_models/tiny.py": "from my_models import sizes\nimport json, numpy\n",
        "my_models/sizes.py": "from . import tiny\n",
        "my_tasks.py": "import t5x_lite.tasks\nfrom my_text.clean import words\n",
        "my_text/clean.py": "import shared\n",
        "shared.py": "import my_tasks\n",
        "more_tasks.py": "this is no Python",
        "t5x_lite/tasks.py": "",
        "json.py": "",
        "other.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    job = JobSpec(**JOB | {"command": ("train", "--gin_file=job.gin", "--module=my_tasks")})
    assert set(bundle.own_files(job, tmp_path)) == {
        "job.gin", "my_models/__init__.py", "my_models/tiny.py", "my_models/sizes.py", "my_tasks.py",
        "my_text/clean.py", "shared.py", "more_tasks.py",
    }  # fmt: skip


def test_a_module_that_is_on_this_machine_alone(tmp_path, monkeypatch, capfd):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "their_tasks.py").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(elsewhere)
    flags = ["--name=small", *SLICE, "--", "eval", "--checkpoint=gs://my-bucket/m"]
    assert cli.run(["tpu", "launch", *flags, "--module=their_tasks.more"]) == 2
    error = capfd.readouterr().err
    assert "the module their_tasks.more is on this machine alone" in error and str(elsewhere) in error
    # What the lock installs, and what an image brings, is there.
    command = ("eval", "--module=seqio")
    assert not bundle.own_files(JobSpec(**JOB | {"accelerator": "v5litepod-8", "command": command}), tmp_path)
    command = ("eval", "--module=their_tasks")
    job = JobSpec(**JOB | {"accelerator": "v5litepod-8", "command": command, "python": "/usr/bin/python3.11"})
    assert not bundle.own_files(job, tmp_path / "here")


KEY = '{"type": "service_account", "private_key": "-----BEGIN PRIVATE KEY-----\\nMIIE"}'


@pytest.mark.parametrize("name, text", [
    (".env", ""), ("id_rsa", ""), ("a/server.pem", ""), ("a/my-credentials.json", "{}"), ("a/account.json", KEY),
])  # fmt: skip
def test_secrets_do_not_go_along(name, text, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / name).write_text(text)
    include = "a" if "/" in name else name
    with pytest.raises(UserError, match=f"{name} looks like a secret"):
        bundle.own_files(JobSpec(**JOB | {"include": (include,)}), tmp_path)


def test_a_folder_goes_along_without_what_is_hidden_and_without_what_lies_elsewhere(tmp_path):
    for name in (".git/config", ".env", "a/.venv/x.py", "a/__pycache__/x.pyc", "a/b.txt"):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).touch()
    job = JobSpec(**JOB | {"include": (".",)})
    assert set(bundle.own_files(job, tmp_path / "here")) == {"a/b.txt"}
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "here/a/link").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="a/link is a link out of the working directory"):
        bundle.own_files(job, tmp_path / "here")


def test_the_largest_file_is_named(tmp_path):
    for name, size in (("a", 3), ("b", 65)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size * 2**20)
    with pytest.raises(UserError, match="are 68 MiB, of which b is 65 MiB"):
        bundle.own_files(JobSpec(**JOB | {"include": ("a", "b")}), tmp_path)


def test_a_module_that_is_nowhere(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    flags = ["--name=small", *SLICE]
    command = ["eval", "--checkpoint=gs://my-bucket/m", "--module=no_such_tasks"]
    assert cli.run(["tpu", "launch", *flags, "--", *command]) == 2
    assert "the module no_such_tasks is not there" in capfd.readouterr().err


@pytest.mark.parametrize("include", ["../x", "/etc/hosts", "missing"])
def test_only_files_of_the_working_directory_go_along(include, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    flags = ["--name=small", *SLICE, f"--include={include}"]
    assert cli.run(["tpu", "launch", *flags, "--", "eval", "--checkpoint=gs://my-bucket/m"]) == 2
    assert f"--include={include}" in capfd.readouterr().err
