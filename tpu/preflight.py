"""What can be known of a job before anything is asked for: its dry run on the slice, and what it reads and writes."""

import ast
import fnmatch
import os
import re
import subprocess
import sys
from pathlib import Path

from t5x_lite.errors import UserError
from t5x_lite.tpu import bundle
from t5x_lite.tpu.spec import JobSpec

# Macros that name what is read. "bytes" and "demo" are vocabularies without a file.
_READ = (
    "VOCABULARY", "DATA_GLOB", "VALIDATION_GLOB", "DATA_DIR", "TASK_CACHE_DIR", "TOKENS_DIR", "INITIAL_CHECKPOINT_PATH",
)  # fmt: skip

# A macro bound to a text in what the dry run prints, on one line or on several.
_BINDING = r"""^{} = (?:\\\n\s*)?(\(?\s*(?:(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")\s*)+\)?)$"""


def dry_run_words(job: JobSpec) -> list[str]:
    """The command that lays the job out on its slices, on this machine."""
    slices = [f"--num_slices={job.num_slices}"] if job.num_slices > 1 else []
    command = [word for word in job.command if word != "--dry_run"]
    return [sys.executable, "-m", "t5x_lite", *command, "--dry_run", f"--topology={job.accelerator}", *slices]


def dry_run(job: JobSpec, folder: Path) -> str:
    """Lays a training job out on its slices and returns what that prints: chips against mesh, batch and gin.

    Args:
      job: the job.
      folder: its code, unpacked: what is not in there is not on a TPU VM either.

    Raises:
      UserError: the job is refused, in its own words.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(folder / "code")}
    done = subprocess.run(
        dry_run_words(job), cwd=folder / "work", env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return done.stdout.decode(errors="replace")
    said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
    refused = next((line for line in said if line.startswith("t5x_lite: error: ")), said[-1])
    raise UserError(
        f"the job cannot run on {job.num_slices} x {job.accelerator}: {refused.removeprefix('t5x_lite: error: ')}",
        "its dry run says so, with the files that go with the code, and nothing has been asked for",
        "mend the command behind --, name a file of this folder that it lacks with --include, or choose another "
        "--accelerator",
    )


def check_flags(job: JobSpec, folder: Path) -> None:
    """Refuses another verb than training that would read or write files which are not where it runs.

    Raises:
      UserError: a path is one of this machine and does not go with the code.
    """
    own = bundle.own_files(job, folder)
    for flag in ("--checkpoint", "--output", "--output_dir"):
        for value in bundle.values_of(job.command, flag):
            if "://" not in value:
                raise UserError(
                    f"{flag}={value} is not in a bucket",
                    "a TPU VM does not have this machine's disk, and its own goes with it",
                    f"write {flag}=gs://...",
                )
    for value in bundle.values_of(job.command, "--input"):
        if "://" not in value and os.path.normpath(value) not in own:
            raise UserError(
                f"--input={value} is on this machine",
                "a TPU VM reads what is in a bucket, or what goes with the code by a relative path",
                f"copy it to the bucket and write --input=gs://..., or where it is small, add --include={value}",
            )


def check_files(job: JobSpec, printed: str, folder: Path, unpacked: Path) -> str:
    """Refuses a job that would read or write files which are not where it runs.

    Args:
      job: a training job.
      printed: by its dry run.
      folder: the working directory.
      unpacked: the folder of its code that the dry run was in.

    Returns:
      MODEL_DIR; the job's own folder in the bucket where none is bound.

    Raises:
      UserError: a path is one of this machine and does not go with the code.
    """
    own = bundle.own_files(job, folder)
    for macro in _READ:
        for value in (bound(printed, macro) or "").split(","):
            if value and "://" not in value and value not in ("bytes", "demo"):
                _check_goes_along(macro, value, own, folder, unpacked / "work")
    model_dir = bound(printed, "MODEL_DIR")
    if model_dir is None:
        return f"{job.url}/model"
    if not re.fullmatch(r"gs://[^\s,*?\[\]]+", model_dir):
        raise UserError(
            f"MODEL_DIR={model_dir} is not in a bucket",
            "the disk of a TPU VM goes with it",
            f"set --gin.MODEL_DIR=gs://..., or leave it out for {job.url}/model",
        )
    return model_dir


def _check_goes_along(macro: str, value: str, own: dict[str, Path], folder: Path, work: Path) -> None:
    is_relative = Path(value).is_relative_to(work)
    relative = os.path.relpath(value, work if is_relative else folder)
    taken = any(fnmatch.fnmatchcase(name, relative) or name.startswith(f"{relative}/") for name in own)
    if not (taken and is_relative):
        raise UserError(
            f"{macro}={value} is on this machine",
            "a TPU VM reads what is in a bucket, or what goes with the code by a relative path",
            f"copy it to the bucket and set --gin.{macro}=gs://..., or where it is small: --include={relative} "
            f"--gin.{macro}={relative}",
        )


def bound(printed: str, macro: str) -> str | None:
    """The text that a printed gin configuration binds to a macro; None where it is none."""
    found = re.search(_BINDING.format(macro), printed, re.MULTILINE)
    return None if found is None else ast.literal_eval(found[1].strip())
