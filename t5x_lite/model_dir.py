"""A model directory, read back: its job, its vocabulary and the parameters of one checkpoint.

MODEL_DIR/config.gin         the resolved configuration, re-runnable as it is
MODEL_DIR/vocabulary.model   a copy of the SentencePiece model
MODEL_DIR/checkpoints/STEP/  see train/checkpoint.py
MODEL_DIR/metrics.jsonl, events.out.tfevents.*, eval/, report.html
MODEL_DIR/DONE               once TRAIN_STEPS is committed
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence

import jax
from etils import epath

from t5x_lite import config
from t5x_lite.errors import UserError
from t5x_lite.job import NOT_TRAINING, Job
from t5x_lite.output import is_remote
from t5x_lite.parallel import start
from t5x_lite.parallel.partition import batch_divisor
from t5x_lite.program import Program, lay_out
from t5x_lite.train import checkpoint

CONFIG = "config.gin"
VOCABULARY = "vocabulary.model"
DONE = "DONE"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A model that is ready to compute.

    Args:
      job: as trained, with the overrides given now; its vocabulary is the directory's copy.
      directory: the model directory.
      step: of the checkpoint.
      program: the model laid out on this machine's devices.
      params: its parameters.
    """

    job: Job
    directory: epath.Path
    step: int
    program: Program
    params: dict

    def rows(self, wanted: int) -> int:
        """The least batch of at least `wanted` rows that divides over the devices."""
        parts = batch_divisor(self.program.mesh, self.program.rules)
        return -(-wanted // parts) * parts

    def place(self, array) -> jax.Array:
        """A [rows, length] array onto the devices."""
        return jax.device_put(array, self.program.batch_sharding)


@contextlib.contextmanager
def restored(reference: str, gin_files: Sequence[str], bindings: Sequence[str]) -> Iterator[Restored]:
    """Reads a checkpoint; within the context its mesh is the current one.

    The model is laid out data parallel over this machine's devices, whatever mesh it was trained on,
    unless a gin file or binding given here says otherwise.

    Args:
      reference: see `checkpoint.find`.
      gin_files, bindings: overrides on top of the directory's own configuration.

    Raises:
      UserError: no model directory, no configuration in it, or parameters of another shape.
    """
    start.compilation_cache()
    directory, step, job = open_job(reference, gin_files, bindings)
    with jax.set_mesh(job.partition.build()) as _:
        mesh = jax.sharding.get_mesh()
        program = lay_out(job, mesh)
        saved = directory / checkpoint.FOLDER / str(step)
        params = checkpoint.restore_part(saved, {"params": program.params})["params"]
        yield Restored(job, directory, step, program, params)


def open_job(reference: str, gin_files: Sequence[str], bindings: Sequence[str]) -> tuple[epath.Path, int, Job]:
    """The model directory, the step and the job that `restored` means by the same arguments; reads no parameters.

    Raises:
      UserError: no model directory, or no configuration in it.
    """
    directory, step = checkpoint.find(reference)
    return directory, step, read_job(directory, ["partition/data.gin", *gin_files], bindings)


def read_job(directory: epath.Path, gin_files: Sequence[str] = (), bindings: Sequence[str] = ()) -> Job:
    """The job of a model directory, with overrides.

    The directory's copy of the vocabulary stands for the one that its config.gin names, which may be gone or
    changed; an override that names another one wins.

    Raises:
      UserError: there is no config.gin, or it would run code that is not of this package (see `config.load`).
    """
    path = directory / CONFIG
    if not path.exists():
        raise UserError(
            f"{directory} has no {CONFIG}",
            "a model directory is described by its own configuration",
            "give the MODEL_DIR of a training run, or make one with t5x_lite convert",
        )

    with _local(path) as own:
        job = config.build(config.load([own, *gin_files], bindings, optional=NOT_TRAINING, untrusted=[own]))
        trained = config.build(config.load([own], optional=NOT_TRAINING))  # found harmless by now
    copy = directory / VOCABULARY
    if job.vocabulary == trained.vocabulary and copy.exists():
        job = dataclasses.replace(job, vocabulary=str(copy))
    return job


@contextlib.contextmanager
def _local(path: epath.Path) -> Iterator[str]:
    """The path of a file, or of its copy on this machine: gin reads no other."""
    if not is_remote(path):
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = epath.Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        yield str(copy)
