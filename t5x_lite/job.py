"""Everything that gin files say about an experiment, as one frozen value.

Each verb reads the fields it needs; no verb reads gin. A field is bound by an
upper-case macro of the same meaning in gin/runs/*.gin.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

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
      model: the architecture, with the `dropout_rate` below where one is given.
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
      task_cache_dir: folder of that cache, beside those that a task module adds itself (TASK_CACHE_DIR).
      tokens_dir: folder of one task's tokens, read without TensorFlow in place of the task's source (TOKENS_DIR).
      mixture_maximum, mixture_temperature, mixture_unsupervised_rate, mixture_fixed_weights: how often the shipped
        mixtures draw from their tasks, see tasks/mixing.py (MIXTURE_MAXIMUM and so on).
      pack: put several short examples into one row (PACK).
      batch_size: rows of the global batch (BATCH_SIZE).
      microbatches: parts that the batch is processed in, one after the other (MICROBATCHES).
      train_steps: the step to stop at, steps of an initial checkpoint included (TRAIN_STEPS).
      model_dir: where the run writes and resumes from, local or gs:// (MODEL_DIR).
      initial_checkpoint: model directory or checkpoint step whose parameters a new run starts
        from (INITIAL_CHECKPOINT_PATH); its step goes on counting.
      initial_optimizer_state: take the optimizer's state from there too, where it has one.
      seed: of parameters, dropout and data order (RANDOM_SEED).
      dropout_rate: takes the place of the architecture's; None: leaves it (DROPOUT_RATE).
      z_loss: weight of the squared log-normaliser of the softmax.
      trainable: regular expressions; parameters with one of them in their path are trained, the others stay as they
        are. None: all are trained (TRAINABLE).
      loss_on_inputs: a decoder alone learns to predict its inputs too, and not its targets alone (LOSS_ON_INPUTS).
      label_smoothing: probability mass spread over the other tokens.
      loss_normalizing_factor: divisor of the summed loss; None: the number of target tokens
        (LOSS_NORMALIZING_FACTOR).
      log_period, save_period, eval_period: steps between log lines, checkpoints and evaluations; 0: never.
      keep_checkpoints: how many of the newest checkpoints stay (KEEP_CHECKPOINTS); None: all.
      eval_batches: batches of one evaluation during training (EVAL_BATCHES).
      max_nonfinite_steps: consecutive steps with a non-finite loss or gradient before the run stops.
      hang_timeout: seconds without a finished step, or batch of an evaluation, after which the run shows where each
        thread is and ends; 0: never (HANG_TIMEOUT).
      host_timeout: seconds without a sign of life after which a host is lost and the others end (HOST_TIMEOUT).
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
    task_cache_dir: str | None = None
    tokens_dir: str | None = None
    mixture_maximum: float | None = None
    mixture_temperature: float = 1.0
    mixture_unsupervised_rate: float = 1e6
    mixture_fixed_weights: bool = True
    pack: bool = True
    batch_size: int = 128
    microbatches: int = 1
    initial_checkpoint: str | None = None
    initial_optimizer_state: bool = True
    seed: int = 0
    trainable: Sequence[str] | None = None
    loss_on_inputs: bool = False
    dropout_rate: dataclasses.InitVar[float | None] = None
    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    loss_normalizing_factor: float | None = None
    log_period: int = 100
    save_period: int = 1000
    eval_period: int = 1000
    keep_checkpoints: int | None = 3
    eval_batches: int = 20
    max_nonfinite_steps: int = 10
    hang_timeout: int = 1800
    host_timeout: int = 100

    def __post_init__(self, dropout_rate: float | None):
        for name, macro, kind, example in (
            ("model", "MODEL", Architecture, "--gin_file=models/t5_1_1_small.gin"),
            ("partition", "PARTITION", Partition, "--gin_file=partition/data.gin"),
            ("optimizer", "OPTIMIZER", optax.GradientTransformation, "--gin_file=optim/adafactor.gin"),
            ("learning_rate", "LEARNING_RATE", Callable, "--gin_file=optim/constant.gin"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise UserError(
                    f"{macro} is {getattr(self, name)!r}",
                    f"it must be {_ARTICLES[macro]}, which a gin file makes",
                    f"use for example {example}, or --gin.{macro}=@module.function()",
                )
        if dropout_rate is not None:
            object.__setattr__(self, "model", dataclasses.replace(self.model, dropout_rate=dropout_rate))
        for name in ("batch_size", "microbatches", "data_shards", "log_period", "eval_batches", "max_nonfinite_steps"):
            _whole(name.upper(), getattr(self, name), least=1)
        _whole("SAVE_PERIOD", self.save_period, least=0)
        _whole("EVAL_PERIOD", self.eval_period, least=0)
        _whole("HANG_TIMEOUT", self.hang_timeout, least=0)
        _whole("HOST_TIMEOUT", self.host_timeout, least=1)
        _whole("RANDOM_SEED", self.seed, least=0)
        # JAX takes a larger one for one of these, or fails.
        _check("RANDOM_SEED", self.seed, self.seed < 2**32, f"at most {2**32 - 1}")
        for name in ("train_steps", "keep_checkpoints"):
            if getattr(self, name) is not None:
                _whole(name.upper(), getattr(self, name), least=1)
        for name, macro in _TEXTS.items():
            value = getattr(self, name)
            _check(macro, value, value is None or (isinstance(value, str) and value), "a text that is not empty")
        for name in ("use_cached_tasks", "mixture_fixed_weights", "pack", "initial_optimizer_state", "loss_on_inputs"):
            value = getattr(self, name)
            _check(name.upper(), value, isinstance(value, bool), "True or False")
        for name in ("mixture_maximum", "mixture_temperature", "mixture_unsupervised_rate"):
            value = getattr(self, name)
            right = value is None if name == "mixture_maximum" else False
            _check(name.upper(), value, right or (_is_number(value) and value > 0), "a number above 0")
        _check("Z_LOSS", self.z_loss, _is_number(self.z_loss) and self.z_loss >= 0, "a number of at least 0")
        smoothing = self.label_smoothing
        _check("LABEL_SMOOTHING", smoothing, _is_number(smoothing) and 0 <= smoothing < 1, "at least 0 and below 1")
        divisor = self.loss_normalizing_factor
        _check(
            "LOSS_NORMALIZING_FACTOR",
            divisor,
            divisor is None or (_is_number(divisor) and divisor > 0),
            "a number above 0, or None for the number of target tokens",
        )
        if self.loss_on_inputs and not self.model.decoder_only:
            raise UserError(
                "LOSS_ON_INPUTS is True",
                f"a model of the structure {self.model.structure} does not predict its inputs",
                "leave it out, or take a decoder alone: --gin.architecture.Architecture.structure=language_model",
            )
        _check_patterns(self.trainable)
        lengths = self.feature_lengths
        if not isinstance(lengths, Mapping) or set(lengths) != {"inputs", "targets"}:
            raise UserError(
                f"TASK_FEATURE_LENGTHS is {lengths!r}",
                "a text-to-text model has the features inputs and targets",
                "Set --gin.TASK_FEATURE_LENGTHS=\"{'inputs': 512, 'targets': 114}\"",
            )
        for feature, length in lengths.items():
            _whole("TASK_FEATURE_LENGTHS", length, least=2, of=f"[{feature!r}]")


@dataclasses.dataclass(frozen=True)
class Data:
    """The part of a job that says what it reads.

    Args:
      model: whose embedding table the tokens must fit; None: any.
      others: as in `Job`.
    """

    feature_lengths: Mapping[str, int]
    model: Architecture | None = None
    mixture_or_task_name: str | None = None
    mixture_or_task_module: str | None = None
    vocabulary: str | None = None
    data_glob: str | None = None
    validation_glob: str | None = None
    data_dir: str | None = None
    use_cached_tasks: bool = False
    task_cache_dir: str | None = None
    mixture_maximum: float | None = None
    mixture_temperature: float = 1.0
    mixture_unsupervised_rate: float = 1e6
    mixture_fixed_weights: bool = True
    pack: bool = True
    seed: int = 0

    def __post_init__(self):
        lengths = self.feature_lengths
        fits = isinstance(lengths, Mapping) and set(lengths) == {"inputs", "targets"}
        if not fits or not all(isinstance(n, int) and n >= 2 for n in lengths.values()):
            raise UserError(
                f"TASK_FEATURE_LENGTHS is {lengths!r}",
                "it gives inputs and targets a number of tokens each, at least 2",
                "Set --gin.TASK_FEATURE_LENGTHS=\"{'inputs': 512, 'targets': 114}\"",
            )


# What the macros that hold no plain value hold.
_ARTICLES = {
    "MODEL": "an Architecture",
    "PARTITION": "a Partition",
    "OPTIMIZER": "an optax transformation",
    "LEARNING_RATE": "a function of the step",
}

# Fields of text and their macros.
_TEXTS = {
    "mixture_or_task_name": "MIXTURE_OR_TASK_NAME",
    "mixture_or_task_module": "MIXTURE_OR_TASK_MODULE",
    "vocabulary": "VOCABULARY",
    "data_glob": "DATA_GLOB",
    "validation_glob": "VALIDATION_GLOB",
    "data_dir": "DATA_DIR",
    "task_cache_dir": "TASK_CACHE_DIR",
    "tokens_dir": "TOKENS_DIR",
    "model_dir": "MODEL_DIR",
    "initial_checkpoint": "INITIAL_CHECKPOINT_PATH",
}


def _check(macro: str, value, right, expected: str) -> None:
    if not right:
        raise UserError(f"{macro} is {value!r}", f"it must be {expected}", f"Correct --gin.{macro}")


def _check_patterns(patterns) -> None:
    right = patterns is None or (isinstance(patterns, list | tuple) and patterns)
    if right and all(isinstance(p, str) for p in patterns or ()):
        try:
            for pattern in patterns or ():
                re.compile(pattern)
            return
        except re.error as error:
            raise UserError(
                f"TRAINABLE has {pattern!r}", f"it is no regular expression: {error}", "Correct --gin.TRAINABLE"
            ) from None
    raise UserError(
        f"TRAINABLE is {patterns!r}",
        "it must be a list of regular expressions, or None for all parameters",
        "write for example --gin.TRAINABLE=\"['adapter', 'norm']\"",
    )


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(macro: str, value, least: int, of: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(
            f"{macro}{of} is {value!r}", f"it must be a whole number of at least {least}", f"Correct --gin.{macro}"
        )
