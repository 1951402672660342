"""Installs t5x_lite: `pip install .` or, after the lock, `pip install --no-deps -e .`

The folders gin/, tasks/ and tpu/ stand at the top of the repository but install
inside the one import name, as t5x_lite.configs, t5x_lite.tasks and t5x_lite.tpu.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
PLACED = {"t5x_lite.configs": "gin", "t5x_lite.tasks": "tasks", "t5x_lite.tpu": "tpu"}

# Beam writes TFRecord files only beside a CRC-32C; its own extra tfrecord has no wheel and is slower.
BEAM = ["apache-beam>=2.70,<3", "google-crc32c>=1.5,<2"]


def packages():
    """The package tree, with the three top-level folders under t5x_lite."""
    names = find_packages(include=["t5x_lite", "t5x_lite.*"])
    for name, folder in PLACED.items():
        names += [name] + [f"{name}.{sub}" for sub in find_packages(folder)]
    return names


def version():
    line = next(x for x in (HERE / "t5x_lite/__init__.py").read_text().splitlines() if x.startswith("__version__"))
    return line.split('"')[1]


setup(
    name="t5x_lite",
    version=version(),
    description="T5 text-to-text pretraining, fine-tuning and evaluation with JAX, from gin files",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=packages(),
    package_dir=PLACED,
    package_data={"t5x_lite.configs": ["**/*.gin"], "t5x_lite.tpu": ["requirements.lock", "*/*.yaml"]},
    include_package_data=False,
    entry_points={"console_scripts": ["t5x_lite=t5x_lite.cli:main"]},
    install_requires=[
        "jax>=0.10,<0.12",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "tensorflow-datasets>=4.9.9,<5",
        "seqio>=0.0.20,<0.1",
        # 0.2.3 needs protobuf 7, which apache-beam (extras c4 and cache) excludes.
        "sentencepiece>=0.2.0,<0.2.3",
        "gin-config>=0.5.0,<0.6",
        "safetensors>=0.5,<1",
        "tensorboard>=2.19,<3",
        "tqdm>=4.66,<5",
        "etils[epath]>=1.10",
        "numpy>=1.26,<3",
        # What orbax-checkpoint, jax and flax stand on, where convert reads and writes checkpoints part by part.
        "tensorstore>=0.1.71",
        "ml_dtypes>=0.5",
        "msgpack>=1",
        # Parquet files as a text source.
        "pyarrow>=16",
        # seqio imports it without declaring it.
        "importlib_resources>=6",
        # Metrics. The first two decide scores: BLEU and ROUGE are what these versions compute.
        "sacrebleu>=2.3,<3",
        "rouge-score>=0.1.2,<0.2",
        "scikit-learn>=1.5,<2",
        # 1.13 is the first for numpy 2.
        "scipy>=1.13,<2",
        "editdistance>=0.8,<1",
        # Names of languages in the prefix of translation tasks.
        "babel>=2.14,<3",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10,<0.12"],
        "cuda": ["jax[cuda12]>=0.10,<0.12"],
        "c4": BEAM,
        "cache": BEAM,
        "wandb": ["wandb>=0.19,<1"],
        "hf": ["transformers>=4.57,<6", "torch>=2.4,<3"],
        "test": ["pytest>=8,<10", "pytest-xdist>=3.6,<4", "ruff>=0.12,<1", *BEAM],
    },
)
