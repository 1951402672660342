"""The commands that ask Cloud TPU for a job's machines, look at them and end them, and what they answer."""

from collections.abc import Iterable
from pathlib import Path

from t5x_lite.tpu import gcloud, spec
from t5x_lite.tpu.gcloud import GcloudError
from t5x_lite.tpu.plan import Node, Resource
from t5x_lite.tpu.record import seconds
from t5x_lite.tpu.spec import JobSpec

STARTUP = Path(__file__).parent / "startup.py"


def _tpus(*words: str, zone: str, project: str) -> list[str]:
    return ["gcloud", "compute", "tpus", *words, f"--zone={zone}", f"--project={project}"]


def create_words(job: JobSpec, zone: str, attempt: int, deadline: float | None, now: float) -> list[str]:
    """The command that queues an attempt; it returns when the request is queued.

    Args:
      job, zone, attempt: what.
      deadline: when the job's hours are over, in Unix seconds; None: never.
      now: in Unix seconds.
    """
    single = job.num_slices == 1
    nodes = [f"--node-id={job.name}"] if single else [f"--node-count={job.num_slices}", f"--node-prefix={job.name}"]
    left = None if deadline is None else deadline - now
    wait = min((s for s in (left, job.wait_hours and job.wait_hours * 3600) if s), default=None)
    labels = {spec.OWNER_LABEL: spec.OWNER, spec.JOB_LABEL: job.name, spec.ATTEMPT_LABEL: str(attempt)}
    # With what the machine needs to end itself where it cannot read the job.
    metadata = {"t5x-lite-job": job.url, "t5x-lite-attempt": str(attempt), "t5x-lite-project": job.project}
    if deadline is not None:
        metadata["t5x-lite-ends"] = str(int(deadline))
    return [
        *_tpus("queued-resources", "create", job.name, zone=zone, project=job.project),
        f"--accelerator-type={job.accelerator}",
        f"--runtime-version={job.slice.runtime_version}",
        *nodes,
        *(["--spot"] if job.spot else []),
        *(["--reserved"] if job.reserved else []),
        *([f"--valid-until-duration={max(60, int(wait))}s"] if wait else []),
        *([f"--service-account={job.service_account}"] if job.service_account else []),
        *([f"--network={job.network}"] if job.network else []),
        *([f"--subnetwork={job.subnetwork}"] if job.subnetwork else []),
        *(["--internal-ips"] if job.internal_ips else []),
        "--scopes=https://www.googleapis.com/auth/cloud-platform",
        f"--labels={_pairs(labels)}",
        f"--metadata={_pairs(metadata)}",
        f"--metadata-from-file={_pairs({'startup-script': str(STARTUP)})}",
        "--async",
        "--quiet",
    ]


def _pairs(values: dict[str, str]) -> str:
    """A dictionary as gcloud reads it; see `gcloud topic escaping`."""
    pairs = [f"{key}={value}" for key, value in values.items()]
    if not any("," in pair for pair in pairs):
        return ",".join(pairs)
    mark = next(m for m in (":", ";", "|", "#", "%", "~") if not any(m in pair for pair in pairs))
    return f"^{mark}^{mark.join(pairs)}"


def delete_words(job_name: str, zone: str, project: str) -> list[str]:
    """The command that ends a queued resource and its TPU VMs; it returns when that has begun."""
    return [*_tpus("queued-resources", "delete", job_name, zone=zone, project=project), "--force", "--quiet", "--async"]


def delete_node_words(node: str, zone: str, project: str) -> list[str]:
    """The command that ends a TPU VM."""
    return [*_tpus("tpu-vm", "delete", node, zone=zone, project=project), "--quiet", "--async"]


def describe_words(job_name: str, zone: str, project: str) -> list[str]:
    return _tpus("queued-resources", "describe", job_name, zone=zone, project=project)


def ssh_words(node: str, zone: str, project: str, worker: str, command: str | None) -> list[str]:
    """The command that opens a shell on workers, or runs a shell command there."""
    words = [*_tpus("tpu-vm", "ssh", node, zone=zone, project=project), f"--worker={worker}"]
    return words if command is None else [*words, f"--command={command}"]


def resource(job_name: str, zone: str, project: str) -> Resource | None:
    """The queued resource of that name; None where there is none.

    Raises:
      GcloudError: it cannot be looked at.
    """
    words = describe_words(job_name, zone, project)
    try:
        found = gcloud.read_json(words, dict)
    except GcloudError as error:
        if error.kind == "notfound":
            return None
        raise
    if not found.get("name"):
        raise GcloudError("garbage", f"it described no queued resource: {str(found)[:200]}", words)
    return as_resource(found, zone, job_name)


def as_resource(found: dict, zone: str, job_name: str | None = None) -> Resource:
    """A queued resource as Cloud TPU describes it; it is ours where its label says so."""
    state = _dict(found.get("state"))
    kind = str(state.get("state") or "STATE_UNSPECIFIED")
    labels = labels_of(found)
    ours = labels.get(spec.OWNER_LABEL) == spec.OWNER and job_name in (None, labels.get(spec.JOB_LABEL))
    attempt = labels.get(spec.ATTEMPT_LABEL, "")
    error = _dict(_dict(state.get("failedData")).get("error")).get("message", "")
    number = int(attempt) if attempt.isdecimal() else 0
    return Resource(zone, kind, number if ours else None, seconds(found.get("createTime")), str(error))


def labels_of(found: dict) -> dict[str, str]:
    """The labels of a queued resource, which it gives to its TPU VMs, or of a TPU VM."""
    specs = _dict(found.get("tpu")).get("nodeSpec") or [{}]
    node = _dict(_dict(specs[0]).get("node")) if isinstance(specs, list) else {}
    return {str(k): str(v) for k, v in _dict(found.get("labels") or node.get("labels")).items()}


def job_url_of(found: dict) -> str | None:
    """The folder of the job that a queued resource runs."""
    specs = _dict(found.get("tpu")).get("nodeSpec") or [{}]
    node = _dict(_dict(specs[0]).get("node")) if isinstance(specs, list) else {}
    return _dict(node.get("metadata")).get("t5x-lite-job")


def _dict(value) -> dict:
    return value if isinstance(value, dict) else {}


def listed(what: str, zone: str, project: str) -> list[dict]:
    """All queued resources ("queued-resources") or TPU VMs ("tpu-vm") of a zone that are ours.

    Raises:
      GcloudError: they cannot be listed.
    """
    found = gcloud.read_json(_tpus(what, "list", zone=zone, project=project), list)
    return [f for f in found if isinstance(f, dict) and labels_of(f).get(spec.OWNER_LABEL) == spec.OWNER]


def nodes(job_name: str, zones: Iterable[str], project: str) -> list[Node]:
    """The job's TPU VMs in all zones."""
    return [
        as_node(found, zone)
        for zone in zones
        for found in listed("tpu-vm", zone, project)
        if labels_of(found).get(spec.JOB_LABEL) == job_name
    ]


def as_node(found: dict, zone: str) -> Node:
    """A TPU VM as Cloud TPU describes it."""
    name = str(found.get("name", "")).rpartition("/")[2]
    return Node(zone, name, str(found.get("state", "STATE_UNSPECIFIED")), seconds(found.get("createTime")))


def resources(job_name: str, zones: Iterable[str], project: str) -> list[Resource]:
    """The queued resources of that name in all zones."""
    return [found for zone in zones if (found := resource(job_name, zone, project))]
