"""A model directory, read back: its job, its vocabulary and the parameters of one checkpoint.

MODEL_DIR/config.gin         the resolved configuration, re-runnable as it is
MODEL_DIR/vocabulary.model   a copy of the SentencePiece model
MODEL_DIR/checkpoints/STEP/  see train/checkpoint.py
MODEL_DIR/metrics.jsonl, events.out.tfevents.*, eval/, report.html
MODEL_DIR/DONE               once TRAIN_STEPS is committed
"""

import contextlib
import dataclasses
import datetime
import json
import tempfile
from collections.abc import Iterator, Sequence

import jax
from etils import epath

from t5x_lite import config
from t5x_lite.errors import UserError
from t5x_lite.job import NOT_TRAINING, Job
from t5x_lite.output import is_remote
from t5x_lite.parallel import hosts, start
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
        return rows(self.program, wanted)

    def place(self, array) -> jax.Array:
        """A [rows, length] array onto the devices."""
        return place(self.program, array)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Models that answer as one, by the mean of their logits; mostly a single one.

    Args:
      members: at least one, with one vocabulary and embedding tables of one size.
    """

    members: tuple[Restored, ...]

    @property
    def job(self) -> Job:
        """Of the first member: vocabulary and lengths."""
        return self.members[0].job

    @property
    def programs(self) -> tuple[Program, ...]:
        return tuple(member.program for member in self.members)

    @property
    def params(self) -> tuple[dict, ...]:
        return tuple(member.params for member in self.members)

    def rows(self, wanted: int) -> int:
        """The least batch of at least `wanted` rows that divides over the devices."""
        return rows(self.programs[0], wanted)

    def __str__(self) -> str:
        steps = ", ".join(str(member.step) for member in self.members)
        if len(self.members) == 1:
            return f"the checkpoint of step {steps}"
        return f"an ensemble of {len(self.members)} checkpoints, of steps {steps}"


def rows(program: Program, wanted: int) -> int:
    """The least batch of at least `wanted` rows that divides over the devices."""
    parts = batch_divisor(program.mesh, program.rules)
    return -(-wanted // parts) * parts


def place(program: Program, array) -> jax.Array:
    """A [rows, length] array onto the devices."""
    return hosts.put(array, program.batch_sharding)


@dataclasses.dataclass(frozen=True)
class LaidOut:
    """A model directory whose checkpoints can be read: what is compiled for one of them serves all."""

    job: Job
    directory: epath.Path
    program: Program

    def restore(self, step: int) -> Restored:
        """Reads the parameters of a checkpoint.

        Raises:
          UserError: they are of another shape, or cannot be read.
        """
        saved = self.directory / checkpoint.FOLDER / str(step)
        try:
            params = checkpoint.restore_part(saved, {"params": self.program.params})["params"]
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # of whatever kind: Orbax makes little of what TensorStore says
            raise UserError(
                f"the checkpoint {saved} cannot be read",
                "a file of it is missing, cut off or damaged",
                "give another step with --checkpoint; --traceback shows what was found",
            ) from error
        return Restored(self.job, self.directory, step, self.program, params)


@contextlib.contextmanager
def laid_out(directory: epath.Path, job: Job) -> Iterator[LaidOut]:
    """Lays a model out; within the context its mesh is the current one. Arguments as `open_job` returns them."""
    hosts.check_alone()
    start.compilation_cache()
    with jax.set_mesh(job.partition.build()) as _:
        yield LaidOut(job, directory, lay_out(job, jax.sharding.get_mesh()))


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
    directory, step, job = open_job(reference, gin_files, bindings)
    with laid_out(directory, job) as model:
        yield model.restore(step)


@contextlib.contextmanager
def ensemble(opened: Sequence[tuple[epath.Path, int, Job]]) -> Iterator[Ensemble]:
    """Reads checkpoints that answer as one, all on the mesh of the first; otherwise as `restored`.

    Args:
      opened: from `open_together`.
    """
    (directory, step, job), *others = opened
    with laid_out(directory, job) as first:
        mesh = first.program.mesh
        models = [first, *(LaidOut(job, directory, lay_out(job, mesh)) for directory, _, job in others)]
        steps = [step, *(step for _, step, _ in others)]
        yield Ensemble(tuple(model.restore(step) for model, step in zip(models, steps)))


def open_together(
    references: Sequence[str], gin_files: Sequence[str], bindings: Sequence[str]
) -> list[tuple[epath.Path, int, Job]]:
    """`open_job` of each reference, which must speak one language; reads no parameters.

    Raises:
      UserError: as `open_job`, or two differ in their vocabulary, its table or the kind of model.
    """
    opened = [open_job(reference, gin_files, bindings) for reference in references]
    first = opened[0][2]
    for reference, (_, _, job) in zip(references, opened):
        pair = f"--checkpoint={references[0]} and --checkpoint={reference}"
        for what, one, other in (
            ("embedding tables", f"{first.model.vocab_size} rows", f"{job.model.vocab_size} rows"),
            ("structures", _kind(first), _kind(job)),
        ):
            if one != other:
                raise UserError(
                    f"{pair} have different {what}: {one} and {other}",
                    "an ensemble is the mean of its models' logits, id by id",
                    "give checkpoints of alike models",
                )
        if _content(first.vocabulary) != _content(job.vocabulary):
            raise UserError(
                f"{pair} have different vocabularies: {first.vocabulary} and {job.vocabulary}",
                "an ensemble is the mean of its models' logits, and an id would mean two things",
                "give checkpoints of one vocabulary",
            )
    return opened


def identities(opened: Sequence[tuple[epath.Path, int, Job]]) -> list[str]:
    """What tells the checkpoints from all others: where each is, its step, and when it was committed."""
    dated = [(f"{directory}@{step}", committed(directory, step)) for directory, step, _ in opened]
    return [f"{name} of {date}" if date else name for name, date in dated]


def committed(directory: epath.Path, step: int) -> str:
    """When a checkpoint was committed, as text; empty where nothing says."""
    try:
        text = (directory / checkpoint.FOLDER / str(step) / "_CHECKPOINT_METADATA").read_text()
        seconds = json.loads(text)["commit_timestamp_nsecs"] / 1e9
        return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S.%f}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # of a version of Orbax that says nothing of it


def _kind(job: Job) -> str:
    """What tells which features a model reads."""
    return job.model.structure if job.model.decoder_only else "encoder_decoder"


def _content(vocabulary: str | None) -> bytes | str | None:
    """What tells a vocabulary from others: the file where there is one."""
    path = epath.Path(vocabulary) if vocabulary else None
    return path.read_bytes() if path is not None and path.is_file() else vocabulary


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
        trained = config.build(config.load([own], optional=NOT_TRAINING, untrusted=[own]))
        # Last: functions of the user's own are called later, by what gin has been told then.
        job = config.build(config.load([own, *gin_files], bindings, optional=NOT_TRAINING, untrusted=[own]))
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
