"""How often a mixture draws from each of its tasks.

The T5 paper (section 3.5.2) draws from task n in proportion to min(e_n, K)^(1/T), where e_n is the number of its
examples, K a limit and T a temperature; T = 1 is examples-proportional mixing. The rates here are functions of a
seqio.Task that ask what is bound when a dataset is made, so that K and T are a matter of gin.
"""

import dataclasses
import logging
from collections.abc import Callable

import seqio

from t5x_lite.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rates:
    """What gin says of the rates of mixtures.

    Args:
      maximum: the limit K of a task's number of examples, before the temperature (MIXTURE_MAXIMUM); None: no limit.
      temperature: T (MIXTURE_TEMPERATURE).
      unsupervised: the rate of unlabelled text in `all_mix` and `en_mix`, as if it had so many examples
        (MIXTURE_UNSUPERVISED_RATE).
      fixed_weights: GLUE and SuperGLUE tasks are drawn by fixed weights, their numbers of examples, in `all_mix`,
        `all_proportional` and leave-one-out mixtures, whatever K and T are, and RTE, which is in both, by half: so does
        t5's own code. False: by the paper's formula, as the others (MIXTURE_FIXED_WEIGHTS).
    """

    maximum: float | None = None
    temperature: float = 1.0
    unsupervised: float = 1e6
    fixed_weights: bool = True


_bound = Rates()


def bind(rates: Rates) -> None:
    """Sets what the rate functions of the shipped mixtures ask."""
    global _bound
    _bound = rates


def num_examples(task: seqio.Task) -> float:
    """min(e, K)^(1/T): of a cache where there is one, of the source otherwise. 0 for a task without a training split.

    Raises:
      UserError: the number of examples is not known.
    """
    return _proportional(task, _bound.maximum, _bound.temperature)


def unsupervised(task: seqio.Task) -> float:
    """The rate that is set for unlabelled text."""
    return _bound.unsupervised


def fixed_or_num_examples(weight: float) -> Callable[[seqio.Task], float]:
    """A rate that is a given weight where weights are fixed, `num_examples` otherwise."""
    return lambda task: weight if _bound.fixed_weights else num_examples(task)


def by_language(task: seqio.Task) -> float:
    """e^0.3, as mT5 and ByT5 draw languages (Xue et al. 2021, section 3.2)."""
    return _proportional(task, None, 1 / 0.3)


def _proportional(task: seqio.Task, maximum: float | None, temperature: float) -> float:
    if "train" not in task.splits:
        return 0.0
    # seqio warns of every task that is not cached.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return float(seqio.mixing_rate_num_examples(task, maximum=maximum, temperature=temperature))
    except TypeError:
        raise UserError(
            f"The number of examples of {task.name} is not known",
            "its mixture draws in proportion to it, and its source does not count",
            "Cache the task with `t5x_lite tasks cache` and set --gin.USE_CACHED_TASKS=True and --gin.TASK_CACHE_DIR, "
            "or give it a rate of its own in a mixture of your own",
        ) from None
    finally:
        logger.setLevel(level)
