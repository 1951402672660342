"""The shape of the source tree, by reading its imports, and what a command loads, by asking a fresh interpreter."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite import cli

ROOT = Path(__file__).parents[1]

# Standing at the top of the repository, each folder is a part of the one package.
PARTS = {"t5x_lite": "t5x_lite", "tasks": "t5x_lite.tasks", "tpu": "t5x_lite.tpu"}

# What each part may import of the package, beyond itself. Only verbs, and the modules at the top that they share,
# put parts together.
MAY_IMPORT = {
    "data": {"errors"},
    "model": {"errors", "parallel"},
    "parallel": {"errors", "cache"},
    "train": {"errors", "data", "parallel"},
    "interop": {"errors", "model", "parallel"},
    "tasks": {"errors", "cache"},
    "tpu": {"errors", "cache"},
    "errors": set(),
    "config": {"errors", "paths"},
    "paths": set(),
    "cache": set(),
    "job": {"errors", "model", "parallel"},
    "task": {"errors", "job", "data", "tasks"},
    "output": {"errors", "train"},
    "resumable": {"errors", "output", "train"},
    "interruption": {"errors", "train"},
    "progress": {"train"},
    "completion": {"errors", "program", "data", "model", "parallel"},
    "validation": {"job", "program", "task_metrics", "data", "parallel", "train"},
    "task_metrics": {
        "errors", "job", "program", "output", "completion", "data", "model", "parallel", "train", "tasks",
    },
    "program": {"errors", "job", "model", "parallel", "data", "train"},
    "parameter_table": {"program"},
    "memory": {"job", "program", "parameter_table", "parallel", "train"},
    "model_dir": {"errors", "config", "job", "program", "output", "parallel", "train"},
    "cli": {"errors", "cli_tpu"},
    "cli_tpu": set(),
    "verbs": {
        "errors", "config", "job", "program", "output", "task_metrics", "model_dir", "task", "validation",
        "resumable", "interruption", "progress", "completion", "parameter_table", "memory",
        "data", "model", "parallel", "train", "interop", "tasks", "tpu",
    },
    "__main__": {"cli"},
    "__init__": set(),
}  # fmt: skip

# The verbs that are made of others, and the verbs that fill several modules.
COMPOSED = {
    "demo": {"train", "infer", "report"},
    "train": {"dry_run"},
    "dry_run": {"dry_run_remedies"},
    "report": {"page", "report_chart"},
    "precompile": {"precompile_compare", "precompile_page", "precompile_text", "precompile_warnings"},
    "precompile_compare": {"precompile", "precompile_text"},
    "precompile_page": {"page", "precompile_text"},
    "infer": {"infer_task"},
    "evaluate": {"evaluate_steps"},
    "score": {"infer"},
    "tasks_list": {"tasks"},
    "tasks_show": {"tasks"},
    "tasks_check": {"tasks", "tasks_finding", "tasks_metrics"},
    "tasks_cache": {"tasks"},
    "tasks_metrics": {"tasks", "tasks_finding"},
    "bench_train": {"bench", "bench_huggingface"},
    "bench_decode": {"bench", "bench_huggingface", "bench_train"},
    "bench_huggingface": {"bench_train"},
    "bench_startup": {"bench"},
    "bench_input": {"bench", "bench_input_t5", "bench_train"},
    "bench_input_t5": {"bench_input", "bench_train"},
}

# Libraries that a part does without, so that it can be read and used alone. `gin` has its own test.
WITHOUT = {
    "data": {"flax", "optax", "orbax"},
    "model": {"optax", "orbax", "seqio", "tensorflow", "sentencepiece", "etils"},
    "parallel": {"flax", "optax", "orbax", "seqio", "tensorflow"},
    "train": {"seqio", "sentencepiece"},
    "interop": {"seqio", "tensorflow", "torch", "transformers"},
    "tasks": {"jax", "flax", "optax", "orbax"},
}


def modules():
    """(dotted name, path) of every module."""
    for folder, package in PARTS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts]), path


MODULES = dict(modules())


def part(name: str) -> str:
    """The part of a dotted name: "train" of "t5x_lite.train.loop"; "" of the package itself."""
    return name.split(".")[1] if "." in name else ""


def imports(path: Path):
    """(dotted name, inside a function) of everything that a file imports, type checking included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) in inside


def package_imports(path: Path):
    return [(name, lazy) for name, lazy in imports(path) if name.split(".")[0] == "t5x_lite"]


@pytest.mark.parametrize("name", MODULES)
def test_dependencies_point_one_way(name):
    own = part(name)
    allowed = MAY_IMPORT[own] | {own}
    of_package = {imported for imported, _ in package_imports(MODULES[name])} - {"t5x_lite.__version__"}
    assert not {i for i in of_package if part(i) not in allowed}


@pytest.mark.parametrize("name", MODULES)
def test_parts_do_without_each_others_libraries(name):
    used = {imported.split(".")[0] for imported, _ in imports(MODULES[name])}
    assert not used & WITHOUT.get(part(name), set())
    assert "gin" not in used or name == "t5x_lite.config"
    # Under these names a module would be found from the repository root alone.
    assert not used & {"tasks", "tpu", "configs", "tests"}


@pytest.mark.parametrize("name", [n for n in MODULES if part(n) == "tpu"])
def test_tpu_needs_the_standard_library_only(name):
    used = {imported.split(".")[0] for imported, _ in imports(MODULES[name])}
    assert used <= set(sys.stdlib_module_names) | {"t5x_lite"}


@pytest.mark.parametrize("name", [n for n in MODULES if part(n) not in ("tasks", "tpu")])
def test_tasks_tpu_and_tensorflow_are_imported_inside_functions(name):
    at_the_top = {imported for imported, lazy in imports(MODULES[name]) if not lazy}
    assert not {i for i in at_the_top if i.split(".")[0] in ("tensorflow", "seqio", "tensorflow_datasets")}
    assert not {i for i in at_the_top if i.startswith(("t5x_lite.tasks", "t5x_lite.tpu"))}


def test_nothing_but_verbs_imports_a_verb_and_cli_names_them_all():
    importers = {n for n, path in MODULES.items() if any(part(i) == "verbs" for i, _ in package_imports(path))}
    assert {part(name) for name in importers} <= {"verbs"}
    verbs = {p.get_default("verb") for p in _subparsers(cli.parser())}
    assert {f"t5x_lite.verbs.{verb}" for verb in verbs} <= set(MODULES)


def test_a_verb_is_made_of_other_verbs_only_where_it_is_known():
    composed = {}
    for name, path in MODULES.items():
        others = {i.split(".")[2] for i, _ in package_imports(path) if part(i) == "verbs" and i.count(".") > 1}
        if part(name) == "verbs" and (others := others - {name.split(".")[2]}):
            composed[name.split(".")[2]] = others
    assert composed == COMPOSED


def _subparsers(parser):
    return next(list(a.choices.values()) for a in parser._actions if a.dest == "==SUPPRESS==" and a.choices)


def test_names_and_sizes():
    names = {piece for name in MODULES for piece in name.split(".")}
    assert not names & {"utils", "util", "common", "helpers", "misc"}
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert not {name: count for name, count in lines.items() if count > 500}


def test_every_module_says_what_it_is_for():
    assert not {n for n, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))}


def test_user_input_is_never_asserted():
    asserting = {
        name for name, path in MODULES.items()
        if any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    }  # fmt: skip
    assert not asserting


# What commands load. Each list of commands runs in one fresh interpreter, which then prints the modules that it has.
RUNNER = """
import json, sys
from t5x_lite import cli
for command in json.loads(sys.argv[1]):
    try:
        status = cli.run(command)
    except SystemExit as done:  # --help
        status = done.code
    if status:
        sys.exit(status)
print("\\nLOADED", *{name.split(".")[0] for name in sys.modules})
"""

CONFIG = ["--gin_file=models/t5_1_1_small.gin", "--gin_file=runs/pretrain.gin", "--gin.TRAIN_STEPS=7"]


def loaded_by(folder: Path, *commands: list[str]) -> set[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(commands)],
        capture_output=True, text=True, cwd=folder, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED")[2].split())


def test_help_loads_neither_jax_nor_tensorflow(tmp_path):
    helps = [["--help"], [], ["--version"], ["train", "--help"], ["infer", "--help"], ["bench", "--help"]]
    of_tpu = "--accelerator=v5litepod-8 --zone=us-west4-a --project=my-project --bucket=gs://my-bucket --dry_run"
    helps += [
        ["tpu", "launch", "--help"],
        ["tpu", "launch", "--name=a", *of_tpu.split(), "--", "eval", "--checkpoint=gs://b/m"],
    ]
    loaded = loaded_by(tmp_path, *helps)
    assert not loaded & {"jax", "jaxlib", "numpy", "gin", "tensorflow", "seqio"}


def test_dry_runs_and_configurations_load_no_tensorflow(tmp_path):
    loaded = loaded_by(tmp_path, ["config", *CONFIG], ["train", "--dry_run", "--topology=v5e:4x4", *CONFIG])
    assert "jax" in loaded
    assert not loaded & {"tensorflow", "seqio", "tensorflow_datasets"}


def test_converting_and_completing_load_no_tensorflow(tmp_path):
    source = ROOT / "tests/references/hf_t5_1_1"
    loaded = loaded_by(
        tmp_path,
        ["convert", "--from=hf", f"--input={source}", "--output=model"],
        ["infer", "--checkpoint=model", "--text=abc", "--max_decode_length=2", "--gin.VOCABULARY=bytes"],
    )
    assert "orbax" in loaded
    assert not loaded & {"tensorflow", "seqio", "tensorflow_datasets"}


def test_training_a_vocabulary_loads_neither_jax_nor_tensorflow(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(f"line {n} of words, {n * n} in all" for n in range(200)))
    loaded = loaded_by(tmp_path, ["vocab", "train", "--input=*.txt", "--size=60", "--output=v.model"])
    assert (tmp_path / "v.model").stat().st_size
    assert not loaded & {"jax", "tensorflow", "seqio", "gin"}
