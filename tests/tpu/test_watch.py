"""Watching a job to its end on a Cloud TPU that does everything that one does."""

import dataclasses
import json
import random

import pytest

from t5x_lite.errors import RunError, UserError
from t5x_lite.tpu import gcloud, record, request
from t5x_lite.tpu.gcloud import GcloudError
from t5x_lite.tpu.launch import start
from t5x_lite.tpu.plan import ENDS, SAVING, Claim, Outcome, next_action
from t5x_lite.tpu.watch import Launched, act, ended, look, read_job, watch, write_outcome


def nothing_left(cloud):
    return not cloud.state["resources"] and not cloud.state["nodes"] and cloud.state["most_live"] <= 1


def kinds(cloud):
    """What the job's commands were, without those that only look."""
    words = [call[3] if call[0] == "compute" else call[1] for call in cloud.state["calls"]]
    return [word for word in words if word in ("create", "delete")]


def zones(cloud):
    return [
        word.removeprefix("--zone=")
        for call in cloud.state["calls"] if call[3:4] == ["create"]
        for word in call if word.startswith("--zone=")
    ]  # fmt: skip


WAITED = ["ACCEPTED", *["WAITING_FOR_RESOURCES"] * 300, "PROVISIONING", "ACTIVE*", "ACTIVE!done"]
STOCKOUT = 'FAILED=There is no more capacity in the zone "us-west4-a"'
RUNS = ["ACTIVE*", "ACTIVE*", "ACTIVE!done"]

# One list of states for each creation in turn; how often machines are then asked for.
SCENARIOS = {
    "waits for hours": ([WAITED], 1),
    "preempted while it runs": ([["ACTIVE*", "SUSPENDING", "SUSPENDED"], RUNS], 2),
    "preempted while it is provisioned": ([["PROVISIONING", "SUSPENDED"], RUNS], 2),
    "preempted while it waits": ([["WAITING_FOR_RESOURCES", "SUSPENDED"], RUNS], 2),
    "preempted at once": ([["SUSPENDED"], ["SUSPENDING", "SUSPENDED"], RUNS], 3),
    "the VM says PREEMPTED, the request ACTIVE": ([["ACTIVE*", "ACTIVE/PREEMPTED"], RUNS], 2),
    "the VM is gone, the request ACTIVE": ([["ACTIVE*", "ACTIVE/"], RUNS], 2),
    "PREEMPTED is never shown": ([["ACTIVE*", "ACTIVE"], RUNS], 2),
    "somebody deletes it": ([["ACTIVE*", "DELETING", "DELETING", "GONE"], RUNS], 2),
    "no capacity": ([[STOCKOUT], [STOCKOUT], RUNS], 3),
    "waited too long": ([["WAITING_FOR_RESOURCES", "FAILED=the valid until time has expired"], RUNS], 2),
    "it fails without a reason": ([["FAILED"], RUNS], 2),
    "a state that nobody knows": ([["HIBERNATING", "STATE_UNSPECIFIED", *RUNS]], 1),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_it_ends_and_nothing_is_left(name, cloud, launched):
    cloud.state["futures"], created = SCENARIOS[name]
    said = []
    job = launched()
    assert watch(job, said.append).kind == "done", said
    assert cloud.state["created"] == created, said
    assert nothing_left(cloud)
    # Whatever held quota was deleted before anything was created.
    assert kinds(cloud) == ["create", "delete"] * created or name == "somebody deletes it"
    # Looking again changes nothing.
    calls = len(kinds(cloud))
    assert watch(job, said.append).kind == "done" and len(kinds(cloud)) == calls


def test_zones_are_tried_in_turn(cloud, launched):
    cloud.state["futures"] = [[STOCKOUT], ["WAITING_FOR_RESOURCES", "FAILED=expired"], [STOCKOUT], RUNS]
    assert watch(launched(zone="us-west4-a,us-west1-c"), lambda text: None).kind == "done"
    assert zones(cloud) == ["us-west4-a", "us-west1-c", "us-west4-a", "us-west1-c"]
    assert nothing_left(cloud)
    [create, *_] = [call for call in cloud.state["calls"] if call[3:4] == ["create"]]
    assert "--valid-until-duration=3600s" in create


def test_no_capacity_already_at_creation(cloud, launched):
    full = {"match": "create .*us-west4-a", "times": 2, "stderr": "ERROR: Insufficient capacity. [EID: 0x7]"}
    cloud.state["faults"], cloud.state["futures"] = [full], [RUNS]
    said = []
    assert watch(launched(zone="us-west4-a,us-west1-c"), said.append).kind == "done"
    assert zones(cloud) == ["us-west4-a", "us-west1-c"]
    assert any("us-west4-a has no capacity, next is us-west1-c" in line for line in said)


def test_preempted_spot_capacity_is_asked_for_where_it_was(cloud, launched):
    cloud.state["futures"] = [["ACTIVE*", "SUSPENDED"], RUNS]
    watch(launched(zone="us-west4-a,us-west1-c", spot=True), lambda text: None)
    assert zones(cloud) == ["us-west4-a", "us-west4-a"]


def test_several_slices_live_and_die_together(cloud, launched):
    cloud.state["futures"] = [["ACTIVE*", "ACTIVE/PREEMPTED"], RUNS]
    assert watch(launched(num_slices=3), lambda text: None).kind == "done"
    [create, *_] = [call for call in cloud.state["calls"] if call[3:4] == ["create"]]
    assert {"--node-count=3", "--node-prefix=small"} <= set(create)
    assert nothing_left(cloud)


@pytest.mark.parametrize("error, words", [
    ("ERROR: Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerRegionForTPUAPI' has been exceeded. Limit: 0 in region",
     ["TPUV5sPreemptibleLitepodPerProjectPerRegionForTPUAPI", "tpu gc", "iam-admin/quotas"]),
    ("ERROR: PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", ["tpu.nodes.create", "roles/tpu.admin"]),
    ("ERROR: You do not currently have an active account selected.", ["gcloud auth login"]),
    ("ERROR: PERMISSION_DENIED: Permission denied on 'locations/us-west4-z' (or it may not exist).",
     ["Correct --zone"]),
    ("ERROR: FAILED_PRECONDITION: Billing must be enabled for activation of service.",
     ["console.cloud.google.com/billing"]),
    ("ERROR: Cloud TPU API has not been used in project 1 before or it is disabled.", ["gcloud services enable"]),
])  # fmt: skip
def test_what_does_not_go_away_is_said_with_its_remedy(error, words, cloud, launched):
    cloud.state["faults"] = [{"match": "queued-resources create", "times": 99, "stderr": error}]
    with pytest.raises(RunError) as raised:
        watch(launched(), lambda text: None)
    assert all(word in str(raised.value) for word in words)
    assert nothing_left(cloud)


def test_quota_that_is_given_back_late(cloud, launched):
    quota = {"match": "queued-resources create", "times": 5, "stderr": "ERROR: Quota limit 'X' has been exceeded."}
    cloud.state["faults"], cloud.state["futures"] = [quota], [RUNS]
    assert watch(launched(), lambda text: None).kind == "done"


@pytest.mark.parametrize("fault", [
    {"status": -9, "after": True},
    {"status": -9},
    {"status": 0, "stdout": "{not json"},
    {"status": 0, "stdout": ""},
    {"status": 0, "stdout": "[1, 2"},
    {"stderr": "ERROR: RATE_LIMIT_EXCEEDED: Quota exceeded for quota metric 'requests' per minute"},
    {"stderr": "ERROR: 503 The service is currently unavailable."},
    {"stderr": "ERROR: gcloud crashed (ConnectionError): Connection aborted"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("command", ["create", "delete", "describe", "tpu-vm list", "objects list", "cp", "cat"])
def test_commands_that_are_killed_or_answer_nonsense(command, fault, cloud, launched):
    """Once in a while, and for a quarter of an hour."""
    job = launched()
    if command in ("create", "delete", "cp") and "stdout" in fault:
        return  # nothing of their answers is read
    cloud.state["faults"] = [{"match": command, "times": times} | fault for times in (1, 12)]
    cloud.state["futures"] = [["ACTIVE*", "SUSPENDED"], RUNS]
    said = []
    assert watch(job, said.append).kind == "done", said
    assert cloud.state["created"] == 2 and nothing_left(cloud)


def test_a_launch_waits_for_what_an_earlier_one_left(cloud, launched, clock):
    """Its machines are on their way out: the next ones are queued when they are gone, and not given up."""
    cloud.state["futures"], cloud.state["deleting_looks"] = [["ACTIVE*"], RUNS], 5
    first = launched()
    start(first, lambda text: None, 1)
    assert cloud.state["created"] == 1
    cloud.become("us-west4-a/small", "ACTIVE!done")
    assert cloud(request.delete_words("small", "us-west4-a", "my-project"))[0] == 0
    second = Launched(first.job, clock() + 1)
    start(second, lambda text: None, 1)
    assert cloud.state["created"] == 2 and cloud.state["most_live"] == 1
    start(second, lambda text: None, 1)
    assert cloud.state["created"] == 2


def relaunch(cloud, clock, job):
    """Another launch of that name, after this one has ended and is gone: in its own machines."""
    clock.now += 1000
    cloud.put(f"{job.job.url}/exit.json", json.dumps({"launched": job.launched, "result": "done"}).encode())
    assert watch(job, lambda text: None).kind == "done"
    later = Launched(job.job, clock())
    start(later, lambda text: None, 1)
    return later


def test_a_watcher_of_an_earlier_launch_leaves_the_later_one_alone(cloud, launched, clock):
    """A laptop wakes up, whose job has ended and was launched anew under its name."""
    cloud.state["futures"] = [["ACTIVE*"], ["ACTIVE*"]]
    job = launched()
    start(job, lambda text: None, 1)
    relaunch(cloud, clock, job)
    assert watch(job, lambda text: None).kind == "relaunched"
    assert cloud.state["resources"]["us-west4-a/small"]["state"]["state"] != "DELETING"
    assert cloud.state["created"] == 2


@pytest.mark.parametrize("read", ["all of it", "its records alone"])
def test_a_watcher_that_slept_since_it_looked_deletes_nothing(read, cloud, launched):
    """Meanwhile another one has made what bears the name now."""
    cloud.state["futures"] = [["ACTIVE*", "SUSPENDED"], ["ACTIVE*"]]
    job = launched()
    watch(job, lambda text: None, until=lambda action: action.kind == "claim" and action.claim.attempt == 2)
    found = look(job)
    action = next_action(found.seen)
    assert action.kind == "delete"
    if read == "its records alone":  # it fell asleep amid its look
        old = found
        found = dataclasses.replace(found, seen=dataclasses.replace(found.seen, claim=Claim("us-west4-a", 1)))
    watch(job, lambda text: None, until=lambda action: action.kind == "wait" and "4 of 4" in action.why)
    if read == "its records alone":
        cloud.put(f"{job.job.url}/claim.json", cloud.get(f"{job.job.url}/claim.json"))  # as moved after that
        resources = look(job).seen.resources
        found = dataclasses.replace(old, seen=dataclasses.replace(found.seen, resources=resources))
        action = next_action(found.seen)
        assert action.kind == "delete"
    assert "meanwhile" in act(job, found, action)
    assert cloud.state["resources"]["us-west4-a/small"]["state"]["state"] == "ACTIVE"


def test_what_comes_between_two_commands_of_a_look(cloud, launched, monkeypatch):
    """It becomes ACTIVE, with its TPU VMs, or another watcher creates it: neither is taken for a loss."""
    cloud.state["futures"] = [["PROVISIONING", "ACTIVE*"]]
    job = launched()
    watch(job, lambda text: None, until=lambda action: action.kind == "claim")
    create = request.create_words(job.job, "us-west4-a", 1, None, 0)

    def call(words, timeout):
        answer = cloud(words, timeout)
        if "describe" in words and answer[0] and not cloud.state["created"]:
            assert cloud(create)[0] == 0
            cloud.become("us-west4-a/small", "ACTIVE")
        return answer

    monkeypatch.setattr(gcloud, "call", call)
    found = look(job)
    assert act(job, found, next_action(found.seen)) == "it is there already"
    assert "delete" not in kinds(cloud)
    cloud.state["nodes"].clear()
    cloud.state["resources"]["us-west4-a/small"]["future"] = ["ACTIVE*"]
    assert next_action(look(job).seen).kind == "wait"


@pytest.mark.parametrize("ahead", [-7200, 7200])
def test_a_watcher_whose_clock_is_wrong(ahead, cloud, launched, clock):
    """The times of all records are of the bucket's clock, and so is what time it is."""
    cloud.clock = lambda: clock.now - ahead
    cloud.state["futures"] = [[*["ACTIVE*"] * 30, "ACTIVE!done"]]
    job = Launched(launched(max_hours=1).job, cloud.clock())
    cloud.put(f"{job.job.url}/job.json", json.dumps(job.job.as_json() | {"launched": job.launched}).encode())
    assert watch(job, lambda text: None).kind == "done"
    assert cloud.state["created"] == 1


def test_a_stopped_job_has_time_to_save_and_ends_itself(cloud, launched, clock):
    cloud.state["futures"] = [["ACTIVE*", *["ACTIVE*"] * 4, "GONE"]]
    job = launched()
    watch(job, lambda text: None, until=lambda action: action.kind == "wait")
    found = look(job)
    assert write_outcome(job, found, Outcome("stopped"))
    assert watch(job, lambda text: None).kind == "stopped"
    assert kinds(cloud) == ["create"] and nothing_left(cloud)


def test_one_that_cannot_end_itself_is_ended(cloud, launched, clock):
    cloud.state["futures"] = [["ACTIVE*"]]
    job = launched()
    watch(job, lambda text: None, until=lambda action: action.kind == "wait")
    assert write_outcome(job, look(job), Outcome("stopped"))
    began = clock()
    assert watch(job, lambda text: None).kind == "stopped"
    assert SAVING <= clock() - began < SAVING + 300 and nothing_left(cloud)


def test_a_name_that_a_tpu_vm_of_others_bears(cloud, launched):
    cloud.state["nodes"]["us-west4-a/small"] = {"name": "x/nodes/small", "state": "READY"}
    with pytest.raises(RunError, match="Choose another --name"):
        watch(launched(), lambda text: None)
    assert list(cloud.state["nodes"]) == ["us-west4-a/small"]


def test_what_the_project_forbids_does_not_go_away(cloud, launched):
    said = "ERROR: FAILED_PRECONDITION: Constraint constraints/compute.vmExternalIpAccess violated for project 1"
    cloud.state["faults"] = [{"match": "queued-resources create", "times": 999, "stderr": said}]
    with pytest.raises(RunError, match="vmExternalIpAccess"):
        watch(launched(), lambda text: None)


def test_quota_in_one_zone_alone(cloud, launched):
    quota = {"match": "create .*us-west4-a", "times": 99, "stderr": "ERROR: Quota limit 'X' has been exceeded."}
    cloud.state["faults"], cloud.state["futures"] = [quota], [RUNS]
    said = []
    assert watch(launched(zone="us-west4-a,us-west1-c"), said.append).kind == "done"
    assert any("us-west4-a grants no quota, next is us-west1-c" in line for line in said)


def test_a_launch_that_is_refused_leaves_nothing(cloud, launched):
    """Not even where the request was made before its answer was an error that nobody knows."""
    cloud.state["faults"] = [{"match": "resources create", "times": 1, "stderr": "ERROR: ?", "status": 1, "after": 1}]
    job = launched()
    with pytest.raises(RunError):
        start(job, lambda text: None, 1)
    assert cloud.state["created"] == 1 and nothing_left(cloud)


def test_hours_end_a_job_that_waits_for_ever(cloud, launched, clock):
    cloud.state["futures"] = [["WAITING_FOR_RESOURCES"]]
    job = launched(max_hours=2)
    began = clock()
    action = watch(job, lambda text: None)
    assert action.kind == "failed" and "max_hours" in action.why
    assert 2 * 3600 <= clock() - began < 2 * 3600 + 600
    assert nothing_left(cloud)
    with pytest.raises(RunError, match="max_hours"):
        ended(action, job.job)


def test_a_name_that_is_taken_by_others(cloud, launched):
    job = launched()
    theirs = "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --node-id=small --labels=a=b"
    words = "gcloud compute tpus queued-resources create small --zone=us-west4-a --project=my-project"
    assert cloud([*words.split(), *theirs.split()])[0] == 0
    action = watch(job, lambda text: None)
    assert action.kind == "failed" and "is not of t5x_lite" in action.why
    assert list(cloud.state["resources"]) == ["us-west4-a/small"]


def test_a_job_is_read_back(cloud, launched):
    job = launched()
    assert read_job(job.job.url)[0] == job
    with pytest.raises(UserError, match="there is no job at"):
        read_job("gs://my-bucket/t5x_lite/other")
    cloud.put("gs://my-bucket/t5x_lite/other/job.json", cloud.get(f"{job.job.url}/job.json"))
    with pytest.raises(UserError, match="is of another job"):
        read_job("gs://my-bucket/t5x_lite/other")


def future(rng):
    """States of one queued resource, in an order that need make no sense; in the end it runs or goes."""
    states = [
        "CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE*", "ACTIVE", "ACTIVE/", "SUSPENDING",
        "ACTIVE/PREEMPTED", "ACTIVE/TERMINATED", "ACTIVE/REPAIRING", "HIBERNATING", "STATE_UNSPECIFIED", "DELETING",
    ]  # fmt: skip
    ends = ["SUSPENDED", STOCKOUT, "GONE", "FAILED", "FAILED=Internal error", "ACTIVE", "ACTIVE!done", "ACTIVE!failed"]
    return rng.choices(states, k=rng.randint(0, 6)) + [rng.choice(ends)]


def step(job, clock, rng):
    """One watcher's step, as a generator that stops between any two of its commands' groups."""
    found = look(job, clock())
    yield
    action = next_action(found.seen)
    if action.kind not in ENDS:
        act(job, found, action)
    yield action.kind


@pytest.mark.parametrize("seed", range(60))
def test_any_number_of_watchers_over_any_states(seed, cloud, launched, clock):
    """Whatever comes, and whoever dies between two commands: it ends, with at most one live resource, and none left."""
    rng = random.Random(seed)
    cloud.state["futures"] = [future(rng) for _ in range(40)]
    cloud.state["deleting_looks"] = rng.randint(0, 3)
    cloud.state["faults"] = [
        {"match": rng.choice(["create", "delete", "describe", "cp", "cat", "list"]), "times": 1, "status": -9,
         "after": rng.random() < 0.5}
        for _ in range(rng.randint(0, 6))
    ]  # fmt: skip
    job = launched(zone=rng.choice(["us-west4-a", "us-west4-a,us-west1-c,us-east1-c"]), max_hours=200)
    watchers: list = [None] * rng.randint(1, 3)
    over = False
    for _ in range(20000):
        k = rng.randrange(len(watchers))
        watchers[k] = watchers[k] or step(job, clock, rng)
        try:
            kind = next(watchers[k], "next")
        except GcloudError as error:
            assert error.kind in gcloud.TRANSIENT
            kind = "next"
        if kind is not None or rng.random() < 0.05:  # its step is over, or it dies
            watchers[k] = None
        clock.now += rng.choice([1, 60, 600])
        if kind in ENDS:
            over = True
            break
    assert over
    # Those that are still between two commands end their steps, and one more looks.
    for watcher in filter(None, watchers):
        list(watcher)
    assert watch(job, lambda text: None).kind in ENDS
    assert nothing_left(cloud)


@pytest.mark.parametrize("text, seconds", [
    ("2027-01-15T08:00:00Z", 1_800_000_000.0),
    ("2027-01-15T08:00:00.5Z", 1_800_000_000.5),
    ("2027-01-15T08:00:00.123456789Z", 1_800_000_000.123456),
    ("2027-01-15T08:00:00+0000", 1_800_000_000.0),
    ("2027-01-15T08:00:00.25+00:00", 1_800_000_000.25),
    ("soon", 0.0),
    (None, 0.0),
])  # fmt: skip
def test_times_as_google_writes_them(text, seconds):
    assert record.seconds(text) == seconds
