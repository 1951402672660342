"""Finds what our label owns and nobody needs, and deletes it: requests that hold quota, machines of jobs that ended."""

from collections.abc import Iterator
from dataclasses import dataclass

from t5x_lite.tpu import gcloud, record, request, spec
from t5x_lite.tpu.gcloud import GcloudError


@dataclass(frozen=True)
class Found:
    """Something of ours.

    Args:
      what: "queued-resources" or "tpu-vm", as gcloud calls them.
      zone, name, state: of it.
      created: as Cloud TPU writes it.
      why: it may go; empty: it is in use.
    """

    what: str
    zone: str
    name: str
    state: str
    created: str
    why: str


def find(zones: tuple[str, ...], project: str, everything: bool) -> Iterator[Found]:
    """All that is ours in the zones.

    Args:
      zones, project: where.
      everything: whether what is in use may go too.

    Raises:
      GcloudError: a zone or a job cannot be looked at.
    """
    for zone in zones:
        # First: one that is made in between has a queued resource which is listed.
        nodes = request.listed("tpu-vm", zone, project)
        requests = request.listed("queued-resources", zone, project)
        held = {request.labels_of(found).get(spec.JOB_LABEL) for found in requests}
        for found in requests:
            yield _as_found("queued-resources", found, zone, _why(found, zone) or ("--all" if everything else ""))
        for node in nodes:
            if request.labels_of(node).get(spec.JOB_LABEL) not in held:
                yield _as_found("tpu-vm", node, zone, "it has no queued resource")


def _as_found(what: str, found: dict, zone: str, why: str) -> Found:
    state = found.get("state")
    state = state.get("state") if isinstance(state, dict) else state
    name = str(found.get("name", "")).rpartition("/")[2]
    why = "" if state == "DELETING" else why
    return Found(what, zone, name, str(state), str(found.get("createTime", "")), why)


def _why(found: dict, zone: str) -> str:
    """Why a queued resource may go; empty where its job needs it."""
    resource = request.as_resource(found, zone)
    if resource.state in ("FAILED", "SUSPENDED"):
        return f"{resource.state}, and holds quota"
    url = request.job_url_of(found)
    if not url or not url.startswith("gs://"):
        return "it names no job"
    try:
        job = record.read(f"{url}/job.json")
        ended = record.read(f"{url}/exit.json") if job else None
    except GcloudError as error:
        if error.kind == "notfound":
            return "its job's bucket is gone"
        raise
    if job is None:
        return "its job is gone from the bucket"
    if ended is not None and ended.get("launched") == job.get("launched"):
        return f"its job has ended: {ended.get('result')}"
    return ""


def delete(found: Found, project: str) -> bool:
    """Deletes it, unless it is no more what was found.

    Raises:
      GcloudError: it cannot be deleted.
    """
    words = ["gcloud", "compute", "tpus", found.what, "describe", found.name]
    try:
        now = gcloud.read_json([*words, f"--zone={found.zone}", f"--project={project}"], dict)
        ours = request.labels_of(now).get(spec.OWNER_LABEL) == spec.OWNER
        if not ours or str(now.get("createTime", "")) != found.created:
            return False
        job = request.labels_of(now).get(spec.JOB_LABEL, "")
        if found.what == "tpu-vm" and request.resource(job, found.zone, project) is not None:
            return False
        deleting = request.delete_words if found.what == "queued-resources" else request.delete_node_words
        gcloud.run(deleting(found.name, found.zone, project))
    except GcloudError as error:
        if error.kind != "notfound":
            raise
    return True
