"""The one place that runs gcloud: argument lists, no shell; JSON back; what went wrong as one of a few kinds.

Commands are of the GA track. gcloud finds its own credentials; none is read here.
"""

import json
import re
import shlex
import subprocess
import time
from collections.abc import Sequence

from t5x_lite.errors import RunError

# What an error says, in the order in which it is looked for. Google's own words are in
# docs.cloud.google.com/tpu/docs/troubleshooting/trouble-tpu-vm and docs.cloud.google.com/storage/docs/json_api.
_KINDS = (
    ("auth", r"active account|gcloud auth login|reauthenticat|invalid_grant|UNAUTHENTICATED(?! because)|default login"),
    ("billing", r"billing"),
    ("place", r"permission denied on '?locations/|locations/\S+ (?:is|was) not found|unknown zone|invalid zone"),
    ("disabled", r"SERVICE_DISABLED|has not been used in project|API .{0,60}is not enabled|it is disabled"),
    ("precondition", r"\b412\b|pre-?conditions? you specified|conditionNotMet"),
    ("exists", r"ALREADY_EXISTS|already exists|\b409\b"),
    ("permission", r"PERMISSION_DENIED|does not have .{0,80}(?:permission|access)"),
    ("rate", r"RATE_LIMIT_EXCEEDED|rateLimitExceeded|per minute|too many requests|rate limit"),
    (
        "stockout",
        r"no more capacity|insufficient (?:reserved )?capacity|stock-?out|RESOURCE_POOL_EXHAUSTED|not enough resources"
        r"|does not have enough|currently unavailable in|out of capacity|valid.?until|expired|timing constraint",
    ),
    ("quota", r"quota"),
    ("permission", r"permission|forbidden|\b403\b|not authorized"),
    ("notfound", r"NOT_FOUND|not found|\b404\b|matched no objects|no urls matched|does not exist"),
    ("stockout", r"RESOURCE_EXHAUSTED|\b429\b"),
    (
        "unavailable",
        r"UNAVAILABLE|\b50[0234]\b|internal error|INTERNAL|deadline|timed? ?out|connection|could not reach"
        r"|unable to find the server|network is unreachable|temporar|try again|ABORTED",
    ),
    ("busy", r"FAILED_PRECONDITION"),
    ("invalid", r"INVALID_ARGUMENT|invalid|unrecognized arguments|\b400\b|required"),
)

# Those that go away by themselves.
TRANSIENT = frozenset({"rate", "unavailable", "killed", "garbage", "busy"})

# How each that does not is mended.
_FIXES = {
    "missing": "Install the Google Cloud CLI, cloud.google.com/sdk/docs/install, and run the same command again",
    "auth": "Log in: gcloud auth login, and run the same command again",
    "billing": "Give the project a billing account: console.cloud.google.com/billing/projects",
    "place": "Correct --zone: docs.cloud.google.com/tpu/docs/regions-zones has those of each generation; or --project",
    "taken": "Choose another --name: `gcloud compute tpus tpu-vm list` shows what bears this one, or one of its slices",
    "disabled": "Enable it: gcloud services enable tpu.googleapis.com storage.googleapis.com, and run the same again",
    "permission": "Ask for the roles roles/tpu.admin, roles/storage.objectAdmin of the bucket and "
    "roles/iam.serviceAccountUser of the VMs' service account, and run the same command again",
    "quota": "Delete what holds it (t5x_lite tpu gc), or ask for more of the quota that it names on "
    "console.cloud.google.com/iam-admin/quotas, and run the same command again",
    "notfound": "Correct the name; a bucket is made by: gcloud storage buckets create gs://BUCKET --location=REGION",
    "stockout": "Wait, or give more zones with --zone=A,B or another --accelerator",
}


class GcloudError(Exception):
    """A command that failed.

    Args:
      kind: missing, auth, billing, place, disabled, precondition, exists, taken, rate, stockout, quota, permission,
        notfound, unavailable, busy, invalid, killed, garbage or unknown.
      said: its words, on one line.
      words: the command.
    """

    def __init__(self, kind: str, said: str, words: Sequence[str]):
        super().__init__(said)
        self.kind, self.said, self.words = kind, said, list(words)

    def as_run_error(self, safe: str) -> RunError:
        """For a person: what it says, what is safe, and how it is mended."""
        command = shlex.join(self.words[:5])
        fix = _FIXES.get(self.kind, "see to that, and run the same command again")
        return RunError(f"{command} failed ({self.kind}): {self.said}", safe, fix)


def kind_of(text: str) -> str:
    """What kind of error a message tells of."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, text, re.IGNORECASE)), "unknown")


def shown(words: Sequence[str]) -> str:
    """The command as a shell would take it."""
    return shlex.join(words)


def call(words: Sequence[str], timeout: float) -> tuple[int, str, str]:
    """Runs a command: exit status (negative: killed by that signal), stdout, stderr."""
    try:
        done = subprocess.run(
            list(words), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise GcloudError("missing", f"there is no {words[0]} on this machine", words) from None
    except subprocess.TimeoutExpired:
        return -15, "", f"no answer within {timeout:.0f} s"
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def run(words: Sequence[str], timeout: float = 300, tries: int = 4) -> str:
    """Runs a command and returns its stdout; what may go away by itself is tried again, with growing pauses.

    Only commands that may run twice come here: reads, writes under a precondition, and creating and deleting by name.

    Raises:
      GcloudError: it failed.
    """
    for attempt in range(1, tries + 1):
        status, out, err = call(words, timeout)
        if status == 0:
            return out
        said = _said(err or out) or f"exit status {status}"
        kind = "killed" if status < 0 or status in (130, 137, 143) else kind_of(said)
        if kind not in TRANSIENT or attempt == tries:
            raise GcloudError(kind, said, words)
        time.sleep(2**attempt)
    raise ValueError(f"tries is {tries}")


def read_json(words: Sequence[str], kind: type, timeout: float = 120, tries: int = 4):
    """Runs a command with --format=json and returns what it prints, which is of the type `kind`.

    Raises:
      GcloudError: it failed, or printed something else.
    """
    return read_json_text([*words, "--format=json"], kind, timeout, tries)


def read_json_text(words: Sequence[str], kind: type, timeout: float = 120, tries: int = 4):
    """The same of a command that prints JSON by itself."""
    for attempt in range(1, tries + 1):
        out = run(words, timeout, tries)
        try:
            value = json.loads(out)
        except ValueError:
            value = None
        if isinstance(value, kind):
            return value
        if attempt < tries:
            time.sleep(2**attempt)
    raise GcloudError("garbage", f"it printed no JSON {kind.__name__}: {_said(out)[:200] or 'nothing'}", words)


def _said(text: str) -> str:
    """The error of gcloud's stderr on one line, without its progress and warnings."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [k for k, line in enumerate(lines) if line.startswith("ERROR")]
    return " ".join(lines[errors[0] :] if errors else lines)
