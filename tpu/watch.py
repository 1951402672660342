"""Looks at a job and takes its next step, again and again. It keeps nothing: any number may run, anywhere, any time."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from t5x_lite.errors import RunError, UserError
from t5x_lite.tpu import gcloud, record, request, spec
from t5x_lite.tpu.gcloud import GcloudError
from t5x_lite.tpu.plan import ENDS, OUTCOMES, Action, Claim, Outcome, Seen, next_action, next_zone, refused
from t5x_lite.tpu.spec import JobSpec

# Looks. A quota is given back some time after what held it is gone.
_PATIENCE = 10


@dataclass(frozen=True)
class Launched:
    """A job as its bucket has it. `launched`: when, in Unix seconds."""

    job: JobSpec
    launched: float

    @property
    def deadline(self) -> float | None:
        return None if self.job.max_hours is None else self.launched + self.job.max_hours * 3600


@dataclass(frozen=True)
class Look:
    """What was seen, the generations of the records it was seen in ("0": there is none), when a watch last looked."""

    seen: Seen
    claim: str = "0"
    exit: str = "0"
    watched: float = 0.0


def read_job(url: str) -> tuple[Launched, dict]:
    """The job of a folder in the bucket, and its whole record.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    try:
        values = record.read(f"{url}/job.json")
    except GcloudError as error:
        raise error.as_run_error("nothing has been changed") from error
    bucket, _, name = url.rpartition("/t5x_lite/")
    if values is None:
        raise UserError(f"there is no job at {url}", "nothing was launched there", "correct --name or --bucket")
    job = spec.from_json(values)
    if (job.name, job.bucket) != (name, bucket) or not isinstance(values.get("launched"), int | float):
        raise UserError(f"{url}/job.json is of another job", f"it is of {job.url}", "correct --name or --bucket")
    return Launched(job, values["launched"]), values


def look(launched: Launched, now: float | None = None) -> Look:
    """Everything that the next step depends on.

    Args:
      launched: the job.
      now: Unix seconds; None: as the bucket has it, whose clock the records' times are of; that leaves a mark there.

    Raises:
      GcloudError: something cannot be looked at.
    """
    job = launched.job
    if now is None:
        record.mark(job.url)
    objects = record.listing(f"{job.url}/*", f"{job.url}/heartbeat/*")
    claim_at, exit_at = (objects.get(f"{job.url}/{name}", ("0", 0.0))[0] for name in ("claim.json", "exit.json"))
    claim = record.read(f"{job.url}/claim.json") if claim_at != "0" else None
    ended = record.read(f"{job.url}/exit.json") if exit_at != "0" else None
    nodes = request.nodes(job.name, job.zones, job.project)
    found = request.resources(job.name, job.zones, job.project)
    # They are not seen at one time: where the one lacks the other, it may have come or gone in between.
    lacking = any(r.state == "ACTIVE" for r in found) and len(nodes) < job.num_slices
    if lacking or any(node.zone not in {r.zone for r in found} for node in nodes):
        nodes = request.nodes(job.name, job.zones, job.project)
    beats = tuple(objects.get(f"{job.url}/heartbeat/{worker}", ("", 0.0))[1] for worker in job.workers)
    seen = Seen(
        now=objects.get(record.marked(job.url), ("", time.time()))[1] if now is None else now,
        zones=job.zones,
        slices=job.num_slices,
        outcome=_outcome(ended, launched.launched, objects.get(f"{job.url}/exit.json", ("", 0.0))[1]),
        deadline=launched.deadline,
        claim=_claim(claim, launched.launched),
        last_attempt=_attempt(claim),
        resources=tuple(found),
        nodes=tuple(nodes),
        beats=beats,
        relaunched=any(_began(values) > launched.launched for values in (claim, ended)),
    )
    return Look(seen, claim_at, exit_at, objects.get(record.marked(job.url), ("", 0.0))[1])


def _attempt(claim: dict | None) -> int:
    attempt = (claim or {}).get("attempt")
    return attempt if isinstance(attempt, int) else 0


def _claim(values: dict | None, launched: float) -> Claim | None:
    """The claim, if it is of this launch."""
    if values is None or values.get("launched") != launched or not isinstance(values.get("zone"), str):
        return None
    fruitless = values.get("fruitless")
    return Claim(values["zone"], _attempt(values), fruitless if isinstance(fruitless, int) else 0)


def _outcome(values: dict | None, launched: float, at: float) -> Outcome | None:
    if values is None or values.get("launched") != launched or values.get("result") not in OUTCOMES:
        return None
    return Outcome(values["result"], str(values.get("why") or ""), at)


def _began(values: dict | None) -> float:
    """When the launch began that a record is of; 0 where it does not say so."""
    began = (values or {}).get("launched")
    return began if isinstance(began, int | float) else 0.0


def act(launched: Launched, found: Look, action: Action) -> str | None:
    """Takes one step. Returns what came in between, if something did: the next look sees it.

    Raises:
      GcloudError: the command failed.
    """
    job = launched.job
    if action.kind == "claim":
        return None if _write_claim(launched, found, action.claim) else "another watcher was faster"
    if action.kind == "give_up":
        return None if write_outcome(launched, found, Outcome("failed", action.why)) else "it has ended meanwhile"
    if action.kind in ("delete", "delete_node"):
        return _delete(job, found, action)
    if action.kind == "create":
        return _create(launched, found, action)
    return None


def _write_claim(launched: Launched, found: Look, claim: Claim) -> bool:
    values = {
        "launched": launched.launched, "zone": claim.zone, "attempt": claim.attempt, "fruitless": claim.fruitless,
    }  # fmt: skip
    return record.write(f"{launched.job.url}/claim.json", values, found.claim)


def write_outcome(launched: Launched, found: Look, outcome: Outcome) -> bool:
    """Records how the job ended; False where something else was recorded meanwhile."""
    values = {"launched": launched.launched, "result": outcome.result, "why": outcome.why}
    return record.write(f"{launched.job.url}/exit.json", values, found.exit)


def _is_stale(job: JobSpec, found: Look) -> bool:
    """Whether others have moved on since the look: a laptop may have slept in between, for hours."""
    return record.listing(f"{job.url}/claim.json").get(f"{job.url}/claim.json", ("0", 0.0))[0] != found.claim


def _delete(job: JobSpec, found: Look, action: Action) -> str | None:
    # What bears the name now is not always what was seen under it.
    now = request.resource(job.name, action.zone, job.project)
    seen = action.resource
    if (now and (now.attempt, now.created)) != (seen and (seen.attempt, seen.created)):
        return "it has changed meanwhile"
    if _is_stale(job, found):
        return "the claim has moved meanwhile"
    words = (
        request.delete_words(job.name, action.zone, job.project)
        if action.kind == "delete"
        else request.delete_node_words(action.node, action.zone, job.project)
    )
    try:
        gcloud.run(words)
    except GcloudError as error:
        if error.kind != "notfound":  # somebody else was faster
            raise
    return None


def _create(launched: Launched, found: Look, action: Action) -> str | None:
    job, seen = launched.job, found.seen
    if _is_stale(job, found):
        return "the claim has moved meanwhile"
    try:
        gcloud.run(request.create_words(job, action.zone, seen.claim.attempt, launched.deadline, seen.now))
    except GcloudError as error:
        if error.kind == "exists":
            if request.resource(job.name, action.zone, job.project) is None:
                raise GcloudError("taken", error.said, error.words) from error  # by a TPU VM that is not ours
            return "it is there already"
        zone = next_zone(seen.zones, action.zone)
        if error.kind == "stockout":
            claim, why = Claim(zone, seen.last_attempt + 1), "has no capacity"
        elif error.kind == "quota" and (claim := refused(seen, error.said, zone).claim):
            why = "grants no quota"
        else:
            raise
        _write_claim(launched, found, claim)
        return f"{action.zone} {why}, next is {zone}: {error.said}"
    return None


def watch(
    launched: Launched,
    say: Callable[[str], None],
    poll_seconds: float = 60,
    until: Callable[[Action], bool] = lambda action: False,
    patience: int = _PATIENCE,
) -> Action:
    """Takes steps until the job has ended and nothing of it is left, or until one is taken that is enough.

    Args:
      launched: the job.
      say: takes a line whenever something is new.
      poll_seconds: between looks, while there is nothing to do but wait.
      until: whether a step is enough.
      patience: how often in a row a command may be refused for want of quota or for no known reason, or a creation
        for what the project does not allow.

    Returns:
      The last step.

    Raises:
      RunError: a command fails in a way that does not go away by itself.
    """
    said, refusals = None, 0
    while True:
        action = None
        try:
            found = look(launched)
            action = next_action(found.seen)
            text = f"{action.kind}: {action.why}" if action.why else action.kind
            if text != said:
                say(text)
                said = text
            if action.kind in ENDS:
                return action
            between = act(launched, found, action)
            refusals = 0
            if between:
                say(between)
            if until(action):
                return action
        except GcloudError as error:
            refusals += error.kind not in gcloud.TRANSIENT or (error.kind == "busy" and "create" in error.words)
            if error.kind not in (*gcloud.TRANSIENT, "quota", "taken", "unknown") or refusals >= patience:
                raise error.as_run_error(f"{launched.job.url} has all that is known of the job") from error
            say(f"{gcloud.shown(error.words[:5])}: {error.kind}: {error.said}")
            between = error.said
        if action is None or action.kind == "wait" or between:
            time.sleep(poll_seconds)


def ended(action: Action, job: JobSpec) -> None:
    """Says how a job ended that was watched to its end.

    Raises:
      RunError: it failed.
    """
    if action.kind == "failed":
        raise RunError(
            f"the job {job.name} failed: {action.why}",
            "its machines are gone; its checkpoints and logs are in the bucket",
            f"read t5x_lite tpu logs --name={job.name} --bucket={job.bucket}, then launch it again under the same name",
        )
