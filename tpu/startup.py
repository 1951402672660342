#!/usr/bin/env python3
"""What every host of a TPU runs at boot: it installs the job, keeps it running, and tells the bucket how it goes.

It stands alone: the system's python3 (3.8 or newer), the standard library and the gcloud CLI of the TPU VM's image. The
job is a JSON file in the bucket, named by the VM's metadata (or by the one argument, where `t5x_lite tpu run` starts
it); none of its values passes through a shell.

Ends: done (the command exits 0, and for training MODEL_DIR holds DONE), failed (exit 2: wrong input; or too many
failures in a row; or the hours are over), stopped (somebody said so in the bucket), superseded (the claim in the bucket
is not this machine's: it does nothing at all). Otherwise the command is started again: at once after 75 (preempted),
with growing pauses after anything else.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

# Ubuntu's images have gcloud as a snap, which is not on the path at boot.
os.environ["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/snap/bin:/usr/local/bin:/usr/bin:/bin"

# Nor has a boot script a home, which gcloud looks for.
os.environ.setdefault("HOME", os.path.expanduser("~"))

# The installer of the environment, of PyPI, with its hash: it brings the Python of the lock too.
UV = "uv==0.13.9 --hash=sha256:d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19"
PYTHON = "3.11"

PREEMPTED = 75
WRONG_INPUT = 2
# Failures in a row before the job is given up; a run of half an hour begins the count anew.
MOST_FAILURES = 8
HEALTHY_SECONDS = 1800

# Seconds that a job has to save and stop.
GRACE = 300


def after(status, seconds, failures):
    """What follows a run that ended: ("done" | "restart" | "failed", seconds to wait, failures in a row).

    Args:
      status: of its process; negative: killed by that signal.
      seconds: that it ran.
      failures: in a row before it.
    """
    if status == 0:
        return "done", 0, 0
    if status == PREEMPTED:
        return "restart", 0, 0
    if status == WRONG_INPUT:
        return "failed", 0, failures + 1
    failures = 1 if seconds >= HEALTHY_SECONDS else failures + 1
    if failures >= MOST_FAILURES:
        return "failed", 0, failures
    return "restart", min(600, 10 * 2 ** (failures - 1)), failures


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


def worker():
    """SLICE-WORKER of this host: GKE says it in the environment, Cloud TPU in the metadata."""
    index = os.environ.get("TPU_WORKER_ID") or metadata("attributes/agent-worker-number") or "0"
    slice_ = os.environ.get("MEGASCALE_SLICE_ID")
    if slice_ is None:
        lines = [line.partition(":") for line in (metadata("attributes/tpu-env") or "").splitlines()]
        known = {key.strip(): value.strip().strip("'\"") for key, _, value in lines}
        slice_ = known.get("MEGASCALE_SLICE_ID") or "0"
    return f"{int(slice_)}-{int(index)}"


def gcloud(*words, **options):
    """Runs gcloud: exit status and what it printed."""
    try:
        done = subprocess.run(
            ["gcloud", *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=options.get("timeout", 300),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def patiently(what, *words):
    """Runs gcloud until it succeeds, with growing pauses: at boot the network may not be there yet."""
    pause = 2
    while True:
        status, out, err = gcloud(*words)
        if status == 0:
            return out
        say(f"{what} failed, again in {pause} s: {err.strip()[-500:]}")
        time.sleep(pause)
        pause = min(120, pause * 2)


def say(text):
    """A line of this script's own, in the job's log."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} t5x_lite startup: {text}", flush=True)


class Bucket:
    """The job's folder in the bucket."""

    def __init__(self, url):
        self.url = url

    def read(self, name):
        """A record; None where there is none, or it cannot be read now."""
        status, out, _ = gcloud("storage", "cat", f"{self.url}/{name}")
        try:
            found = json.loads(out) if status == 0 else None
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def write(self, name, value, generation=None):
        """Writes a record; with `generation`, only in place of that one."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, os.path.basename(name))
            with open(path, "w") as file:
                json.dump(value, file, sort_keys=True)
            condition = [] if generation is None else [f"--if-generation-match={generation}"]
            return gcloud("storage", "cp", path, f"{self.url}/{name}", *condition)[0] == 0

    def generation(self, name):
        """Of an object; "0" where there is none, None where that cannot be said now."""
        status, out, _ = gcloud("storage", "objects", "list", f"{self.url}/{name}", "--format=json")
        try:
            found = [o for o in json.loads(out) if not o.get("noncurrent_time")] if status == 0 else None
        except (ValueError, AttributeError, TypeError):
            return None
        return None if found is None else str(found[0]["generation"]) if found else "0"


class Host:
    """This host's part of the job.

    Args:
      bucket: the job's folder.
      job: of job.json.
      attempt: of this machine's queued resource; None where `t5x_lite tpu run` started it.
      name: SLICE-WORKER.
      home: where everything is kept on this machine.
    """

    def __init__(self, bucket, job, attempt, name, home):
        self.bucket, self.job, self.attempt, self.name, self.home = bucket, job, attempt, name, home
        self.state, self.restarts, self.last_exit = "starting", 0, None
        self.ending = None  # why this host stops: a word of the module's docstring, or "preempted"
        self.process, self.asked = None, None  # asked: when it was asked to stop
        self.lock = threading.Lock()
        self.wake = threading.Event()
        self.log = home / "logs" / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}.log"
        self.sent, self.part = 0, 0
        self.sending = threading.Lock()

    # What the bucket is told.

    def beat(self):
        """Writes the sign of life."""
        beat = {
            "time": time.time(), "worker": self.name, "state": self.state, "restarts": self.restarts,
            "last_exit": self.last_exit, "launched": self.job["launched"], "attempt": self.attempt,
        }  # fmt: skip
        self.bucket.write(f"heartbeat/{self.name}", beat)

    def send_log(self):
        """Uploads what has been printed since the last time, as one more object."""
        with self.sending:
            try:
                with open(str(self.log), "rb") as file:
                    file.seek(self.sent)
                    new = file.read(16 * 2**20)
            except OSError:
                return
            if not new:
                return
            with tempfile.TemporaryDirectory() as folder:
                part = os.path.join(folder, "part.log")
                with open(part, "wb") as file:
                    file.write(new)
                name = f"{self.bucket.url}/logs/{self.name}/{self.log.stem}-{self.part:06d}.log"
                if gcloud("storage", "cp", part, name)[0] == 0:
                    self.sent, self.part = self.sent + len(new), self.part + 1

    def record(self, result, why):
        """Writes how the job ended, unless that is written already."""
        for pause in (1, 5, 15, 60, 300):
            known = self.outcome()
            if known is not None:
                return known
            generation = self.bucket.generation("exit.json")
            value = {"result": result, "why": why, "launched": self.job["launched"], "worker": self.name}
            if generation is not None and self.bucket.write("exit.json", value, generation):
                return value
            time.sleep(pause)
        return None

    def outcome(self):
        """How this launch of the job ended; None while it goes on."""
        found = self.bucket.read("exit.json")
        return found if found and found.get("launched") == self.job["launched"] else None

    def is_superseded(self):
        """Whether another attempt is claimed by now."""
        if self.attempt is None:
            return False
        claim = self.bucket.read("claim.json")
        return bool(claim) and (claim.get("launched"), claim.get("attempt")) != (self.job["launched"], self.attempt)

    # What it watches for.

    def look(self):
        """Why this host is to stop, or None."""
        found = self.outcome()
        if found is not None:
            return found["result"]
        if self.is_superseded():
            return "superseded"
        hours = self.job.get("max_hours")
        if hours and time.time() >= self.job["launched"] + hours * 3600:
            self.record("failed", f"its max_hours={hours:g} are over")
            return "failed"
        return None

    def keep_watch(self):
        """Reports and looks every minute, for as long as this process lives."""
        while True:
            try:
                self.beat()
                self.send_log()
                if self.ending is None:
                    why = self.look()
                    if why is not None:
                        self.end(why)
                elif self.asked is not None and time.monotonic() - self.asked > self.job.get("grace_seconds", GRACE):
                    self.process.kill()
            except Exception as error:  # whatever it is, the next minute is another one
                say(f"watching failed: {error!r}")
            time.sleep(self.job.get("beat_seconds", 60))

    def end(self, why):
        """Asks the job to save and stop, and starts it no more."""
        with self.lock:
            self.ending = self.ending or why
            if self.process is not None and self.process.poll() is None:
                say(f"stopping the job: {why}")
                self.process.terminate()
                self.asked = time.monotonic()
        self.wake.set()

    # What it runs.

    def code(self):
        """The job's code, unpacked; its archive is what job.json says it is."""
        digest = self.job["code"]
        place = self.home / ("code-" + digest[:16])
        if place.is_dir():
            return place
        archive = self.home / "code.tar.gz"
        address = f"{self.bucket.url}/code-{digest}.tar.gz"
        while True:
            patiently("fetching the code", "storage", "cp", address, str(archive))
            if hashlib.sha256(archive.read_bytes()).hexdigest() == digest:
                break
            say(f"{address} is damaged, and is fetched again")
            time.sleep(30)
        fresh = Path(tempfile.mkdtemp(dir=str(self.home)))
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

    def python(self, code):
        """The interpreter with the locked environment, made once for each lock."""
        if self.job.get("python"):
            return self.job["python"]
        lock = code / "code" / "requirements.lock"
        place = self.home / ("environment-" + hashlib.sha256(lock.read_bytes()).hexdigest()[:16])
        python = place / "bin" / "python"
        if (place / "COMPLETE").exists():
            return str(python)
        self.state = "installing"
        pause = 10
        while self.ending is None:
            try:
                self.install(lock, place, python)
                return str(python)
            except (OSError, subprocess.CalledProcessError) as error:
                say(f"installing failed, again in {pause} s: {error}")
            self.wake.wait(pause)
            pause = min(300, pause * 2)
        return None

    def install(self, lock, place, python):
        """Makes the environment."""
        tools = self.home / "uv"
        pinned = self.home / "uv.txt"
        pinned.write_text(UV + "\n")
        self.command(
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes",
            "--no-deps", "--upgrade", "--target", str(tools), "-r", str(pinned),
        )  # fmt: skip
        uv = str(tools / "bin" / "uv")
        shutil.rmtree(str(place), ignore_errors=True)
        self.command(uv, "venv", "--quiet", "--python", PYTHON, str(place))
        self.command(uv, "pip", "install", "--quiet", "--python", str(python), "--require-hashes", "-r", str(lock))
        (place / "COMPLETE").touch()

    def command(self, *words):
        """Runs a program into the log.

        Raises:
          CalledProcessError: it failed.
        """
        say("running " + " ".join(words[:6]))
        with open(str(self.log), "ab") as log:
            subprocess.run(list(words), stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)

    def run_once(self, python, code):
        """Runs the job's command: exit status and seconds."""
        environment = dict(os.environ)
        environment.update(binding.split("=", 1) for binding in self.job.get("env", ()))
        environment["PYTHONPATH"] = str(code / "code")
        environment["PYTHONUNBUFFERED"] = "1"
        began = time.monotonic()
        with open(str(self.log), "ab") as log:
            with self.lock:
                if self.ending is not None:
                    return PREEMPTED, 0
                self.process = subprocess.Popen(
                    [python, "-m", "t5x_lite", *self.job["command"]], cwd=str(code / "work"), env=environment,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
            status = self.process.wait()
        return status, time.monotonic() - began

    def is_done(self):
        """Whether a command that exited 0 means that the job is done: training leaves DONE."""
        model_dir = self.job.get("model_dir")
        if self.job["command"][0] != "train" or not model_dir:
            return True
        if "://" in model_dir:
            return gcloud("storage", "ls", model_dir.rstrip("/") + "/DONE")[0] == 0
        return os.path.exists(os.path.join(model_dir, "DONE"))

    def last_words(self):
        """The last line of the log."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:500] if lines else ""

    def work(self):
        """Runs the job until it is done, given up or asked to stop."""
        code = self.code()
        python = self.python(code)
        failures = 0
        while self.ending is None:
            self.state = "running"
            status, seconds = self.run_once(python, code)
            self.last_exit = status
            what, pause, failures = after(status, seconds, failures)
            if self.ending is not None:
                return
            said = self.last_words()
            say(f"the job exited with {status} after {seconds:.0f} s")
            if what == "done" and self.is_done():
                self.record("done", "")
                self.ending = "done"
                return
            if what == "done":  # the first host writes DONE when all have finished
                what, pause = "restart", 30
            if what == "failed":
                why = f"worker {self.name} exited with {status}, failure {failures} in a row: {said}"
                self.record("failed", why)
                self.ending = "failed"
                return
            self.state, self.restarts = f"waiting {pause} s to start again", self.restarts + 1
            self.wake.wait(pause)

    def end_machines(self):
        """The first host ends the machines of all, if they came from a queued resource."""
        self.state = self.ending
        self.beat()
        self.send_log()
        if self.attempt is None or self.ending in ("superseded", "preempted"):
            return
        if self.name != "0-0":
            # Where the first host cannot, `t5x_lite tpu watch` does.
            return
        zone = (metadata("zone") or "").rpartition("/")[2]
        while True:
            status, _, err = gcloud(
                "compute", "tpus", "queued-resources", "delete", self.job["name"], "--zone=" + zone,
                "--project=" + self.job["project"], "--force", "--quiet", "--async",
            )  # fmt: skip
            if status == 0 or "NOT_FOUND" in err:
                return
            say(f"ending the machines failed, again in 5 minutes; `t5x_lite tpu watch` does it too: {err.strip()}")
            self.send_log()
            time.sleep(self.job.get("beat_seconds", 60) * 5)


def home_of(name):
    """Where this machine keeps the job."""
    base = os.environ.get("T5X_LITE_HOME") or ("/var/lib/t5x_lite" if os.geteuid() == 0 else "~/.local/share/t5x_lite")
    home = Path(base).expanduser() / name
    (home / "logs").mkdir(parents=True, exist_ok=True)
    return home


def main(arguments):
    """Returns the exit status of the script."""
    url = arguments[0] if arguments else metadata("attributes/t5x-lite-job")
    if not url:
        say("the VM's metadata names no job")
        return WRONG_INPUT
    attempt = None if arguments else int(metadata("attributes/t5x-lite-attempt", "0"))
    job = json.loads(patiently("reading the job", "storage", "cat", url + "/job.json"))
    home = home_of(job["name"])
    # One at a time on a machine, whoever started it.
    held = open(str(home.parent / "lock"), "w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        say("a job is running on this machine already")
        return WRONG_INPUT
    host = Host(Bucket(url), job, attempt, worker(), home)
    # What is printed here goes into the log too.
    log = os.open(str(host.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGTERM, lambda number, frame: threading.Thread(target=host.end, args=("preempted",)).start())
    host.ending = host.look()
    if host.ending is None:
        threading.Thread(target=host.keep_watch, daemon=True).start()
        try:
            host.work()
        except Exception as error:
            host.record("failed", f"worker {host.name}: {error!r}")
            host.ending = "failed"
    say(f"ending: {host.ending}")
    host.end_machines()
    return PREEMPTED if host.ending == "preempted" else 0 if host.ending in ("done", "stopped", "superseded") else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
