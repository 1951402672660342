"""The flags of `t5x_lite tpu`. What they hold is checked in tpu/spec.py, as what a gin file binds is."""

import argparse
from collections.abc import Callable

# Of launch and run, to the fields of tpu.spec.JobSpec: metavariable and help.
_JOB = {
    "--name": ("N", "of the job: at most 40 of a-z, 0-9 and -"),
    "--project": ("P", "Google Cloud project"),
    "--bucket": ("gs://B", "a bucket, or a folder in it, for code, logs and the model"),
    "--accelerator": ("T", "a slice: v5litepod-16 or v5e:4x4"),
    "--max_hours": ("H", "after the launch, waiting included; then all ends"),
    "--python": ("P", "an interpreter of the VM that has all packages; default: the locked ones are installed"),
}
_QUEUED = {
    "--num_slices": ("K", "joined by the data centre's network; default: 1"),
    "--wait_hours": ("H", "in the queue of a zone, before the next is tried; default: 1 of several zones"),
    "--service_account": ("A", "of the VMs; default: Compute Engine's"),
    "--network": ("N", "of the VMs"),
    "--subnetwork": ("N", "of the VMs"),
}


def add(actions, verb: Callable[..., argparse.ArgumentParser], seconds: Callable[[str], float]) -> None:
    """Adds the actions of the verb.

    Args:
      actions: the subparsers of `tpu`.
      verb: makes the parser of one.
      seconds: the type of a number of seconds.
    """

    def action(name: str, summary: str, **options) -> argparse.ArgumentParser:
        parser = verb(actions, name, "tpu", summary, **options)
        parser.set_defaults(action=name, behind=(), gin_file=getattr(parser.get_default("gin_file"), "copy", list)())
        return parser

    def of_job(name: str, summary: str) -> argparse.ArgumentParser:
        parser = action(name, summary)
        parser.add_argument("--name", required=True, metavar="N", help="of the job")
        parser.add_argument("--bucket", required=True, metavar="gs://B", help="that it was launched with")
        return parser

    def polling(parser: argparse.ArgumentParser, default: float) -> None:
        parser.add_argument(
            "--poll_seconds", type=seconds, default=default, metavar="S", help=f"between looks; default: {default:g}"
        )

    def of_zones(name: str, summary: str) -> argparse.ArgumentParser:
        parser = action(name, summary)
        parser.add_argument("--project", required=True, metavar="P", help="Google Cloud project")
        parser.add_argument("--zone", required=True, metavar="Z[,Z2]", help="zones to look in")
        return parser

    launch = action("launch", "queue a job: -- train --gin_file=F ...", gin=True)
    run = action("run", "run a job on a TPU VM that is there already: -- train --gin_file=F ...", gin=True)
    for parser in (launch, run):
        for flag, (metavar, text) in (_JOB | (_QUEUED if parser is launch else {})).items():
            parser.add_argument(flag, metavar=metavar, help=text)
        parser.add_argument("--env", action="append", metavar="N=V", help="of the job's processes; no secrets")
        parser.add_argument(
            "--include", action="append", metavar="F", help="a file or folder here that the job reads; may be repeated"
        )
        parser.add_argument("--dry_run", action="store_true", help="check all, and print the commands that would run")
        parser.epilog = "--gin_file and --gin.spec.JobSpec.NAME=value bind the fields of the job itself; " + (
            "what follows -- is a t5x_lite command: train, eval, infer or score"
        )
    launch.add_argument("--zone", metavar="Z[,Z2]", help="tried in turn")
    capacity = launch.add_mutually_exclusive_group()
    capacity.add_argument("--spot", action="store_true", help="cheaper, and may be taken away at any time")
    capacity.add_argument("--reserved", action="store_true", help="of the project's reservation")
    launch.add_argument("--internal_ips", action="store_true", help="no external addresses; needs a NAT")
    launch.add_argument("--watch", action="store_true", help="and watch it to its end")
    launch.add_argument(
        "--publish_only", action="store_true", help="bring the job into the bucket, for GKE, SkyPilot or your own hosts"
    )
    polling(launch, 60)
    run.add_argument("--tpu", required=True, metavar="T", help="the TPU VM")
    run.add_argument("--zone", required=True, metavar="Z", help="of it")

    polling(of_job("watch", "look after a job to its end: new machines after a preemption, none left behind"), 60)
    of_job("status", "what there is of a job, and what is next")
    logs = of_job("logs", "what a worker prints")
    logs.add_argument("--worker", metavar="S-W", help="worker W of slice S; default: 0-0")
    logs.add_argument("--follow", action="store_true", help="until the job ends")
    polling(logs, 20)
    ssh = of_job("ssh", "a shell on a worker, or a command there: -- PROGRAM ARGUMENTS, or -- one line of a shell")
    ssh.add_argument("--worker", default="0", metavar="W", help="of the slice, or all; default: 0")
    ssh.add_argument("--slice", type=int, default=0, metavar="S", help="default: 0")
    ssh.add_argument("--dry_run", action="store_true", help="print the command that would run")
    polling(of_job("stop", "end a job and its machines"), 20)

    of_zones("list", "all queued resources that t5x_lite made")
    gc = of_zones("gc", "delete what t5x_lite made and nobody needs; asks first")
    gc.add_argument("--all", action="store_true", help="also what is in use")
    gc.add_argument("--yes", action="store_true", help="do not ask")
    gc.add_argument("--dry_run", action="store_true", help="print the commands that would run")
