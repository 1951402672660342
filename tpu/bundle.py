"""The code of a job as one archive, the same bytes for the same files: this package, the lock, and what the job reads.

code/t5x_lite/...            the package, with configs, tasks and tpu inside, as a wheel has it
code/requirements.lock       what is installed on the VM, each file with its hash
work/...                     files of the working directory, by the paths that the command calls them
"""

import ast
import gzip
import hashlib
import importlib.machinery
import importlib.metadata
import io
import re
import sys
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import t5x_lite.errors
from t5x_lite.errors import UserError
from t5x_lite.tpu.spec import JobSpec

LOCK = Path(__file__).parent / "requirements.lock"

# Of the job's own files. Data belongs in the bucket.
_MOST_BYTES = 64 * 2**20

# What gin files name: other files, modules that they import, and the module of tasks.
_INCLUDE = re.compile(r"""^\s*include\s+['"]([^'"]+)['"]""", re.MULTILINE)
_IMPORT = re.compile(r"^\s*(?:import|from)\s+([A-Za-z_][\w.]*)", re.MULTILINE)
_TASKS = re.compile(r"""^\s*MIXTURE_OR_TASK_MODULE\s*=\s*['"]([\w.]+)['"]""", re.MULTILINE)

# Files that hold keys and passwords, by name or by what they begin with. The archive is stored in the bucket.
_SECRET = re.compile(r"\.env(\..*)?|\.netrc|id_(rsa|dsa|ecdsa|ed25519)|.*\.(pem|p12|pfx|key)|.*credentials.*\.json")
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")


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
    for name in values_of(job.command, "--gin_file"):
        _take_gin_file(name, folder, found)
    for module in _modules(job.command):
        if not _take_module(module, folder, found) and job.python is None:
            _check_is_there(module, folder)
    for name in job.include:
        path = _inside(name, folder, f"--include={name}")
        if not path.exists():
            raise UserError(f"--include={name} is not there", "there is no such file or folder", "correct --include")
        for file in _files_in(path) if path.is_dir() else [path]:
            found[file.relative_to(folder).as_posix()] = file
    for name, path in found.items():
        _check_may_go(name, path, folder)
    sizes = {name: path.stat().st_size for name, path in found.items()}
    if sum(sizes.values()) > _MOST_BYTES:
        largest = max(sizes, key=sizes.get)
        raise UserError(
            f"the job's own files are {sum(sizes.values()) / 2**20:.0f} MiB, of which {largest} is "
            f"{sizes[largest] / 2**20:.0f} MiB",
            f"at most {_MOST_BYTES // 2**20} MiB go with the code",
            "copy data to the bucket with `gcloud storage cp`, and name it by its gs:// address",
        )
    return found


def _files_in(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, without hidden ones and what Python leaves behind."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p == "__pycache__" or p[0] == "." for p in path.relative_to(folder).parts)
    ]


def _check_may_go(name: str, path: Path, folder: Path) -> None:
    """Refuses a file that is a link to elsewhere, or that looks like a key."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{name} is a link out of the working directory",
            "only files of the working directory go with the code",
            "copy what it points to here, or leave it out",
        )
    with open(path, "rb") as file:
        if _SECRET.fullmatch(path.name) or _KEY.search(file.read(2**16)):
            raise UserError(
                f"{name} looks like a secret",
                "what goes with the code is stored in the bucket",
                "leave it out of --include; let the job's service account read it from Secret Manager",
            )


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
    text = path.read_text(encoding="utf-8")
    for included in _INCLUDE.findall(text):
        _take_gin_file(included, folder, found)
    for module in _IMPORT.findall(text) + _TASKS.findall(text):
        _take_module(module, folder, found)


def _take_module(module: str, folder: Path, found: dict[str, Path]) -> bool:
    """Takes a module of the working directory, with the package that it is in and all that these import from there.

    Returns:
      Whether it is there.
    """
    top = module.split(".")[0]
    if not re.fullmatch(r"[A-Za-z_]\w*", top) or _is_everywhere(top):
        return False
    # As Python has it: a package, a file, a folder of files.
    file, package = folder / f"{top}.py", folder / top
    is_file = file.is_file() and not (package / "__init__.py").is_file()
    files = [file] if is_file else sorted(package.rglob("*.py"))
    for path in files:
        if (key := path.relative_to(folder).as_posix()) not in found:
            found[key] = path
            for imported in _imports_of(path):
                _take_module(imported, folder, found)
    return bool(files)


def _imports_of(path: Path) -> list[str]:
    """The modules that a Python file imports by their full names; what is no Python, the run says in its own words."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []
    found = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return found + [
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]


def _check_is_there(module: str, folder: Path) -> None:
    """Refuses a module of tasks that neither goes along nor is installed from the lock.

    Raises:
      UserError: it is nowhere, or on this machine alone.
    """
    top = module.split(".")[0]
    if _is_everywhere(top):
        return
    found = importlib.machinery.PathFinder.find_spec(top)
    if found is None:
        raise UserError(
            f"the module {module} is not there",
            f"there is no {top}.py and no folder {top} in {folder}, whose files go with the code",
            "correct --module, or change to the folder that holds it",
        )
    locked = {_normal(name) for name in re.findall(r"^([\w.-]+)(?:\[.*?\])?==", LOCK.read_text(), re.MULTILINE)}
    if not locked & {_normal(name) for name in importlib.metadata.packages_distributions().get(top, ())}:
        raise UserError(
            f"the module {module} is on this machine alone",
            f"it is found in {found.origin or next(iter(found.submodule_search_locations))}, and neither goes with the "
            f"code, as what lies in {folder} does, nor is installed from the lock",
            "change to the folder that holds it, or copy it here",
        )


def _is_everywhere(top: str) -> bool:
    return top == "t5x_lite" or top in sys.stdlib_module_names


def _normal(name: str) -> str:
    """A distribution's name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _inside(name: str, folder: Path, flag: str) -> Path:
    path = (folder / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise UserError(
            f"{flag} does not lie in the working directory by a relative path",
            "on the TPU the command runs in a copy of this directory's files",
            f"change to a folder that holds it, and name it from there; here is {folder}",
        )
    return folder / PurePosixPath(path.relative_to(folder.resolve()).as_posix())


def unpack(archive: bytes, folder: Path) -> None:
    """Lays the archive out as a TPU VM has it."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    (folder / "work").mkdir(exist_ok=True)


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
