"""What a job keeps in its bucket, read and written under preconditions, so that any number of watchers may do both.

URL/job.json        the job, with `launched`: when this launch began, which every other record repeats
URL/claim.json      the zone and attempt that may exist, see plan.py
URL/exit.json       how it ended: result, why
URL/watched         empty; when a watch last looked
URL/heartbeat/S-W   the last sign of life of worker W of slice S
URL/logs/S-W/...    what that worker printed, in parts
URL/code-SHA256.tar.gz, URL/startup.py
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from t5x_lite import cache
from t5x_lite.tpu import gcloud
from t5x_lite.tpu.gcloud import GcloudError


def listing(*urls: str) -> dict[str, tuple[str, float]]:
    """The objects that match, by their gs:// address: generation, and when they were last written, in Unix seconds.

    Raises:
      GcloudError: they cannot be listed.
    """
    found: dict[str, tuple[str, float]] = {}
    try:
        entries = gcloud.read_json(["gcloud", "storage", "objects", "list", *urls], list)
    except GcloudError as error:
        if error.kind == "notfound" and not _has_no_bucket(error):
            return {}
        raise
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("noncurrent_time") or "name" not in entry:
            continue
        address = f"gs://{entry.get('bucket')}/{entry['name']}"
        written = entry.get("update_time") or entry.get("creation_time")
        found[address] = str(entry.get("generation", "")), seconds(written)
    return found


def marked(url: str) -> str:
    """The address of the mark that watches leave in a job's folder."""
    return f"{url}/watched"


def mark(url: str) -> None:
    """Leaves the mark. When it was written is what time it is by the bucket's clock.

    Raises:
      GcloudError: it cannot be written.
    """
    gcloud.run(write_words(str(keep(b"", "watched")), marked(url), None))


def _has_no_bucket(error: GcloudError) -> bool:
    """Whether it is not the object alone that is missing."""
    return bool(re.search(r"specified bucket|bucket does not exist|gs://[^/\s]+/? not found", error.said))


def seconds(text) -> float:
    """Unix seconds of a time as Google writes it; 0 where it is none."""
    # Nanoseconds are more than Python keeps, and gcloud writes +0000.
    text = re.sub(r"(\.\d{1,6}\d*)?(Z|\+00:?00)?$", lambda f: f"{(f[1] or '')[:7]}+00:00", str(text or ""), count=1)
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def read(url: str) -> dict | None:
    """A record; None where there is none.

    Raises:
      GcloudError: it cannot be read, or is no JSON object.
    """
    try:
        return gcloud.read_json_text(["gcloud", "storage", "cat", url], dict)
    except GcloudError as error:
        if error.kind == "notfound" and not _has_no_bucket(error):
            return None
        raise


def write(url: str, value: dict, generation: str = "0") -> bool:
    """Writes a record in place of the one of that generation ("0": of none); False where it is another by now.

    Raises:
      GcloudError: it cannot be written.
    """
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    path = keep(text.encode(), url.rpartition("/")[2])
    try:
        gcloud.run(write_words(str(path), url, generation))
    except GcloudError as error:
        if error.kind != "precondition":
            raise
        # A write whose answer was lost is refused when it is tried again.
        return read(url) == json.loads(text)
    return True


def keep(content: bytes, name: str) -> Path:
    """A file of this machine with that content, which it is known by: no two writers mean different things by it."""
    folder = cache.folder() / "tpu" / hashlib.sha256(content).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(content)
    os.replace(file.name, folder / name)
    return folder / name


def write_words(path: str, url: str, generation: str | None) -> list[str]:
    """The command that uploads a file; generation None: whatever is there."""
    condition = [] if generation is None else [f"--if-generation-match={generation}"]
    return ["gcloud", "storage", "cp", path, url, *condition]


def upload(path: str, url: str) -> None:
    """Uploads a file whose name tells its content, so that it may be there already.

    Raises:
      GcloudError: it cannot be written.
    """
    gcloud.run(write_words(path, url, None), timeout=1800)


def text_of(urls: Sequence[str]) -> str:
    """Objects one after the other."""
    return gcloud.run(["gcloud", "storage", "cat", *urls]) if urls else ""
