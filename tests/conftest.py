"""CPU devices for every test, and a small corpus with a vocabulary of its own.

Tests of whole commands share two devices: eight on two cores hinder each other. Those marked `sharded` lay programs
out over eight and have a run of their own, `pytest --devices=8 -m sharded` (`make test` does both).
"""

import gzip
import json
import os
import shutil
import tempfile
from pathlib import Path

# Programs run a few steps each here, and XLA would take longer to optimise them than it would save: most of what it
# does for a CPU is switched off, and so are its newer emitters of loops, whose code takes twice as long to compile.
QUICK = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters "
    "--xla_cpu_parallel_codegen_split_count=1",
}
# Before anything initialises JAX. Tests keep their own cache of what can be made again, unless told of one.
os.environ |= QUICK | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}  # the latter as the command line sets it
os.environ.setdefault("T5X_LITE_CACHE", os.path.join(tempfile.gettempdir(), "t5x_lite_test_cache"))


def as_shipped() -> dict[str, str]:
    """The environment of a process that compiles its programs as those of users do."""
    return {name: value for name, value in os.environ.items() if name not in QUICK}


import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# Tests of these files run the longest and begin first, so that the processes of `make test` end together.
LONG = [
    "test_docs.py", "test_multi_host_endings.py", "test_multi_host.py", "test_processes.py", "test_startup.py",
    "test_demo.py", "test_resume.py", "test_infer.py", "test_architectures.py", "test_train.py", "test_bench.py",
    "test_train_on_tokens.py", "test_step.py", "test_decoding.py",
]  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--devices", type=int, default=2, help="CPU devices of each process; tests marked sharded need 8")


def pytest_configure(config):
    jax.config.update("jax_num_cpu_devices", config.getoption("devices"))


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    if config.getoption("devices") < 8:
        for item in items:
            if item.get_closest_marker("sharded"):
                item.add_marker(pytest.mark.skip(reason="it needs --devices=8"))


# Rows of the embedding table of the tests' models: 400 pieces, 100 sentinels, and some unused.
TABLE = 512


@pytest.fixture(scope="session")
def references() -> Path:
    """What other implementations gave, with the scripts that asked them."""
    return Path(__file__).parent / "references"


def documents(count, seed):
    """Sentences of invented words, frequent ones short: enough structure for a vocabulary and a falling loss."""
    rng = np.random.default_rng(seed)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    lexicon = np.random.default_rng(7)  # the same words whatever the seed of the documents
    words = ["".join(lexicon.choice(syllables, 1 + i // 60)) for i in range(240)]
    likely = 1 / np.arange(1, len(words) + 1)
    likely /= likely.sum()

    def sentence():
        text = " ".join(rng.choice(words, rng.integers(4, 14), p=likely))
        return text.capitalize() + "."

    return [" ".join(sentence() for _ in range(rng.integers(3, 12))) for _ in range(count)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A folder with train-0.json.gz to train-3.json.gz (50 documents each), validation.jsonl and vocabulary.model."""
    from t5x_lite.tasks import vocabulary

    folder = tmp_path_factory.mktemp("corpus")
    texts = documents(200, seed=1)
    for k in range(4):
        with gzip.open(folder / f"train-{k}.json.gz", "wt") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts[k::4])
    with (folder / "validation.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents(40, seed=2))
    vocabulary.train(sorted(map(str, folder.glob("train-*"))), 400, folder / "vocabulary.model")
    return folder


@pytest.fixture(scope="session")
def caches(corpus, tmp_path_factory) -> Path:
    """A folder of caches with that of text_span_corruption over `corpus`, 4 files a split."""
    from t5x_lite import cli

    folder = tmp_path_factory.mktemp("caches")
    globs = f"--gin.DATA_GLOB={corpus}/train-*.json.gz", f"--gin.VALIDATION_GLOB={corpus}/validation.jsonl"
    flags = [f"--output={folder}", "--shards=4", f"--gin.VOCABULARY={corpus}/vocabulary.model", *globs]
    assert cli.run(["tasks", "cache", "text_span_corruption", *flags]) == 0
    return folder


@pytest.fixture(scope="session")
def train_flags(corpus):
    """A function: model directory, changed macros -> the command line of a short run of a tiny T5 1.1."""

    def flags(model_dir, **changed) -> list[str]:
        macros = {
            "MIXTURE_OR_TASK_NAME": "text_span_corruption",
            "DATA_GLOB": corpus / "train-*.json.gz",
            "VALIDATION_GLOB": corpus / "validation.jsonl",
            "VOCABULARY": corpus / "vocabulary.model",
            "MODEL_DIR": model_dir,
            "TASK_FEATURE_LENGTHS": {"inputs": 40, "targets": 16},
            "architecture.Architecture.vocab_size": TABLE,
            "architecture.Architecture.dtype": "float32",
            "DROPOUT_RATE": 0.1,
            "BATCH_SIZE": 8,
            "DATA_SHARDS": 2,
            "TRAIN_STEPS": 12,
            "LOG_PERIOD": 2,
            "SAVE_PERIOD": 4,
            "EVAL_PERIOD": 6,
            "EVAL_BATCHES": 2,
        } | changed
        files = ["--gin_file=models/t5_1_1_tiny.gin", "--gin_file=runs/pretrain.gin"]
        return ["train", *files, *(f"--gin.{name}={value}" for name, value in macros.items())]

    return flags


@pytest.fixture(scope="session")
def trained(train_flags, tmp_path_factory) -> Path:
    """The model directory of a finished run of 12 steps, not to be changed."""
    from t5x_lite import cli

    folder = tmp_path_factory.mktemp("trained") / "model"
    assert cli.run(train_flags(folder)) == 0
    return folder


@pytest.fixture
def trained_copy(trained, tmp_path) -> Path:
    """A copy of `trained` that a test may go on with."""
    return Path(shutil.copytree(trained, tmp_path / "model"))
