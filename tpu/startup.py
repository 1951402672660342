#!/usr/bin/env python3
"""What every host of a TPU runs at boot: it fetches the job's code and hands over to host.py, which is in it.

It stands alone: the system's python3 (3.8 or newer), the standard library and the gcloud CLI of the TPU VM's image. The
job is a JSON file in the bucket, named by the VM's metadata, or by an argument where somebody else starts it:

    startup.py gs://BUCKET/t5x_lite/NAME [--background]

None of the job's values passes through a shell. A machine of a queued resource that cannot read its job ends itself.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

# Ubuntu's images have gcloud as a snap, which is not on the path at boot.
os.environ["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/snap/bin:/usr/local/bin:/usr/bin:/bin"

# Nor has a boot script a home, which gcloud looks for.
os.environ.setdefault("HOME", os.path.expanduser("~"))

WRONG_INPUT = 2

# Seconds after which a machine that cannot read its job, or its code, ends itself.
UNREAD = 3600


def metadata(path, default=None):
    """A value of the VM's metadata server; `default` where it has none."""
    host = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/{path}", headers={"Metadata-Flavor": "Google"}
    )
    for pause in (1, 2, 4, 8, 0):
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return default
        except OSError:
            pass
        time.sleep(pause)
    return default


def gcloud(*words, **options):
    """Runs gcloud: exit status and what it printed."""
    try:
        done = subprocess.run(
            ["gcloud", *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=options.get("timeout", 300),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def patiently(what, words, is_over, sleep=time.sleep):
    """Runs gcloud until it succeeds, with growing pauses: at boot the network may not be there yet.

    Args:
      what: that is, in words.
      words: of the command.
      is_over: whether to give up; what is printed is then None.
      sleep: pauses for so many seconds.
    """
    pause = 2
    while True:
        status, out, err = gcloud(*words)
        if status == 0:
            return out
        if is_over():
            return None
        say(f"{what} failed, again in {pause} s: {err.strip()[-500:]}")
        sleep(pause)
        pause = min(120, pause * 2)


def end_machines(name, project, attempt):
    """Deletes the queued resource that this machine came from, and no other of its name: whether it is gone."""
    where = ["--zone=" + (metadata("zone") or "").rpartition("/")[2], "--project=" + project]
    status, out, err = gcloud("compute", "tpus", "queued-resources", "describe", name, *where, "--format=json")
    if status == 0:
        try:
            bearer = json.loads(out)["tpu"]["nodeSpec"][0]["node"]["labels"]["t5x-lite-attempt"]
        except (ValueError, LookupError, TypeError) as error:
            status, err = 1, f"it has no attempt: {error!r}"
        else:
            if bearer != str(attempt):
                return True
            words = ["compute", "tpus", "queued-resources", "delete", name, *where, "--force", "--quiet", "--async"]
            status, _, err = gcloud(*words)
    if status == 0 or "NOT_FOUND" in err:
        return True
    say(f"ending the machines failed, again in 5 minutes; `t5x_lite tpu watch` does it too: {err.strip()}")
    return False


def say(text):
    """A line of this script's own, in the job's log."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} t5x_lite startup: {text}", flush=True)


def home_of(name):
    """Where this machine keeps the job."""
    base = os.environ.get("T5X_LITE_HOME") or ("/var/lib/t5x_lite" if os.geteuid() == 0 else "~/.local/share/t5x_lite")
    home = Path(base).expanduser() / name
    (home / "logs").mkdir(parents=True, exist_ok=True)
    return home


def hold(path, own):
    """Takes this machine for a job: the open lock; where a job has it, what that one called itself."""
    held = open(str(path), "a+")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.seek(0)
        return held.read()
    held.truncate(0)
    held.write(own)
    held.flush()
    return held


def unpacked(url, digest, home, is_over):
    """The folder of the job's code, whose archive is what job.json says it is; None where it was not had in time."""
    place = home / ("code-" + digest[:16])
    if place.is_dir():
        return place
    archive = home / "code.tar.gz"
    address = f"{url}/code-{digest}.tar.gz"
    while True:
        if patiently("fetching the code", ["storage", "cp", address, str(archive)], is_over) is None:
            return None
        if hashlib.sha256(archive.read_bytes()).hexdigest() == digest:
            break
        say(f"{address} is damaged, and is fetched again")
        if is_over():
            return None
        time.sleep(30)
    fresh = Path(tempfile.mkdtemp(dir=str(home)))
    with tarfile.open(str(archive)) as tar:
        for entry in tar:
            parts = Path(entry.name).parts
            if not entry.isfile() or ".." in parts or entry.name.startswith("/"):
                raise ValueError(f"the archive holds {entry.name!r}")
            target = fresh.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(tar.extractfile(entry).read())
    (fresh / "work").mkdir(exist_ok=True)
    fresh.rename(place)
    return place


def main(arguments):
    """Returns the exit status of the script."""
    given = [argument for argument in arguments if argument != "--background"]
    url = given[0] if given else metadata("attributes/t5x-lite-job")
    if not url:
        say("the VM's metadata names no job")
        return WRONG_INPUT
    name = url.rpartition("/")[2]
    attempt = None if given else int(metadata("attributes/t5x-lite-attempt", "0"))
    over = float("inf")
    if attempt is not None:
        over = min(time.time() + UNREAD, float(metadata("attributes/t5x-lite-ends", "inf")))
    home = home_of(name)
    code = None
    text = patiently("reading the job", ["storage", "cat", url + "/job.json"], lambda: time.time() > over)
    if text is not None:
        job = json.loads(text)
        # One at a time on a machine, whoever started it.
        own = f"{url}, launched at {job['launched']}"
        held = hold(home.parent / "lock", own)
        if held == own:
            say("this job runs on this machine already")
            return 0
        if isinstance(held, str):
            # The word that gcloud's own errors begin with, of which `t5x_lite tpu run` shows the first.
            print(f"ERROR: there runs still {held}", file=sys.stderr)
            return WRONG_INPUT
        if "--background" in arguments:
            if os.fork():
                os._exit(0)
            os.setsid()
        # What is printed from here on goes into the job's log.
        log = home / "logs" / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}.log"
        file = os.open(str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = unpacked(url, job["code"], home, lambda: time.time() > over)
    if code is None:
        say("ending: the job could not be fetched in time")
        while not end_machines(name, metadata("attributes/t5x-lite-project", ""), attempt):
            time.sleep(300)
        return 1
    sys.path.insert(0, str(code / "code"))
    from t5x_lite.tpu import host

    return host.main(url, job, attempt, code, log)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
