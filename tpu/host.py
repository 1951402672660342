"""A host's part of a job, once startup.py has unpacked its code: the environment, the job's process, what the bucket is
told, and the end. Like startup.py it needs nothing but the system's python3 (3.8 or newer).

Ends: done (the command exits 0, and for training MODEL_DIR holds DONE), failed (exit 2: wrong input; or too many
failures in a row; or the hours are over), stopped (somebody said so in the bucket), superseded (the claim in the bucket
is not this machine's: it runs nothing), preempted (Google takes the machine). Otherwise the command is started again,
at once after 75 (preempted), with growing pauses after anything else. At the end the first host ends the machines of
all, whatever state the job's process is in, if they came from a queued resource.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from t5x_lite.tpu.startup import end_machines, gcloud, metadata, say

# The installer of the environment, of PyPI, with its hash: it brings the Python of the lock too.
UV = "uv==0.13.9 --hash=sha256:d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19"
PYTHON = "3.11"

PREEMPTED = 75
WRONG_INPUT = 2
# Failures in a row before the job is given up; a run of half an hour begins the count anew.
MOST_FAILURES = 8
HEALTHY_SECONDS = 1800

# Seconds that a job has to save and stop, and that its process may then still take to die: a lost TPU may hold it.
GRACE, DYING = 300, 120

# Bytes of a part of the log.
PART = 16 * 2**20


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


def worker():
    """SLICE-WORKER of this host: GKE says it in the environment, Cloud TPU in the metadata."""
    index = os.environ.get("TPU_WORKER_ID") or metadata("attributes/agent-worker-number") or "0"
    slice_ = os.environ.get("MEGASCALE_SLICE_ID")
    if slice_ is None:
        lines = [line.partition(":") for line in (metadata("attributes/tpu-env") or "").splitlines()]
        known = {key.strip(): value.strip().strip("'\"") for key, _, value in lines}
        slice_ = known.get("MEGASCALE_SLICE_ID") or "0"
    return f"{int(slice_)}-{int(index)}"


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
      place: the folder of its code.
      log: the file that everything is printed into.
    """

    def __init__(self, bucket, job, attempt, name, place, log):
        self.bucket, self.job, self.attempt, self.name, self.place, self.log = bucket, job, attempt, name, place, log
        self.state, self.restarts, self.last_exit = "starting", 0, None
        self.ending = None  # why this host stops: a word of the module's docstring, or "preempted"
        self.process, self.asked = None, None  # asked: when it was asked to stop
        self.lock = threading.Lock()
        self.wake = threading.Event()
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
        """Uploads all that has been printed since the last time, as more objects."""
        with self.sending:
            while self.send_part():
                pass

    def send_part(self):
        """Uploads one more object: whether there was something to upload, and it went well."""
        try:
            with open(str(self.log), "rb") as file:
                file.seek(self.sent)
                new = file.read(PART)
        except OSError:
            return False
        if not new:
            return False
        with tempfile.TemporaryDirectory() as folder:
            part = os.path.join(folder, "part.log")
            with open(part, "wb") as file:
                file.write(new)
            name = f"{self.bucket.url}/logs/{self.name}/{self.log.stem}-{self.part:06d}.log"
            if gcloud("storage", "cp", part, name)[0] != 0:
                return False
        self.sent, self.part = self.sent + len(new), self.part + 1
        return True

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
                elif self.asked is not None:
                    self.insist(time.monotonic() - self.asked - self.job.get("grace_seconds", GRACE))
            except Exception as error:  # whatever it is, the next minute is another one
                say(f"watching failed: {error!r}")
            time.sleep(self.job.get("beat_seconds", 60))

    def insist(self, late):
        """Ends a process that is so many seconds late, and where that does not help, the machines with it."""
        if late > self.job.get("dying_seconds", DYING):
            say("the job's process cannot be killed")
            self.end_machines()
            os._exit(1)
        if late > 0:
            self.process.kill()

    def heed_preemption(self):
        """Asks the metadata server whether this machine is being taken away: half a minute is left then to save.

        Compute Engine's documentation has it so. A signal from the machine's own shutdown may come too late, when the
        network has gone, and where there are no such machines (404) there is nothing to ask.
        """
        while self.ending is None:
            found = metadata("preempted")
            if found is None:
                return
            if found.strip() == "TRUE":
                self.end("preempted")
            time.sleep(2)

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

    def python(self):
        """The interpreter with the locked environment, made once for each lock; None where the host is to stop."""
        if self.job.get("python"):
            return self.job["python"]
        lock = self.place / "code" / "requirements.lock"
        place = self.place.parent / ("environment-" + hashlib.sha256(lock.read_bytes()).hexdigest()[:16])
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
        tools = self.place.parent / "uv"
        pinned = self.place.parent / "uv.txt"
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
        """Runs a program of the installation into the log.

        Raises:
          CalledProcessError: it failed.
        """
        say("running " + " ".join(words[:6]))
        status = self.run(words)
        if status != 0:
            raise subprocess.CalledProcessError(status, words[:6])

    def run(self, words, **options):
        """Runs a program into the log, until it ends or `end` ends it: its exit status."""
        with open(str(self.log), "ab") as log:
            with self.lock:
                if self.ending is not None:
                    return PREEMPTED
                self.process = subprocess.Popen(
                    list(words), stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options
                )  # fmt: skip
            return self.process.wait()

    def run_once(self, python):
        """Runs the job's command: exit status and seconds."""
        environment = dict(os.environ)
        environment.update(binding.split("=", 1) for binding in self.job.get("env", ()))
        environment["PYTHONPATH"] = str(self.place / "code")
        environment["PYTHONUNBUFFERED"] = "1"
        began = time.monotonic()
        status = self.run(
            [python, "-m", "t5x_lite", *self.job["command"]], cwd=str(self.place / "work"), env=environment
        )
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
            with open(str(self.log), "rb") as file:
                file.seek(max(0, os.path.getsize(str(self.log)) - 2**16))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:500] if lines else ""

    def work(self):
        """Runs the job until it is done, given up or asked to stop."""
        python = self.python()
        failures = 0
        while self.ending is None:
            self.state = "running"
            status, seconds = self.run_once(python)
            self.last_exit = status
            what, pause, failures = after(status, seconds, failures)
            if self.ending is not None:
                return
            said = self.last_words()
            say(f"the job exited with {status} after {seconds:.0f} s")
            if what == "done" and self.is_done():
                self.send_log()  # whoever reads that it is done may end this machine
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
        """Says goodbye; the first host ends the machines of all, if they came from a queued resource."""
        self.state = self.ending
        self.beat()
        self.send_log()
        # Where the first host cannot, `t5x_lite tpu watch` does.
        if self.attempt is None or self.ending == "preempted" or self.name != "0-0":
            return
        while not end_machines(self.job["name"], self.job["project"], self.attempt):
            self.send_log()
            time.sleep(self.job.get("beat_seconds", 60) * 5)


def main(url, job, attempt, place, log):
    """Does this host's part of a job, to its end: the exit status.

    Args:
      url: the job's folder in the bucket.
      job, attempt, place, log: see `Host`.
    """
    host = Host(Bucket(url), job, attempt, worker(), place, log)
    signal.signal(signal.SIGTERM, lambda number, frame: threading.Thread(target=host.end, args=("preempted",)).start())
    host.ending = host.look()
    if host.ending is None:
        threading.Thread(target=host.keep_watch, daemon=True).start()
        threading.Thread(target=host.heed_preemption, daemon=True).start()
        try:
            host.work()
        except Exception as error:
            host.record("failed", f"worker {host.name}: {error!r}")
            host.ending = "failed"
    say(f"ending: {host.ending}")
    host.end_machines()
    return PREEMPTED if host.ending == "preempted" else 0 if host.ending in ("done", "stopped", "superseded") else 1
