"""A Cloud TPU in this process, whose clock goes on when somebody sleeps, or behind a program on PATH."""

import os
import time
from pathlib import Path

import pytest

from t5x_lite.tpu import gcloud, record
from t5x_lite.tpu.spec import JobSpec
from t5x_lite.tpu.watch import Launched
from tests.tpu.fake_gcloud import Fake

JOB = {
    "name": "small",
    "accelerator": "v5litepod-16",
    "zone": "us-west4-a",
    "project": "my-project",
    "bucket": "gs://my-bucket",
    "command": ("train", "--gin_file=job.gin"),
}


class Clock:
    """Seconds since 1970; sleeping takes no time."""

    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture
def cloud(monkeypatch, tmp_path, clock) -> Fake:
    """The fake gcloud in place of the program."""
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    fake = Fake(clock=clock)
    monkeypatch.setattr(gcloud, "call", fake)
    return fake


@pytest.fixture
def gcloud_on_path(monkeypatch, tmp_path) -> Path:
    """A folder with the program gcloud, which is on PATH, in bin/ and what it holds in cloud/."""
    (tmp_path / "cloud").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gcloud").symlink_to(Path(__file__).with_name("fake_gcloud.py"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_GCLOUD", str(tmp_path / "cloud"))
    monkeypatch.setenv("T5X_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gcloud, "call", gcloud.call)  # a dry run puts another in its place
    return tmp_path


@pytest.fixture
def launched(cloud, clock):
    """A function: changed fields -> a job that is in the bucket, with nothing asked for yet."""

    def launch(**changed) -> Launched:
        job = JobSpec(**JOB | changed)
        launched = Launched(job, clock())
        assert record.write(f"{job.url}/job.json", job.as_json() | {"launched": clock(), "command": list(job.command)})
        return launched

    return launch
