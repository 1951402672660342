"""What is asked of Cloud TPU: one job as a value, from flags or from a gin file, checked as far as it can be alone.

A gin file binds the fields of JobSpec:

    from __gin__ import dynamic_registration
    from t5x_lite.tpu import spec
    spec.JobSpec.accelerator = "v5litepod-16"
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from t5x_lite.errors import UserError, nearest
from t5x_lite.tpu import hardware

# What may run on a TPU. Only training is spread over hosts.
VERBS = ("train", "eval", "infer", "score")

# Flags of train that no launched command can have: why, and what to do instead.
_BEFORE = {
    "--dry_run": ("what is launched is to do its work", "write it before --, after launch"),
    "--topology": ("it describes slices that are not here", "name the slice before --, with --accelerator"),
    "--num_slices": ("it describes slices that are not here", "write it before --, after launch"),
} | dict.fromkeys(
    ("--coordinator_address", "--num_processes", "--process_id"),
    ("the hosts of a slice find each other by its metadata", "leave it out"),
)

# What our resources are known by.
OWNER_LABEL, JOB_LABEL, ATTEMPT_LABEL = "t5x-lite", "t5x-lite-job", "t5x-lite-attempt"
OWNER = "launch"

_NAME = r"[a-z][-a-z0-9]{0,39}"
_ZONE = r"[a-z]+(-[a-z]+)+[0-9]+-[a-z0-9]+"
_PROJECT = r"([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]"
# docs.cloud.google.com/storage/docs/buckets#naming, and a folder in the bucket in characters that no shell reads.
_BUCKET = r"gs://(?!goog)[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9](/[A-Za-z0-9_][-.A-Za-z0-9_]*)*"
_ACCOUNT = r"[-a-z0-9.]+@[-a-z0-9.]+"
_NETWORK = r"[a-z0-9][-a-z0-9/_.:]*"
_VARIABLE = r"([A-Za-z_][A-Za-z0-9_]*)=(.*)"
_SECRET = r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE|(^|_)KEY$"
# Keys by the looks of them: of Hugging Face, GitHub, Amazon and Google, and in PEM.
_KEY = (
    r"\b(hf_[A-Za-z0-9]{30}|gh[pousr]_[A-Za-z0-9]{30}|AKIA[0-9A-Z]{16}|AIza[\w-]{35}|ya29\.[\w-]{20})|PRIVATE KEY-----"
)
_OURS = ("PYTHONPATH", "PYTHONUNBUFFERED")
_TPU = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"


@dataclasses.dataclass(frozen=True)
class JobSpec:
    """One job. Numbers may be given as text, as flags are.

    Args:
      name: of the job and of its queued resource; it is the lock that keeps the job from running twice.
      accelerator: of a slice, as an accelerator type (`v5litepod-16`) or a topology (`v5e:4x4`).
      zone: zones separated by commas, tried in turn.
      project: Google Cloud project.
      bucket: gs://BUCKET or a folder in it; the job's own folder is made there.
      command: a t5x_lite command, without t5x_lite: ("train", "--gin_file=...").
      num_slices: slices, joined by the data centre's network.
      spot: take what is left over, cheaper, which may be taken away at any time.
      reserved: take of the project's reservation.
      max_hours: after the launch, waiting included; then the machines end whatever the job does.
      wait_hours: in the queue of one zone before the next one is tried; default: 1 where there are several zones.
      service_account: email of the VMs' account; default: Compute Engine's.
      network, subnetwork: of the VMs; default: "default".
      internal_ips: VMs without external addresses, where the network has a NAT.
      env: NAME=VALUE of the job's processes; no secrets, they are stored.
      include: files and folders of the working directory that the job reads, besides what the command names.
      python: an interpreter of the VM's image that has all packages; default: the locked environment is installed.

    Raises:
      UserError: a value is wrong, missing, or does not go with another.
    """

    name: str | None = None
    accelerator: str | None = None
    zone: str | None = None
    project: str | None = None
    bucket: str | None = None
    command: Sequence[str] = ()
    num_slices: int = 1
    spot: bool = False
    reserved: bool = False
    max_hours: float | None = None
    wait_hours: float | None = None
    service_account: str | None = None
    network: str | None = None
    subnetwork: str | None = None
    internal_ips: bool = False
    env: Sequence[str] = ()
    include: Sequence[str] = ()
    python: str | None = None

    def __post_init__(self):
        check_name(self.name)
        check_bucket(self.bucket)
        _set(self, "bucket", self.bucket.rstrip("/"))
        check_project(self.project)
        zones = check_zones(self.zone)
        _text("accelerator", self.accelerator)
        slice_ = hardware.parse(self.accelerator, "--accelerator")
        _set(self, "accelerator", slice_.accelerator_type)
        _set(self, "num_slices", _whole("num_slices", self.num_slices))
        for name in ("spot", "reserved", "internal_ips"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} is {getattr(self, name)!r}", "it is True or False", f"correct --{name}")
        if self.spot and self.reserved:
            raise UserError("--spot and --reserved are given", "capacity is one or the other", "leave one out")
        for name in ("max_hours", "wait_hours"):
            _set(self, name, _hours(name, getattr(self, name)))
        if self.wait_hours is None and len(zones) > 1:
            _set(self, "wait_hours", 1.0)
        for name, pattern, example in (
            ("service_account", _ACCOUNT, "NAME@PROJECT.iam.gserviceaccount.com"),
            ("network", _NETWORK, "default"),
            ("subnetwork", _NETWORK, "default"),
            ("python", r"/[-\w./]+", "/usr/bin/python3.11"),
        ):
            if getattr(self, name) is not None:
                _match(name, getattr(self, name), pattern, f"write for example --{name}={example}")
        for name in ("env", "include", "command"):
            _set(self, name, _texts(name, getattr(self, name)))
        for binding in self.env:
            _check_variable(binding)
        for word in (*self.env, *self.command):
            if re.search(_KEY, word):
                raise _secret(f"the value of {word.partition('=')[0]}" if "=" in word else "a word of the command")
        self._check_command(slice_)

    def _check_command(self, slice_: hardware.Hardware) -> None:
        if not self.command:
            raise UserError(
                "there is no command to run", "it stands behind --", "add for example -- train --gin_file=job.gin"
            )
        verb = self.command[0]
        if verb not in VERBS:
            raise UserError(f"{verb} cannot be launched", nearest(verb, VERBS), "write -- train --gin_file=F")
        for flag in (word.split("=")[0] for word in self.command):
            if flag in _BEFORE:
                raise UserError(f"{flag} stands behind --", *_BEFORE[flag])
        if verb != "train" and slice_.hosts * self.num_slices > 1:
            raise UserError(
                f"{verb} is to run on {slice_.hosts * self.num_slices} hosts",
                "only train is spread over several",
                "choose a slice of one host, such as --accelerator=v5litepod-8, and --num_slices=1",
            )

    @property
    def zones(self) -> tuple[str, ...]:
        return tuple(self.zone.split(","))

    @property
    def url(self) -> str:
        """The job's folder in the bucket."""
        return url(self.bucket, self.name)

    @property
    def slice(self) -> hardware.Hardware:
        return hardware.parse(self.accelerator, "--accelerator")

    @property
    def workers(self) -> tuple[str, ...]:
        """SLICE-WORKER of every host."""
        return tuple(f"{s}-{w}" for s in range(self.num_slices) for w in range(self.slice.hosts))

    @property
    def nodes(self) -> tuple[str, ...]:
        """TPU VMs, one a slice, as Cloud TPU names them."""
        return (self.name,) if self.num_slices == 1 else tuple(f"{self.name}-{k}" for k in range(self.num_slices))

    def as_json(self) -> dict:
        return dataclasses.asdict(self)


def check_queued(job: JobSpec) -> None:
    """Refuses what is not lent as a queued resource.

    Raises:
      UserError: it is of such a generation.
    """
    if job.slice.generation == "tpu7x":
        raise UserError(
            f"--accelerator={job.accelerator} is not to be had as a queued resource",
            "Google lends tpu7x through GKE and Compute Engine only",
            "give --publish_only and use the template tpu/gke/jobset.yaml, see docs/launch_on_tpu.md",
        )


def url(bucket: str, name: str) -> str:
    """The folder of a job."""
    return f"{bucket.rstrip('/')}/t5x_lite/{name}"


def from_json(values: dict) -> JobSpec:
    """The job of a job.json, checked again: others may write to the bucket.

    Raises:
      UserError: it is no job.
    """
    names = {field.name for field in dataclasses.fields(JobSpec)}
    return JobSpec(**{key: value for key, value in values.items() if key in names})


def check_name(name) -> None:
    """Refuses what is no name of a job."""
    _match("name", name, _NAME, "choose a name of at most 40 of a-z, 0-9 and -, that begins with a letter")


def check_tpu(name) -> None:
    """Refuses what is no name of a TPU VM."""
    _match("tpu", name, _TPU, "give the name that `gcloud compute tpus tpu-vm list` shows")


def check_project(project) -> None:
    """Refuses what is no project id."""
    _match("project", project, _PROJECT, "give the project's id, which `gcloud projects list` shows")


def check_bucket(bucket) -> None:
    """Refuses what is no bucket."""
    bucket = bucket.removesuffix("/") if isinstance(bucket, str) else bucket
    _match("bucket", bucket, _BUCKET, "write for example --bucket=gs://my-bucket, or a folder in it")


def check_zones(zone) -> tuple[str, ...]:
    """The zones of a list separated by commas.

    Raises:
      UserError: one is none, or stands there twice.
    """
    _text("zone", zone)
    zones = tuple(zone.split(","))
    for one in zones:
        _match("zone", one, _ZONE, "write for example --zone=us-west4-a, or several: --zone=us-west4-a,us-central1-a")
    if len(set(zones)) < len(zones):
        raise UserError(f"--zone={zone} names a zone twice", "each is tried in turn", "leave one out")
    return zones


def _set(spec: JobSpec, name: str, value) -> None:
    object.__setattr__(spec, name, value)


def _text(name: str, value) -> None:
    if value is None or value == "":
        raise UserError(f"--{name} is not given", "a job needs it", f"give it with --{name}, or in the gin file")
    if not isinstance(value, str):
        raise UserError(f"{name} is {value!r}", "it is a text", f"correct --{name}")


def _match(name: str, value, pattern: str, fix: str) -> None:
    _text(name, value)
    if not re.fullmatch(pattern, value):
        raise UserError(f"--{name} is {value!r}", f"it must match {pattern}", fix)


def _texts(name: str, values) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) and "\0" not in v for v in values):
        raise UserError(f"{name} is {values!r}", "it is a list of texts", f"correct {name}")
    return tuple(values)


def _check_variable(binding: str) -> None:
    found = re.fullmatch(_VARIABLE, binding, re.DOTALL)
    if not found:
        raise UserError(f"--env is {binding!r}", "it is NAME=VALUE", "write for example --env=LIBTPU_INIT_ARGS=--xla_x")
    if re.search(_SECRET, found[1].upper()):
        raise _secret(f"--env={found[1]}=...")
    if found[1] in _OURS:
        raise UserError(f"--env={binding} is given", "a host sets it to find the job's code", "leave it out")


def _secret(what: str) -> UserError:
    return UserError(
        f"{what} looks like a secret",
        "what a job is given is stored in the bucket",
        "let the job's service account read it from Secret Manager",
    )


def _whole(name: str, value) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 256:
        raise UserError(f"--{name} is {value!r}", "it is a whole number from 1 to 256", f"correct --{name}")
    return value


def _hours(name: str, value) -> float | None:
    if value is None:
        return None
    try:
        hours = float(value)
    except (TypeError, ValueError):
        hours = math.nan
    if isinstance(value, bool) or not 0.01 <= hours <= 24 * 365:
        raise UserError(f"--{name} is {value!r}", "it is a number of hours, from 0.01 to a year", f"correct --{name}")
    return hours
