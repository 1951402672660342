"""Jobs of several hosts, and tasks of one's own for the verbs that take --module."""

from pathlib import Path

import pytest

from t5x_lite import cli


@pytest.fixture(scope="module")
def host_flags(train_flags, caches):
    """A function: model directory, changed macros -> the command line of a short run that needs no TensorFlow."""

    def flags(directory, **changed):
        macros = {
            "TOKENS_DIR": caches / "text_span_corruption", "DATA_SHARDS": 4, "TRAIN_STEPS": 8, "LOG_PERIOD": 1,
            "EVAL_PERIOD": 4, "HOST_TIMEOUT": 10,
        }  # fmt: skip
        return train_flags(directory, **macros | changed)

    return flags


@pytest.fixture(scope="module")
def write_module(tmp_path_factory):
    """A function: name, source -> a module in the working directory, which is a new one for each file of tests."""
    folder = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield lambda name, source: (folder / f"{name}.py").write_text(source)


TWO_PARTS = """
import seqio
import tensorflow as tf
from t5x_lite.tasks import vocabulary

def split_in_two(lines):
    return lines.map(lambda line: dict(zip(("inputs", "targets"), tf.unstack(tf.strings.split(line, ":"), 2))))

def accuracy(targets, predictions):
    return {"accuracy": 100 * sum(t == p for t, p in zip(targets, predictions)) / len(targets)}

seqio.TaskRegistry.add(
    "two_parts",
    source=seqio.TextLineDataSource({"train": "two_parts.txt", "validation": "two_parts.txt"}),
    preprocessors=[split_in_two, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
    output_features={name: seqio.Feature(vocabulary.chosen()) for name in ("inputs", "targets")},
    metric_fns=[accuracy],
)
seqio.MixtureRegistry.add("two_parts_alone", [("two_parts", 1.0)])
"""


@pytest.fixture(scope="module")
def two_parts(write_module):
    """The name of a module with a task of nine lines in the working directory, and a mixture of it alone."""
    write_module("tasks_of_two_parts", TWO_PARTS)
    Path("two_parts.txt").write_text("".join(f"land {k}:city {k}\n" for k in range(9)))
    return "tasks_of_two_parts"


def run(capsys, *argv, status=0):
    """What a command prints, or says where it is to end with another status."""
    assert cli.run(list(argv)) == status, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.err if status else captured.out
