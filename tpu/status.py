"""What is known of a job, and of all jobs of a project, as lines."""

import json
import time
from collections.abc import Iterator

from t5x_lite.tpu import record, request, spec
from t5x_lite.tpu.gcloud import GcloudError
from t5x_lite.tpu.plan import next_action
from t5x_lite.tpu.watch import Launched, look


def lines(launched: Launched, tpu: str | None, now: float) -> Iterator[str]:
    """A job: what was asked for, what there is, who reports, what is next.

    Raises:
      GcloudError: something cannot be looked at.
    """
    job = launched.job
    kind = "spot" if job.spot else "reserved" if job.reserved else "on demand"
    slices = f"{job.num_slices} x {job.accelerator}, {len(job.workers)} hosts"
    yield f"job       {job.name}: {slices}, {kind}, {job.zone}, {job.project}"
    yield f"launched  {_time(launched.launched)}" + (
        f", ends at {_time(launched.deadline)} at the latest" if launched.deadline else ""
    )
    found = look(launched, now)
    seen = found.seen
    if tpu:
        yield f"tpu       {tpu}"
    elif seen.claim:
        yield f"attempt   {seen.claim.attempt} in {seen.claim.zone}"
    for resource in seen.resources:
        whose = f"attempt {resource.attempt}" if resource.attempt is not None else "not ours"
        error = f": {resource.error}" if resource.error else ""
        yield f"resource  {resource.zone}: {resource.state}, {whose}{error}"
    for node in seen.nodes:
        yield f"tpu vm    {node.zone}: {node.name} {node.state}"
    if any(seen.beats):
        told = _told(launched)
        for worker, beat in zip(job.workers, seen.beats):
            yield f"worker    {_worker(worker, beat, told.get(worker), now)}"
    else:
        yield f"workers   none of {len(job.workers)} has reported yet"
    if not (tpu or seen.outcome):
        watched = f"{_ago(now - found.watched)} ago" if found.watched else "by nobody yet"
        yield f"watched   {watched}"
    if seen.outcome:
        yield f"ended     {seen.outcome.result}" + (f": {seen.outcome.why}" if seen.outcome.why else "")
    if not tpu:
        action = next_action(seen)
        yield f"next      {action.kind}" + (f": {action.why}" if action.why else "")


def _told(launched: Launched) -> dict[str, dict]:
    """What each worker said last in this launch."""
    try:
        text = record.text_of([f"{launched.job.url}/heartbeat/*"])
    except GcloudError:
        return {}
    told, decoder = {}, json.JSONDecoder()
    while text := text.strip():
        try:
            found, end = decoder.raw_decode(text)
        except ValueError:
            break
        text = text[end:]
        if isinstance(found, dict) and found.get("launched") == launched.launched:
            told[found.get("worker")] = found
    return told


def _worker(worker: str, beat: float, told: dict | None, now: float) -> str:
    if told is None:
        return f"{worker}: nothing heard yet"
    state, restarts, last = (told.get(key) for key in ("state", "restarts", "last_exit"))
    exits = "" if last is None else f", last exit {last}"
    return f"{worker}: {state}, {restarts} restarts{exits}, {_ago(now - beat)} ago"


def _ago(seconds: float) -> str:
    return f"{max(0, seconds):.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min"


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def rows(zones: tuple[str, ...], project: str) -> Iterator[tuple[str, ...]]:
    """Every queued resource of ours: job, zone, state, accelerator, the job's folder.

    Raises:
      GcloudError: a zone cannot be listed.
    """
    for zone in zones:
        for found in request.listed("queued-resources", zone, project):
            specs = (found.get("tpu") or {}).get("nodeSpec") or [{}]
            accelerator = (specs[0].get("node") or {}).get("acceleratorType", "")
            job = request.labels_of(found).get(spec.JOB_LABEL, "")
            yield job, zone, request.as_resource(found, zone).state, accelerator, request.job_url_of(found) or ""


def log_parts(launched: Launched, worker: str) -> list[str]:
    """The addresses of the parts of a worker's log of this launch, in order.

    Raises:
      GcloudError: they cannot be listed.
    """
    found = record.listing(f"{launched.job.url}/logs/{worker}/*")
    return sorted(part for part, (_, written) in found.items() if written >= launched.launched)
