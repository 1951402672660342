"""The code of a job as one archive, the same bytes for the same files: this package, the lock, and what the job reads.

code/t5x_lite/...            the package, with configs, tasks and tpu inside, as a wheel has it
code/requirements.lock       what is installed on the VM, each file with its hash
work/...                     files of the working directory, by the paths that the command calls them
"""

import gzip
import hashlib
import importlib.machinery
import io
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import t5x_lite.errors
from t5x_lite.errors import UserError
from t5x_lite.tpu.spec import JobSpec

LOCK = Path(__file__).parent / "requirements.lock"

# Of the job's own files. Data belongs in the bucket.
_MOST_BYTES = 64 * 2**20

_INCLUDE = re.compile(r"""^\s*include\s+['"]([^'"]+)['"]""", re.MULTILINE)


def build(job: JobSpec, folder: Path) -> tuple[bytes, str]:
    """The archive of a job and its SHA-256.

    Args:
      job: whose files are taken.
      folder: the working directory.

    Raises:
      UserError: a file is missing, or lies outside the working directory.
    """
    files = {f"code/{name}": path for name, path in _package()}
    files["code/requirements.lock"] = LOCK
    files |= {f"work/{name}": path for name, path in own_files(job, folder).items()}
    archive = _archive(files)
    return archive, hashlib.sha256(archive).hexdigest()


def _package() -> Iterable[tuple[str, Path]]:
    """Every file of the package with its place in a wheel, wherever it is installed or checked out."""
    home = Path(t5x_lite.__file__).parent
    parts = {"": home} if (home / "tpu").is_dir() else {"": home, "tasks": home.parent / "tasks"}
    if not (home / "tpu").is_dir():
        parts |= {"configs": home.parent / "gin", "tpu": home.parent / "tpu"}
    for place, source in parts.items():
        for path in source.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".pyc", ".so"):
                yield str(PurePosixPath("t5x_lite", place, *path.relative_to(source).parts)), path


def own_files(job: JobSpec, folder: Path) -> dict[str, Path]:
    """The files of the working directory that the job reads, by their paths in it.

    Raises:
      UserError: one is missing, lies outside, or they are too large together.
    """
    found: dict[str, Path] = {}
    for name in _gin_files(job.command):
        _take_gin_file(name, folder, found)
    for module in _modules(job.command):
        _take_module(module, folder, found)
    for name in job.include:
        path = _inside(name, folder, f"--include={name}")
        if not path.exists():
            raise UserError(f"--include={name} is not there", "there is no such file or folder", "correct --include")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                found[file.relative_to(folder).as_posix()] = file
    size = sum(path.stat().st_size for path in found.values())
    if size > _MOST_BYTES:
        raise UserError(
            f"the job's own files are {size / 2**20:.0f} MiB",
            f"at most {_MOST_BYTES // 2**20} MiB go with the code",
            "copy data to the bucket with `gcloud storage cp`, and name it by its gs:// address",
        )
    return found


def values_of(command: Sequence[str], *flags: str) -> list[str]:
    """The values of flags in a command, written --flag=value or --flag value."""
    values = []
    for k, word in enumerate(command):
        for flag in flags:
            if word.startswith(f"{flag}="):
                values.append(word.removeprefix(f"{flag}="))
            elif word == flag and k + 1 < len(command):
                values.append(command[k + 1])
    return values


def _gin_files(command: Sequence[str]) -> list[str]:
    return values_of(command, "--gin_file")


def _modules(command: Sequence[str]) -> list[str]:
    found = values_of(command, "--module", "--gin.MIXTURE_OR_TASK_MODULE")
    return [module.strip("'\"") for module in found]


def _take_gin_file(name: str, folder: Path, found: dict[str, Path]) -> None:
    """Takes a gin file of the working directory and those that it includes; shipped names stay names."""
    if "://" in name or not (folder / name).is_file():
        return  # a shipped file, or one that the dry run has refused
    path = _inside(name, folder, f"--gin_file={name}")
    key = path.relative_to(folder).as_posix()
    if key in found:
        return
    found[key] = path
    for included in _INCLUDE.findall(path.read_text(encoding="utf-8")):
        _take_gin_file(included, folder, found)


def _take_module(module: str, folder: Path, found: dict[str, Path]) -> None:
    """Takes a module of the working directory, with the package that it is in; installed ones are none of ours.

    Raises:
      UserError: it is nowhere.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module):
        return
    top = module.split(".")[0]
    files = [folder / f"{top}.py"] if (folder / f"{top}.py").is_file() else sorted((folder / top).rglob("*.py"))
    if not files and importlib.machinery.PathFinder.find_spec(top) is None:
        raise UserError(
            f"the module {module} is not there",
            f"there is no {top}.py and no folder {top} in {folder}, whose files go with the code",
            "correct --module, or change to the folder that holds it",
        )
    for path in files:
        found[path.relative_to(folder).as_posix()] = path


def _inside(name: str, folder: Path, flag: str) -> Path:
    path = (folder / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise UserError(
            f"{flag} does not lie in the working directory by a relative path",
            "on the TPU the command runs in a copy of this directory's files",
            f"change to a folder that holds it, and name it from there; here is {folder}",
        )
    return folder / PurePosixPath(path.relative_to(folder.resolve()).as_posix())


def _archive(files: dict[str, Path]) -> bytes:
    """A tar.gz without times, owners and modes of this machine."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(files):
            content = files[name].read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), compresslevel=6, mtime=0)
