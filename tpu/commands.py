"""The actions of `t5x_lite tpu`, a function each, from the values of their flags to what they print."""

import dataclasses
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from t5x_lite.errors import RunError, UserError
from t5x_lite.tpu import gc, gcloud, hardware, launch, record, request, spec, status
from t5x_lite.tpu.gcloud import GcloudError
from t5x_lite.tpu.plan import Outcome
from t5x_lite.tpu.spec import JobSpec
from t5x_lite.tpu.watch import Launched, ended, look, read_job, watch, write_outcome


def run(args, make: Callable[..., JobSpec]) -> None:
    """Does what a command line asks for.

    Args:
      args: the flags; `behind`: the words behind --.
      make: fields of a job -> the job, with what the gin files of the command line bind.

    Raises:
      UserError, RunError: it is refused, or fails.
    """
    if args.behind and args.action not in ("launch", "run", "ssh"):
        raise UserError(f"tpu {args.action} is given a command", "it runs none", "leave out -- and what follows it")
    try:
        if args.action in ("launch", "run"):
            _ACTIONS[args.action](args, make)
        else:
            _ACTIONS[args.action](args)
    except GcloudError as error:
        raise error.as_run_error("what has been done so far is as t5x_lite tpu status says") from error


def say(text: str) -> None:
    """A line of what happens."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _job(args, make: Callable[..., JobSpec], **known) -> JobSpec:
    """The job, with the flags in place of what a gin file binds."""
    names = (field.name for field in dataclasses.fields(JobSpec) if field.name != "command")
    given = {name: value for name in names if (value := getattr(args, name, None))} | known
    if args.behind:
        given["command"] = tuple(args.behind)
    return make(**given)


def _launch(args, make: Callable[..., JobSpec]) -> None:
    job = _job(args, make)
    if not args.publish_only:
        spec.check_queued(job)
    prepared = launch.prepare(job, Path.cwd(), say)
    if args.dry_run:
        gcloud.call = launch.Rehearsal()
    launched = launch.publish(prepared, "others" if args.publish_only else None)
    if args.publish_only:
        record.upload(str(request.STARTUP), f"{job.url}/startup.py")
        say(f"every host is to run: python3 startup.py {job.url}")
        return
    where = f"--name={job.name} --bucket={job.bucket}"
    try:
        launch.start(launched, (lambda text: None) if args.dry_run else say, args.poll_seconds)
    except KeyboardInterrupt:
        say(f"it may be queued by now: see t5x_lite tpu status {where}, or end it: t5x_lite tpu stop {where}")
        raise
    if args.dry_run:
        return
    if args.watch:
        _watched(launched, args)
        return
    print(
        f"{job.name} is launched. "
        f"{f'Its model will be in {prepared.model_dir}' if prepared.model_dir else f'Its records are in {job.url}'}\n"
        f"t5x_lite tpu watch {where}    until it is done; after a preemption this makes new machines\n"
        f"t5x_lite tpu status {where}\nt5x_lite tpu logs {where} --follow\nt5x_lite tpu stop {where}"
    )


def _run(args, make: Callable[..., JobSpec]) -> None:
    spec.check_tpu(args.tpu)
    spec.check_project(args.project)
    [zone] = spec.check_zones(args.zone)[:1]
    if args.dry_run:
        if not args.accelerator:
            raise UserError(
                "--accelerator is not given", "a dry run does not ask what the TPU is", "give it, as --accelerator=T"
            )
        gcloud.call = launch.Rehearsal()
    known = {} if args.dry_run else {"accelerator": _accelerator_of(args.tpu, zone, args.project)}
    job = _job(args, make, **known)
    if args.accelerator and job.slice != hardware.parse(args.accelerator, "--accelerator"):
        raise UserError(
            f"--accelerator={args.accelerator} is given",
            f"the TPU VM {args.tpu} is {job.accelerator}",
            "correct it or leave it out",
        )
    prepared = launch.prepare(job, Path.cwd(), say)
    launched = launch.publish(prepared, args.tpu)
    for words in launch.run_on(prepared, launched, args.tpu, zone):
        try:
            gcloud.run(words, timeout=1800, tries=1)
        except GcloudError as error:
            raise RunError(
                f"the job was not started on all workers of {args.tpu}: {error.said}",
                "workers that it was started on go on, and start nothing twice",
                "run the same command again; or t5x_lite tpu stop",
            ) from error
    if not args.dry_run:
        print(f"{job.name} runs on {args.tpu}. t5x_lite tpu logs --name={job.name} --bucket={job.bucket} --follow")


def _accelerator_of(tpu: str, zone: str, project: str) -> str:
    words = ["gcloud", "compute", "tpus", "tpu-vm", "describe", tpu, f"--zone={zone}", f"--project={project}"]
    try:
        found = gcloud.read_json(words, dict)
    except GcloudError as error:
        if error.kind != "notfound":
            raise
        raise UserError(
            f"--tpu={tpu} is not there",
            f"{zone} of {project} has no TPU VM of that name",
            f"see gcloud compute tpus tpu-vm list --zone={zone} --project={project}",
        ) from error
    if found.get("state", "READY") != "READY":
        raise UserError(
            f"--tpu={tpu} is {found['state']}", "it runs nothing so", "wait until it is READY, or name another"
        )
    return str(found.get("acceleratorType") or "")


def _of(args) -> tuple[Launched, dict]:
    spec.check_name(args.name)
    spec.check_bucket(args.bucket)
    return read_job(spec.url(args.bucket, args.name))


def _watch(args) -> None:
    launched, values = _of(args)
    if values.get("tpu"):
        raise UserError(
            f"{args.name} runs on machines of yours", "watch makes and ends queued resources", "see t5x_lite tpu status"
        )
    _watched(launched, args)


def _watched(launched: Launched, args) -> None:
    try:
        while (action := watch(launched, say, args.poll_seconds)).kind == "relaunched":
            launched, _ = read_job(launched.job.url)
        ended(action, launched.job)
    except KeyboardInterrupt:
        say("the job goes on without being watched; the same command watches it again")
        raise


def _status(args) -> None:
    launched, values = _of(args)
    for line in status.lines(launched, values.get("tpu"), time.time()):
        print(line)


def _logs(args) -> None:
    launched, _ = _of(args)
    worker = args.worker or launched.job.workers[0]
    if worker not in launched.job.workers:
        raise UserError(
            f"--worker={worker} is no worker of {args.name}",
            f"they are called SLICE-WORKER, from {launched.job.workers[0]} to {launched.job.workers[-1]}",
            "correct --worker",
        )
    shown: set[str] = set()
    while True:
        over = record.read(f"{launched.job.url}/exit.json") if args.follow else None
        parts = [part for part in status.log_parts(launched, worker) if part not in shown]
        for part in parts:
            sys.stdout.write(record.text_of([part]))
            sys.stdout.flush()
        shown.update(parts)
        if not args.follow or (over and over.get("launched") == launched.launched and not parts):
            break
        time.sleep(args.poll_seconds)
    if not shown:
        say(f"worker {worker} has printed nothing yet")


def _ssh(args) -> None:
    launched, values = _of(args)
    job = launched.job
    seen = look(launched, time.time()).seen
    node, zone = values.get("tpu"), job.zones[0]
    if node == "others":
        raise UserError(f"{job.name} was published only", "its machines are not known here", "ask what runs it")
    if not node:
        if seen.claim is None:
            raise RunError(f"{job.name} has no machines", "nothing was done", "see t5x_lite tpu status")
        zone = seen.claim.zone
        slices = range(job.num_slices)
        if args.slice not in slices:
            raise UserError(f"--slice={args.slice} is none", f"there are {job.num_slices}", "correct --slice")
        node = job.nodes[args.slice]
    if args.worker != "all" and not args.worker.isdecimal():
        raise UserError(f"--worker={args.worker} is none", "it is a number, or all", "correct --worker")
    # One word is a shell's line, as in -- 'cd /tmp && ls'; several are a program and its arguments.
    command = None if not args.behind else args.behind[0] if len(args.behind) == 1 else shlex.join(args.behind)
    words = request.ssh_words(node, zone, job.project, args.worker, command)
    if args.dry_run:
        print(gcloud.shown(words))
        return
    if code := subprocess.run(words, check=False).returncode:
        raise RunError(f"ssh to {node} ended with {code}", "the job goes on", "see what it printed")


def _stop(args) -> None:
    launched, values = _of(args)
    found = look(launched, time.time())
    if found.seen.outcome is None:
        write_outcome(launched, found, Outcome("stopped", "t5x_lite tpu stop"))
    if values.get("tpu"):
        say(f"{args.name} saves and stops within a minute; its machines are yours and stay")
        return
    action = watch(launched, say, args.poll_seconds)
    say(f"{args.name} is {action.kind}" + ("; nothing of it is left" if action.kind != "relaunched" else ""))


def _list(args) -> None:
    spec.check_project(args.project)
    rows = [("JOB", "ZONE", "STATE", "ACCELERATOR", "FOLDER"), *status.rows(spec.check_zones(args.zone), args.project)]
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _gc(args) -> None:
    spec.check_project(args.project)
    found = list(gc.find(spec.check_zones(args.zone), args.project, args.all))
    for one in found:
        print(f"{one.what} {one.name} in {one.zone}: {one.state}, {one.why or 'in use'}")
    going = [one for one in found if one.why]
    if not going:
        print("there is nothing to delete")
        return
    if args.dry_run:
        for one in going:
            words = request.delete_words if one.what == "queued-resources" else request.delete_node_words
            print(gcloud.shown(words(one.name, one.zone, args.project)))
        return
    if not args.yes:
        if not sys.stdin.isatty():
            raise UserError("there is nobody to ask", "stdin is no terminal", "give --yes to delete without asking")
        if input(f"Delete {len(going)} of them? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing is deleted")
            return
    for one in going:
        done = gc.delete(one, args.project)
        print(f"{one.name} in {one.zone} {'is being deleted' if done else 'has changed meanwhile and is left'}")


_ACTIONS = {
    "launch": _launch, "run": _run, "watch": _watch, "status": _status, "logs": _logs, "ssh": _ssh, "stop": _stop,
    "list": _list, "gc": _gc,
}  # fmt: skip
