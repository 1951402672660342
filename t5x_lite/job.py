"""Everything that gin files say about an experiment, as one frozen value.

Each verb reads the fields it needs; no verb reads gin. A field is bound by an
upper-case macro of the same meaning in gin/runs/*.gin.
"""

import dataclasses
from collections.abc import Callable, Mapping

import optax

from t5x_lite.errors import UserError
from t5x_lite.model.architecture import Architecture
from t5x_lite.parallel.partition import Partition

# What a verb that neither reads data nor writes can do without.
UNUSED_WHEN_DRY = ("MODEL_DIR", "MIXTURE_OR_TASK_NAME", "VOCABULARY")

# What a verb that reads a model directory can do without: a converted model was never a job.
NOT_TRAINING = (*UNUSED_WHEN_DRY, "TRAIN_STEPS", "INITIAL_CHECKPOINT_PATH")


@dataclasses.dataclass(frozen=True)
class Job:
    """One experiment.

    Args:
      model: the architecture.
      partition: mesh and axis rules.
      optimizer: an optax transformation without its learning rate; it sees each layer's parameters alone.
      learning_rate: step -> learning rate, which multiplies the optimizer's updates.
      mixture_or_task_name: seqio name of the training data (MIXTURE_OR_TASK_NAME).
      mixture_or_task_module: Python module that registers it, None for the shipped ones.
      feature_lengths: tokens of "inputs" and "targets" in a row of the batch (TASK_FEATURE_LENGTHS).
      vocabulary: SentencePiece model file, or "bytes" (VOCABULARY).
      data_glob, validation_glob: files of the `text_*` tasks (DATA_GLOB, VALIDATION_GLOB).
      data_dir: TFDS data directory (DATA_DIR).
      data_shards: independent streams that the data is cut into, each with its own seed and position.
        Any number of hosts that divides it sees the same batches (DATA_SHARDS).
      use_cached_tasks: read tasks from seqio's offline cache (USE_CACHED_TASKS).
      pack: put several short examples into one row (PACK).
      batch_size: rows of the global batch (BATCH_SIZE).
      microbatches: parts that the batch is processed in, one after the other (MICROBATCHES).
      train_steps: the step to stop at, steps of an initial checkpoint included (TRAIN_STEPS).
      model_dir: where the run writes and resumes from, local or gs:// (MODEL_DIR).
      initial_checkpoint: model directory or checkpoint step whose parameters a new run starts
        from (INITIAL_CHECKPOINT_PATH); its step goes on counting.
      initial_optimizer_state: take the optimizer's state from there too, where it has one.
      seed: of parameters, dropout and data order (RANDOM_SEED).
      z_loss: weight of the squared log-normaliser of the softmax.
      label_smoothing: probability mass spread over the other tokens.
      loss_normalizing_factor: divisor of the summed loss; None: the number of target tokens
        (LOSS_NORMALIZING_FACTOR).
      log_period, save_period, eval_period: steps between log lines, checkpoints and evaluations; 0: never.
      keep_checkpoints: how many of the newest checkpoints stay (KEEP_CHECKPOINTS); None: all.
      eval_batches: batches of one evaluation during training (EVAL_BATCHES).
      max_nonfinite_steps: consecutive steps with a non-finite loss or gradient before the run stops.
    """

    model: Architecture
    partition: Partition
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[int], float]
    mixture_or_task_name: str | None
    feature_lengths: Mapping[str, int]
    train_steps: int | None
    model_dir: str | None
    mixture_or_task_module: str | None = None
    vocabulary: str | None = None
    data_glob: str | None = None
    validation_glob: str | None = None
    data_dir: str | None = None
    data_shards: int = 4
    use_cached_tasks: bool = False
    pack: bool = True
    batch_size: int = 128
    microbatches: int = 1
    initial_checkpoint: str | None = None
    initial_optimizer_state: bool = True
    seed: int = 0
    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    loss_normalizing_factor: float | None = None
    log_period: int = 100
    save_period: int = 1000
    eval_period: int = 1000
    keep_checkpoints: int | None = 3
    eval_batches: int = 20
    max_nonfinite_steps: int = 10

    def __post_init__(self):
        for name, macro in (("batch_size", "BATCH_SIZE"), ("microbatches", "MICROBATCHES"),
                            ("data_shards", "DATA_SHARDS"),
                            ("log_period", "LOG_PERIOD"), ("eval_batches", "EVAL_BATCHES"),
                            ("max_nonfinite_steps", "MAX_NONFINITE_STEPS")):  # fmt: skip
            _whole(name, getattr(self, name), macro, least=1)
        for name, macro in (("save_period", "SAVE_PERIOD"), ("eval_period", "EVAL_PERIOD"), ("seed", "RANDOM_SEED")):
            _whole(name, getattr(self, name), macro, least=0)
        if self.train_steps is not None:
            _whole("train_steps", self.train_steps, "TRAIN_STEPS", least=1)
        if self.keep_checkpoints is not None:
            _whole("keep_checkpoints", self.keep_checkpoints, "KEEP_CHECKPOINTS", least=1)
        lengths = self.feature_lengths
        if not isinstance(lengths, Mapping) or set(lengths) != {"inputs", "targets"}:
            raise UserError(
                f"TASK_FEATURE_LENGTHS is {lengths!r}",
                "an encoder-decoder has the features inputs and targets",
                "Set --gin.TASK_FEATURE_LENGTHS=\"{'inputs': 512, 'targets': 114}\"",
            )
        for feature, length in lengths.items():
            _whole(f"TASK_FEATURE_LENGTHS[{feature!r}]", length, "TASK_FEATURE_LENGTHS", least=2)


def _whole(name: str, value, macro: str, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} is {value!r}", f"it must be a whole number of at least {least}", f"Set --gin.{macro}")
