"""What to do next: one pure function of what is seen. Each action is one command that may be repeated or cut off.

A job has one claim in its bucket: the zone and the attempt that may exist. An attempt is a queued resource that carries
its number as a label. To try again, or elsewhere, the claim moves first (under a precondition, so one watcher wins);
what does not match it is deleted; and only when nothing of the job is left anywhere is the claimed one created. Its id
is the job's name, so creating it twice is refused by Cloud TPU itself.
"""

import dataclasses

from t5x_lite.tpu import gcloud

# A queued resource that comes by itself: google.cloud.tpu_v2.types.QueuedResourceState. So does one that is going
# (SUSPENDING), and a state that nobody knows yet is left alone.
_COMING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")

# A TPU VM that does not come back.
_LOST = ("PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "DELETING", "HIDDEN", "HIDING", "UNKNOWN")

# Seconds without a sign of life of a worker. They come every minute, from the first minute of the VM on.
STALE = 20 * 60

# Attempts in a row that nobody heard of, or that failed for no known reason, before it is given up.
FRUITLESS = 3

# Of an error of a queued resource: another attempt would end likewise.
_HOPELESS = ("permission", "invalid", "disabled", "billing", "place")

# Seconds that machines have, after the job has been ended from outside, to hear of it (a minute), save (five) and end
# themselves; and how long after its last sign of life a machine may be thought to be at it.
SAVING, _ALIVE = 8 * 60, 3 * 60


@dataclasses.dataclass(frozen=True)
class Claim:
    """What may exist. `fruitless`: attempts before it, in a row, that came to nothing."""

    zone: str
    attempt: int
    fruitless: int = 0


@dataclasses.dataclass(frozen=True)
class Resource:
    """A queued resource of the job's name. `attempt`: None where it is not ours. Times are in Unix seconds."""

    zone: str
    state: str
    attempt: int | None
    created: float
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Node:
    """A TPU VM of ours."""

    zone: str
    name: str
    state: str
    created: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the job ended: "done", "failed" or "stopped". `at`: when that was recorded, in Unix seconds."""

    result: str
    why: str = ""
    at: float = 0.0


@dataclasses.dataclass(frozen=True)
class Seen:
    """What there is.

    Args:
      now: Unix seconds.
      zones: of the job, in order.
      slices: TPU VMs of an attempt.
      outcome: None while the job goes on.
      deadline: when its hours are over; None: never.
      claim: None before the first one of this launch.
      last_attempt: the highest number so far, of earlier launches too.
      resources, nodes: in all zones.
      beats: the last sign of life of each worker; 0: none.
      relaunched: whether a later launch has taken the job's name.
    """

    now: float
    zones: tuple[str, ...]
    slices: int = 1
    outcome: Outcome | None = None
    deadline: float | None = None
    claim: Claim | None = None
    last_attempt: int = 0
    resources: tuple[Resource, ...] = ()
    nodes: tuple[Node, ...] = ()
    beats: tuple[float, ...] = ()
    relaunched: bool = False


@dataclasses.dataclass(frozen=True)
class Action:
    """The next step: claim, create, delete, delete_node, give_up, wait; or the end: done, failed, stopped, relaunched.

    Args:
      kind: as above.
      why: in words.
      zone: that the step is in; of "wait": where the claimed attempt is, empty where something else is waited for.
      claim: of "claim".
      resource: of "delete".
      node: of "delete_node".
    """

    kind: str
    why: str
    zone: str = ""
    claim: Claim | None = None
    resource: Resource | None = None
    node: str = ""


OUTCOMES = ("done", "failed", "stopped")
ENDS = (*OUTCOMES, "relaunched")


def next_action(seen: Seen) -> Action:
    """What to do next. Total: every state, known or not, has an answer."""
    if seen.relaunched:
        return Action("relaunched", "a later launch has its name, and all that bears it")
    if seen.outcome is None and seen.deadline is not None and seen.now >= seen.deadline:
        return Action("give_up", "its max_hours are over")
    taken = next((r for r in seen.resources if r.attempt is None), None)
    if seen.outcome is not None:
        return _clean_up(seen) or Action(seen.outcome.result, seen.outcome.why)
    if taken:
        return Action("give_up", f"its name is taken in {taken.zone} by a queued resource that is not of t5x_lite")
    if seen.claim is None or seen.claim.zone not in seen.zones:
        return Action("claim", "the first attempt", claim=Claim(seen.zones[0], seen.last_attempt + 1))
    current = next((r for r in seen.resources if _is(r, seen.claim)), None)
    if other := next((r for r in seen.resources if r is not current and r.state != "DELETING"), None):
        return _delete(other)
    if current is None:
        what = f"attempt {seen.claim.attempt} in {seen.claim.zone}"
        return _clean_up(seen) or Action("create", what, seen.claim.zone)
    return _of_current(seen, current)


def _is(resource: Resource, claim: Claim) -> bool:
    return (resource.zone, resource.attempt) == (claim.zone, claim.attempt)


def _delete(resource: Resource) -> Action:
    return Action("delete", f"attempt {resource.attempt} in {resource.zone} is over", resource.zone, resource=resource)


def _is_saving(seen: Seen, resource: Resource) -> bool:
    """Whether the machines of a job that was ended from outside are at work to save and to end themselves."""
    ended = seen.outcome is not None and seen.outcome.result != "done" and seen.now < seen.outcome.at + SAVING
    return ended and resource.state == "ACTIVE" and seen.now - max(seen.beats, default=0) < _ALIVE


def _clean_up(seen: Seen) -> Action | None:
    """The next step until nothing of ours is left; None when that is so."""
    ours = [r for r in seen.resources if r.attempt is not None]
    if live := next((r for r in ours if r.state != "DELETING"), None):
        if _is_saving(seen, live):
            return Action(
                "wait", f"{live.zone}: the job is {seen.outcome.result}; its machines save and end themselves"
            )
        return _delete(live)
    if ours:
        return Action("wait", f"{ours[0].zone}: DELETING")
    if node := next((n for n in seen.nodes if n.state != "DELETING"), None):
        return Action("delete_node", f"{node.name} in {node.zone} has no queued resource", node.zone, node=node.name)
    if seen.nodes:
        return Action("wait", f"{seen.nodes[0].name}: DELETING")
    return None


def _of_current(seen: Seen, current: Resource) -> Action:
    """The next step of the attempt that is claimed."""
    where = f"{current.zone}: {current.state}"
    if current.state == "SUSPENDED":
        return _again(seen, f"{where}, as spot capacity that is taken away")
    if current.state == "FAILED":
        return _of_failed(seen, current)
    if current.state != "ACTIVE":
        known = current.state in (*_COMING, "SUSPENDING", "DELETING", "STATE_UNSPECIFIED")
        return Action("wait", where if known else f"{where}, a state that is not known here", current.zone)
    nodes = [n for n in seen.nodes if n.zone == current.zone]
    if lost := next((n for n in nodes if n.state in _LOST), None):
        return _again(seen, f"{lost.name} is {lost.state}")
    if len(nodes) < seen.slices:
        return _again(seen, f"{where}, with {len(nodes)} of {seen.slices} TPU VMs")
    # Where nobody says when it began, it is not judged by the time since.
    began = max(current.created, *(n.created for n in nodes)) or seen.now
    quiet = seen.now - max(began, min(seen.beats, default=0))
    heard = sum(b > began for b in seen.beats)
    if quiet <= STALE:
        return Action("wait", f"{where}, {heard} of {len(seen.beats)} workers reporting", current.zone)
    if heard == len(seen.beats) > 0:
        return _again(seen, f"a worker has not reported for {quiet / 60:.0f} minutes")
    return _fruitless(
        seen,
        f"{heard} of {len(seen.beats)} workers have reported in {quiet / 60:.0f} minutes: the service account of the "
        "VMs may lack the role roles/storage.objectAdmin of the bucket, or the VMs have no way to it",
        current.zone,
    )


def _of_failed(seen: Seen, current: Resource) -> Action:
    kind = gcloud.kind_of(current.error) if current.error else "unknown"
    why = f"{current.zone}: FAILED ({kind}): {current.error or 'no reason is given'}"
    if kind in _HOPELESS:
        return Action("give_up", why)
    zone = next_zone(seen.zones, current.zone)
    if kind == "quota":
        return refused(seen, why, zone)
    return _again(seen, why, zone) if kind == "stockout" else _fruitless(seen, why, zone)


def refused(seen: Seen, why: str, zone: str) -> Action:
    """The next step where a zone grants no quota: each of the others is asked once."""
    count = seen.claim.fruitless + 1
    return _again(seen, why, zone, count) if count < len(seen.zones) else Action("give_up", why)


def next_zone(zones: tuple[str, ...], zone: str) -> str:
    """The zone that is tried after this one, in a circle."""
    return zones[(zones.index(zone) + 1) % len(zones)] if zone in zones else zones[0]


def _again(seen: Seen, why: str, zone: str | None = None, fruitless: int = 0) -> Action:
    return Action("claim", why, claim=Claim(zone or seen.claim.zone, seen.last_attempt + 1, fruitless))


def _fruitless(seen: Seen, why: str, zone: str) -> Action:
    count = seen.claim.fruitless + 1
    if count >= FRUITLESS:
        return Action("give_up", f"{count} attempts in a row came to nothing; the last: {why}")
    return _again(seen, why, zone, count)
