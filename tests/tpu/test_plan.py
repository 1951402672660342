"""The next step: every state has an answer, and no step breaks what the job relies on."""

import dataclasses
import itertools
import random

import pytest

from t5x_lite.tpu.plan import (
    ENDS,
    FRUITLESS,
    OUTCOMES,
    SAVING,
    STALE,
    Action,
    Claim,
    Node,
    Outcome,
    Resource,
    Seen,
    next_action,
    next_zone,
)

# google.cloud.tpu_v2.types.QueuedResourceState.State, and what it may say one day.
STATES = [
    "STATE_UNSPECIFIED", "CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "SUSPENDING",
    "SUSPENDED", "FAILED", "DELETING", "HIBERNATING", "",
]  # fmt: skip
NODE_STATES = [
    "STATE_UNSPECIFIED", "CREATING", "READY", "RESTARTING", "REIMAGING", "DELETING", "REPAIRING", "STOPPED", "STOPPING",
    "STARTING", "PREEMPTED", "TERMINATED", "HIDING", "HIDDEN", "UNHIDING", "UNKNOWN", "NEW",
]  # fmt: skip
NOW = 1_800_000_000.0
ZONES = ("us-west4-a", "us-central1-a")


CLAIM = Claim(ZONES[0], 3)


def seen(state=None, error="", node="READY", beat=NOW, claim=CLAIM, **changed):
    """A job in its third attempt, whose queued resource is in that state."""
    resources = () if state is None else (Resource(ZONES[0], state, 3, NOW - 9000, error),)
    nodes = () if state != "ACTIVE" or node is None else (Node(ZONES[0], "small", node, NOW - 8000),)
    return dataclasses.replace(
        Seen(NOW, ZONES, 1, None, None, claim, 3, resources, nodes, (beat, beat)), **changed
    )  # fmt: skip


@pytest.mark.parametrize("state, kind, zone", [
    (None, "create", None),
    *((state, "wait", None) for state in STATES if state not in ("FAILED", "SUSPENDED")),
    ("SUSPENDED", "claim", ZONES[0]),
    ("FAILED", "claim", ZONES[1]),
])  # fmt: skip
def test_of_each_state(state, kind, zone):
    action = next_action(seen(state))
    assert action.kind == kind
    if zone:
        assert (action.claim.zone, action.claim.attempt) == (zone, 4)


@pytest.mark.parametrize("state", NODE_STATES)
def test_of_each_state_of_a_tpu_vm(state):
    lost = state in ("PREEMPTED", "TERMINATED", "STOPPED", "STOPPING", "DELETING", "HIDDEN", "HIDING", "UNKNOWN")
    action = next_action(seen("ACTIVE", node=state))
    assert action.kind == ("claim" if lost else "wait")


def test_preempted_without_saying_so():
    assert next_action(seen("ACTIVE", node=None)).claim == Claim(ZONES[0], 4)
    quiet = next_action(seen("ACTIVE", beat=NOW - STALE - 61))
    assert quiet.claim == Claim(ZONES[0], 4) and "has not reported for 21 minutes" in quiet.why
    assert next_action(seen("ACTIVE", beat=NOW - STALE + 1)).kind == "wait"
    # One of two workers is enough.
    assert next_action(seen("ACTIVE", beats=(NOW, NOW - 7000.0))).kind == "claim"
    # A VM has time to boot and install.
    young = (Node(ZONES[0], "small", "READY", NOW - 60),)
    assert next_action(seen("ACTIVE", beat=0, nodes=young)).kind == "wait"


def test_attempts_that_come_to_nothing_end():
    claim, kinds = Claim(ZONES[0], 3), []
    while not kinds or kinds[-1] == "claim":
        action = next_action(seen("ACTIVE", beat=0, claim=claim))
        kinds.append(action.kind)
        claim = dataclasses.replace(action.claim or claim, attempt=3)
    assert kinds == ["claim"] * (FRUITLESS - 1) + ["give_up"] and "storage.objectAdmin" in action.why


@pytest.mark.parametrize("error, kind", [
    ("There is no more capacity in the zone \"us-west4-a\"", "claim"),
    ("Insufficient capacity. [EID: 0x1]", "claim"),
    ("PERMISSION_DENIED: the caller does not have permission", "give_up"),
    ("INVALID_ARGUMENT: no such runtime version", "give_up"),
])  # fmt: skip
def test_of_each_reason_to_fail(error, kind):
    action = next_action(seen("FAILED", error))
    assert action.kind == kind
    assert error in action.why


def test_quota_is_asked_for_once_in_each_zone():
    error = "Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerRegionForTPUAPI' has been exceeded. Limit: 0"
    assert next_action(seen("FAILED", error)).claim == Claim(ZONES[1], 4, fruitless=1)
    for of_last in (
        seen("FAILED", error, claim=Claim(ZONES[0], 3, fruitless=1)), seen("FAILED", error, zones=ZONES[:1])
    ):  # fmt: skip
        assert next_action(of_last).kind == "give_up" and error in next_action(of_last).why


def test_a_worker_that_never_reports_is_no_preemption():
    """Making new machines for it for ever would cost for ever."""
    action = next_action(seen("ACTIVE", beats=(NOW, 0.0)))
    assert action.claim == Claim(ZONES[0], 4, fruitless=1) and "1 of 2 workers have reported" in action.why
    assert next_action(seen("ACTIVE", beats=(NOW, 0.0), claim=Claim(ZONES[0], 3, FRUITLESS - 1))).kind == "give_up"


@pytest.mark.parametrize("changed, kind", [
    ({"outcome": Outcome("stopped", at=NOW - 60)}, "wait"),
    ({"outcome": Outcome("failed", at=NOW - 60)}, "wait"),
    ({"outcome": Outcome("stopped", at=NOW - SAVING)}, "delete"),
    ({"outcome": Outcome("stopped", at=NOW - 60), "beat": NOW - 300}, "delete"),
    ({"outcome": Outcome("stopped", at=NOW - 60), "state": "WAITING_FOR_RESOURCES"}, "delete"),
    ({"outcome": Outcome("done", at=NOW - 60)}, "delete"),
])  # fmt: skip
def test_a_job_that_is_ended_from_outside_has_time_to_save(changed, kind):
    assert next_action(seen(**{"state": "ACTIVE"} | changed)).kind == kind


def test_what_a_later_launch_made_is_none_of_an_earlier_one():
    for outcome in (None, Outcome("done"), Outcome("stopped")):
        assert next_action(seen("ACTIVE", outcome=outcome, relaunched=True)).kind == "relaunched"


def test_only_what_is_claimed_lives_and_only_ours_is_touched():
    old = Resource(ZONES[1], "ACTIVE", 2, NOW - 9999)
    both = seen("ACTIVE").resources + (old,)
    assert next_action(seen("ACTIVE", resources=both)) == Action(
        "delete", f"attempt 2 in {ZONES[1]} is over", ZONES[1], resource=old
    )
    # Nothing is created beside what is still going.
    going = (dataclasses.replace(old, state="DELETING"),)
    assert next_action(seen(resources=going)).kind == "wait"
    alone = (Node(ZONES[0], "small", "READY", NOW),)
    assert next_action(seen(nodes=alone)) == Action(
        "delete_node", f"small in {ZONES[0]} has no queued resource", ZONES[0], node="small"
    )
    foreign = (Resource(ZONES[0], "FAILED", None, NOW),)
    assert next_action(seen(resources=foreign)).kind == "give_up"
    assert next_action(seen(resources=foreign, outcome=Outcome("failed"))).kind == "failed"


@pytest.mark.parametrize("result", OUTCOMES)
@pytest.mark.parametrize("state", STATES)
def test_an_end_cleans_up(result, state):
    action = next_action(seen(state, outcome=Outcome(result, "so"), claim=None))
    assert action.kind == ("wait" if state == "DELETING" else "delete")
    assert next_action(seen(outcome=Outcome(result, "so"))) == Action(result, "so")


def test_hours_end():
    assert next_action(seen("WAITING_FOR_RESOURCES", deadline=NOW)).kind == "give_up"
    assert next_action(seen("WAITING_FOR_RESOURCES", deadline=NOW + 1)).kind == "wait"
    assert next_action(seen("ACTIVE", deadline=NOW, outcome=Outcome("done"))).kind == "delete"


def test_zones_go_round():
    assert [next_zone(ZONES, zone) for zone in (*ZONES, "elsewhere")] == [ZONES[1], ZONES[0], ZONES[0]]


def test_total_over_everything_that_can_be_seen():
    """Whatever is seen, the step is a known one, and creates only where nothing of the job is left."""
    rng = random.Random(0)
    choices = list(itertools.product(STATES, [None, 1, 3], ZONES))
    for _ in range(4000):
        resources = tuple(
            Resource(zone, state, attempt, NOW - rng.choice([0, 1e4]), rng.choice(["", "quota", "no more capacity"]))
            for state, attempt, zone in rng.sample(choices, rng.randint(0, 3))
        )
        states = rng.choices(NODE_STATES, k=rng.randint(0, 2))
        nodes = tuple(Node(rng.choice(ZONES), "small", state, NOW - 99) for state in states)
        found = Seen(
            NOW, ZONES, rng.choice([1, 2]), rng.choice([None, None, Outcome("done")]),
            rng.choice([None, NOW + 1, NOW - 1]), rng.choice([None, Claim(ZONES[0], 3), Claim("gone", 3, 2)]), 3,
            resources, nodes, tuple(rng.choice([0.0, NOW, NOW - 9e3]) for _ in range(rng.randint(0, 3))),
        )  # fmt: skip
        action = next_action(found)
        assert action.kind in ("claim", "create", "delete", "delete_node", "give_up", "wait", *ENDS)
        if action.kind == "create":
            assert not found.resources and not found.nodes and found.outcome is None
        if action.kind == "delete":
            assert any(r.zone == action.zone and r.attempt is not None for r in found.resources)
        if action.kind == "claim":
            assert action.claim.attempt == 4
        if action.kind in ENDS:
            assert found.outcome and all(r.attempt is None for r in found.resources) and not found.nodes
