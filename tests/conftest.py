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

# Before anything initialises JAX. Tests keep their own cache of what can be made again, unless told of one.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as the command line sets it
os.environ.setdefault("T5X_LITE_CACHE", os.path.join(tempfile.gettempdir(), "t5x_lite_test_cache"))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# Tests of these files run the longest and begin first, so that the two processes of `make test` end together.
LONG = ["test_docs.py", "test_demo.py", "test_resume.py", "test_train.py", "test_bench.py", "test_train_on_tokens.py"]
# These compute much; the others mostly compile, and the compiler's optimisations would cost them more than they give.
# Those of test_infer.py are compared bit by bit with what processes of their own compute.
OPTIMISED = [
    "test_demo.py", "test_bench.py", "test_resume.py", "test_train_on_tokens.py", "test_infer.py", "test_startup.py",
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


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # Before fixtures of the session, which a fixture of the module would come after. A program that was compiled with
    # the other effort rounds otherwise, and JAX would find it in its cache.
    quick = item.path.name not in OPTIMISED
    if quick != jax.config.read("jax_disable_most_optimizations"):
        jax.config.update("jax_disable_most_optimizations", quick)
        jax.clear_caches()


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
