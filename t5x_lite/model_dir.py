"""A model directory, read back: its job, its vocabulary and the parameters of one checkpoint.

MODEL_DIR/config.gin         the resolved configuration, re-runnable as it is
MODEL_DIR/vocabulary.model   a copy of the SentencePiece model
MODEL_DIR/checkpoints/STEP/  see train/checkpoint.py
MODEL_DIR/metrics.jsonl, events.out.tfevents.*, eval/, report.html
MODEL_DIR/DONE               once TRAIN_STEPS is committed
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import jax
from etils import epath

from t5x_lite import config
from t5x_lite.errors import UserError
from t5x_lite.job import NOT_TRAINING, Job
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
    directory, step = checkpoint.find(reference)
    job = read_job(directory, ["partition/data.gin", *gin_files], bindings)
    with jax.set_mesh(job.partition.build()) as _:
        mesh = jax.sharding.get_mesh()
        program = lay_out(job, mesh)
        saved = directory / checkpoint.FOLDER / str(step)
        params = checkpoint.restore_part(saved, {"params": program.params})["params"]
        yield Restored(job, directory, step, program, params)


def read_job(directory: epath.Path, gin_files: Sequence[str] = (), bindings: Sequence[str] = ()) -> Job:
    """The job of a model directory, with overrides.

    Raises:
      UserError: there is no config.gin.
    """
    path = directory / CONFIG
    if not path.exists():
        raise UserError(
            f"{directory} has no {CONFIG}",
            "a model directory is described by its own configuration",
            "give the MODEL_DIR of a training run, or make one with t5x_lite convert",
        )
    job: Job = config.build(config.load([str(path), *gin_files], bindings, optional=NOT_TRAINING))
    if not any(b.partition("=")[0].strip() == "VOCABULARY" for b in bindings) and (directory / VOCABULARY).exists():
        job = dataclasses.replace(job, vocabulary=str(directory / VOCABULARY))
    return job
