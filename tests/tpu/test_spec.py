"""A job spec is checked as far as it can be alone, and what is wrong is said with value, reason and flag."""

import pytest

from t5x_lite import cli
from t5x_lite.errors import UserError
from t5x_lite.tpu import spec
from t5x_lite.tpu.spec import JobSpec
from tests.tpu.conftest import JOB

# Names that a shell, a path or gcloud would read something into.
HOSTILE = [
    "", "A", "1a", "-a", "a b", "a'b", 'a"b', "$(touch x)", "`touch x`", "a;b", "a\n", "a\nb", "\na", "a/b", "../a",
    "a,b", "a=b", "--name", "é", "a\0", "a" * 41, "^:^a",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_none_is_refused_with_2(name, capfd):
    flags = ["--accelerator=v5litepod-8", "--zone=us-west4-a", "--project=my-project", "--bucket=gs://my-bucket"]
    assert cli.run(["tpu", "launch", f"--name={name}", *flags, "--", "train"]) == 2
    assert "--name" in capfd.readouterr().err
    for action in ("watch", "status", "logs", "ssh", "stop"):
        assert cli.run(["tpu", action, f"--name={name}", "--bucket=gs://my-bucket"]) == 2
        assert "--name" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["a", "a-", "a1", "t5-base-2", "a" * 40])
def test_names_that_are_some(name):
    assert JobSpec(**JOB | {"name": name}).name == name


@pytest.mark.parametrize("changed, said", [
    ({"accelerator": "v5litepod-12"}, "--accelerator=v5litepod-12 is no accelerator type of v5e"),
    ({"accelerator": "v5lite-16"}, "names no TPU generation"),
    ({"accelerator": "v5e:3x3"}, "is no slice of v5e"),
    ({"zone": "us-west4"}, "--zone is 'us-west4'"),
    ({"zone": "us-west4-a,us-west4-a"}, "names a zone twice"),
    ({"zone": "us-west4-a, us-west4-b"}, "--zone is ' us-west4-b'"),
    ({"zone": None}, "--zone is not given"),
    ({"project": "P"}, "--project is 'P'"),
    ({"project": "my-project;x"}, "--project"),
    ({"bucket": "my-bucket"}, "--bucket is 'my-bucket'"),
    ({"bucket": "gs://b$(x)"}, "--bucket"),
    ({"bucket": "gs://my-bucket/a b"}, "--bucket"),
    ({"bucket": "gs://my-bucket/../x"}, "--bucket"),
    ({"bucket": "gs://googbucket"}, "--bucket"),
    ({"num_slices": 0}, "--num_slices is 0"),
    ({"num_slices": "two"}, "--num_slices is 'two'"),
    ({"num_slices": True}, "--num_slices is True"),
    ({"max_hours": "soon"}, "--max_hours is 'soon'"),
    ({"max_hours": 0}, "--max_hours is 0"),
    ({"max_hours": "nan"}, "--max_hours is 'nan'"),
    ({"spot": True, "reserved": True}, "--spot and --reserved are given"),
    ({"service_account": "x y@z"}, "--service_account"),
    ({"network": "a,b"}, "--network"),
    ({"env": ("A",)}, "It is NAME=VALUE"),
    ({"env": ("WANDB_API_KEY=123abc",)}, "looks like a secret"),
    ({"env": ("AWS_ACCESS_KEY_ID=123abc",)}, "looks like a secret"),
    ({"env": ("MY_KEY=123abc",)}, "looks like a secret"),
    ({"env": ("HF=hf_123abc" + "x" * 30,)}, "the value of HF looks like a secret"),
    ({"command": ("train", "--gin.A=AKIA123ABC" + "X" * 12)}, "the value of --gin.A looks like a secret"),
    ({"env": ("PYTHONPATH=/x",)}, "A host sets it"),
    ({"command": ()}, "there is no command to run"),
    ({"command": ("trian",)}, "Nearest: train"),
    ({"command": ("eval", "--checkpoint=gs://b/m")}, "eval is to run on 4 hosts"),
    ({"command": "train"}, "It is a list of texts"),
])  # fmt: skip
def test_what_is_wrong_is_said(changed, said):
    with pytest.raises(UserError) as error:
        JobSpec(**JOB | changed)
    assert said in str(error.value)
    assert "123abc" not in str(error.value).lower()


def test_numbers_as_text_and_topologies():
    job = JobSpec(**JOB | {"accelerator": "v5e:16x16", "num_slices": "2", "max_hours": "1.5", "bucket": "gs://buc/x/"})
    assert (job.accelerator, job.num_slices, job.max_hours) == ("v5litepod-256", 2, 1.5)
    assert job.url == "gs://buc/x/t5x_lite/small"
    assert len(job.workers) == 2 * 64 and job.workers[-1] == "1-63"
    assert job.nodes == ("small-0", "small-1")


def test_several_zones_have_a_limit_of_waiting():
    assert JobSpec(**JOB).wait_hours is None
    assert JobSpec(**JOB | {"zone": "us-west4-a,us-central1-ai1a"}).wait_hours == 1


def test_a_record_is_checked_again():
    job = JobSpec(**JOB | {"env": ("A=b c\n$(d)",)})
    assert spec.from_json(job.as_json() | {"launched": 1.0, "unknown": 2}) == job
    with pytest.raises(UserError):
        spec.from_json(job.as_json() | {"name": "$(x)"})
