"""Launches a job: everything is checked, its code goes to the bucket, and its first attempt is queued.

The same command may be given again after a crash at any point: it goes on.
"""

import dataclasses
import hashlib
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from t5x_lite.errors import RunError, UserError
from t5x_lite.tpu import bundle, gcloud, preflight, record, request
from t5x_lite.tpu.gcloud import GcloudError
from t5x_lite.tpu.plan import Action, Outcome
from t5x_lite.tpu.spec import JobSpec
from t5x_lite.tpu.watch import Launched, look, watch, write_outcome


@dataclass(frozen=True)
class Prepared:
    """A job that has passed all checks.

    Args:
      job: with MODEL_DIR in its command.
      model_dir: of training; None of another verb.
      archive: of its code, on this machine.
      digest: the archive's SHA-256.
    """

    job: JobSpec
    model_dir: str | None
    archive: Path
    digest: str

    def values(self, launched: float, tpu: str | None = None) -> dict:
        """What job.json holds. `tpu`: the TPU VM that is there already, None for a queued resource."""
        return self.job.as_json() | {
            "command": list(self.job.command),
            "env": list(self.job.env),
            "include": list(self.job.include),
            "launched": launched,
            "model_dir": self.model_dir,
            "code": self.digest,
            "tpu": tpu,
        }


def prepare(job: JobSpec, folder: Path, say: Callable[[str], None]) -> Prepared:
    """Checks a job as far as this machine can, and packs its code.

    Raises:
      UserError: something is wrong with it.
    """
    model_dir = None
    archive, digest = bundle.build(job, folder)
    if job.command[0] != "train":
        preflight.check_flags(job, folder)
    else:
        say(f"laying the job out on {job.num_slices} x {job.accelerator}: {shlex.join(preflight.dry_run_words(job))}")
        with tempfile.TemporaryDirectory(prefix="t5x_lite") as name:
            unpacked = Path(name).resolve()
            bundle.unpack(archive, unpacked)
            printed = preflight.dry_run(job, unpacked)
            model_dir = preflight.check_files(job, printed, folder, unpacked)
        for warning in (line for line in printed.splitlines() if line.startswith("warning: ")):
            say(warning)
        if not bundle.values_of(job.command, "--gin.MODEL_DIR") and model_dir == f"{job.url}/model":
            job = dataclasses.replace(job, command=(*job.command, f"--gin.MODEL_DIR={model_dir}"))
    return Prepared(job, model_dir, record.keep(archive, f"code-{digest}.tar.gz"), digest)


def publish(prepared: Prepared, tpu: str | None = None) -> Launched:
    """Brings a job into the bucket, or finds it there.

    Args:
      prepared: the job.
      tpu: see `Prepared.values`.

    Raises:
      UserError: a job of this name is under way that is another one.
      GcloudError: the bucket cannot be read or written.
    """
    job = prepared.job
    record.mark(job.url)
    objects = record.listing(f"{job.url}/*")
    generation = objects.get(f"{job.url}/job.json", ("0", 0.0))[0]
    known = record.read(f"{job.url}/job.json") if generation != "0" else None
    launched = objects.get(record.marked(job.url), ("", time.time()))[1]
    if known is not None:
        ended = record.read(f"{job.url}/exit.json") or {}
        if ended.get("launched") != known.get("launched"):
            launched = known.get("launched", launched)
            if known != prepared.values(launched, tpu):
                raise UserError(
                    f"--name={job.name} is the name of a job that is under way",
                    f"{job.url}/job.json describes another one",
                    f"choose another --name, or end it: t5x_lite tpu stop --name={job.name} --bucket={job.bucket}",
                )
            return Launched(job, launched)
        launched = max(launched, known.get("launched", 0) + 1)  # each is later than the one before
    code = f"{job.url}/code-{prepared.digest}.tar.gz"
    if code not in objects:
        record.upload(str(prepared.archive), code)
    if not record.write(f"{job.url}/job.json", prepared.values(launched, tpu), generation):
        raise UserError(
            f"--name={job.name} is being launched by another command",
            f"{job.url}/job.json has just been written",
            "choose another --name, or wait for it and run the same command again",
        )
    return Launched(job, launched)


def start(launched: Launched, say: Callable[[str], None], poll_seconds: float) -> None:
    """Queues the first attempt; if Cloud TPU refuses it, the launch is over and may be made anew.

    Raises:
      RunError: it is refused.
    """
    try:
        last = watch(launched, say, poll_seconds, _is_queued, patience=1)
    except RunError as error:
        why = str(error).replace("\n", " ")
        try:
            write_outcome(launched, look(launched), Outcome("failed", f"it was refused at launch: {why}"))
            watch(launched, say, poll_seconds)  # it may have been made nevertheless
        except (GcloudError, RunError):
            pass  # what refused the creation may refuse this too; the same command goes on either way
        raise
    if last.kind == "failed":
        raise RunError(
            f"the job {launched.job.name} was not launched: {last.why}", "nothing of it is left", "see to that"
        )


def _is_queued(action: Action) -> bool:
    return action.kind == "create" or (action.kind == "wait" and bool(action.zone))


def run_on(prepared: Prepared, launched: Launched, tpu: str, zone: str) -> list[list[str]]:
    """The commands that start a job on a TPU VM that is there already, on all its hosts."""
    job = prepared.job
    script = f"{job.url}/startup.py"
    here = f"t5x_lite-{job.name}.py"
    # Only names that spec.py has checked are in this line.
    remote = (
        f"gcloud storage cp {shlex.quote(script)} {here} && "
        f"python3 {here} {shlex.quote(job.url)} --background </dev/null"
    )
    return [
        record.write_words(str(request.STARTUP), script, None),
        [*request.ssh_words(tpu, zone, job.project, "all", remote), "--quiet"],
    ]


class Rehearsal:
    """A world without anything, in which commands succeed: it prints them as they would run, and runs none.

    It stands in for `gcloud.call`.
    """

    def __init__(self):
        self._objects: dict[str, str] = {}
        self._printed: set[str] = set()

    def __call__(self, words, timeout: float) -> tuple[int, str, str]:
        print(gcloud.shown(words))
        sys.stdout.flush()
        verb = words[1:4]
        if verb[:2] == ["storage", "cp"]:
            path, url = words[3:5]
            self._objects[url] = Path(path).read_text(encoding="utf-8") if path.endswith(".json") else ""
            return 0, "", ""
        if verb[:2] == ["storage", "cat"]:
            found = self._objects.get(words[3])
            return (0, found, "") if found is not None else (1, "", "ERROR: NOT_FOUND: matched no objects")
        if words[1:4] == ["storage", "objects", "list"]:
            return 0, self._listing(words[4:]), ""
        if "describe" in words:
            return 1, "", "ERROR: NOT_FOUND"
        return 0, "[]" if "list" in words else "", ""

    def _listing(self, patterns) -> str:
        import fnmatch
        import json

        found = []
        for url in self._objects:
            if any(fnmatch.fnmatchcase(url, pattern) for pattern in patterns):
                bucket, _, name = url.removeprefix("gs://").partition("/")
                generation = int(hashlib.sha256(self._objects[url].encode()).hexdigest()[:8], 16)
                written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time()))
                found.append({"bucket": bucket, "name": name, "generation": generation, "update_time": written})
        return json.dumps(found)
