"""The same package from a wheel, an editable install and a bare checkout, inside and outside the repository.

Everything is installed from a copy of the sources into light environments that see
this one's packages, so that nothing is downloaded and this installation stays as it is.
"""

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ["t5x_lite", "gin", "tasks", "tpu", "setup.py", "pyproject.toml", "README.md", "LICENSE"]

# What must hold wherever the package comes from: the first argument is that folder, the others are a command.
PROBE = """
import sys
from pathlib import Path
import gin, t5x_lite, t5x_lite.tasks, t5x_lite.tpu.hardware
from t5x_lite import cli, config

assert hasattr(gin, "configurable"), f"gin is {gin}"
home = Path(sys.argv[1])
assert Path(t5x_lite.__file__).is_relative_to(home), t5x_lite.__file__
shipped = config.root()
assert (shipped / "runs/pretrain.gin").is_file(), shipped
assert not [name for name in ("tasks", "tpu", "configs") if name in sys.modules]
sys.exit(cli.run(sys.argv[2:]))
"""

CONFIG = ["config", "--gin_file=models/t5_1_1_small.gin", "--gin_file=runs/pretrain.gin", "--gin.TRAIN_STEPS=7"]
CASES = ["wheel-inside", "wheel-outside", "editable-inside", "editable-outside", "bare-inside"]


def run(*command, **options):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, check=False, **options
    )


def pip(python, *arguments):
    done = run(
        python, "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments, "--no-deps", "--no-index",
        "--no-build-isolation",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the sources, so that no build touches the checkout."""
    copy = tmp_path_factory.mktemp("repository")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # From another copy: setuptools leaves a build folder beside setup.py.
    source = folder / "source"
    shutil.copytree(repository, source)
    pip(sys.executable, "wheel", source, "--wheel-dir", folder)
    [path] = folder.glob("*.whl")
    return path


def environment(folder: Path) -> Path:
    """A virtual environment that sees the packages of this one; returns its Python."""
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    # The .pth files of the folders named here are not read, so this installation of t5x_lite stays out of it.
    (packages / "here.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin/python"


@pytest.fixture(scope="module")
def pythons(repository, wheel, tmp_path_factory):
    """A Python for each way to install."""
    folder = tmp_path_factory.mktemp("environments")
    found = {kind: environment(folder / kind) for kind in ("wheel", "editable", "bare")}
    pip(found["wheel"], "install", "--ignore-installed", wheel)
    pip(found["editable"], "install", "--ignore-installed", "--editable", repository)
    return found


@pytest.mark.parametrize("case", CASES)
def test_imports_and_runs(case, repository, pythons, tmp_path):
    kind, where = case.split("-")
    python, cwd = pythons[kind], repository if where == "inside" else tmp_path
    # Standing in the repository, `python -c` takes the package there; the console script takes the installed one.
    home = repository if where == "inside" or kind == "editable" else python.parent.parent
    done = run(python, "-c", PROBE, home, *CONFIG, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "TRAIN_STEPS = 7" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("case", [c for c in CASES if "bare" not in c])
def test_the_command_is_installed(case, repository, pythons, tmp_path):
    kind, where = case.split("-")
    done = run(pythons[kind].with_name("t5x_lite"), *CONFIG, cwd=repository if where == "inside" else tmp_path)
    assert done.returncode == 0, done.stderr
    assert "architecture.Architecture.embed_dim = 512" in done.stdout


def test_a_wheel_is_used_from_within_the_repository(repository, pythons):
    """With the safe path, as for a script, the wheel's package wins and finds its own folders."""
    python = pythons["wheel"]
    done = run(python, "-P", "-c", PROBE, python.parent.parent, *CONFIG, cwd=repository)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["tasks", "tpu"])
def test_a_bare_name_is_refused(name, repository, pythons):
    """Under a second name each seqio task would be registered twice."""
    done = run(pythons["bare"], "-c", f"import {name}", cwd=repository)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: the package is imported as '{name}'; its name is t5x_lite.{name}"
    )


def test_a_wheel_holds_the_gin_files_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"t5x_lite/configs/{p.relative_to(ROOT / 'gin')}" for p in (ROOT / "gin").rglob("*.gin")}
    assert shipped and shipped <= names
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "t5x_lite").rglob("*.py")}
    modules |= {f"t5x_lite/{p.relative_to(ROOT)}" for f in ("tasks", "tpu") for p in (ROOT / f).rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    assert {name.split("/")[0] for name in names} == {
        "t5x_lite",
        next(n for n in names if "dist-info" in n).split("/")[0],
    }
    assert any(name.endswith("/LICENSE") for name in names)


def test_no_python_among_the_gin_files():
    """With an __init__.py there, `import gin` would find our folder from the repository root."""
    assert [p for p in (ROOT / "gin").rglob("*") if p.is_file() and p.suffix != ".gin"] == []
