"""Learning-rate schedules of T5, as functions of the step; optax's own can be bound in gin beside them."""

from collections.abc import Callable

import jax.numpy as jnp

from t5x_lite.errors import UserError

Schedule = Callable[[int], float]


def rsqrt(
    base: float = 1.0, warmup_steps: int = 10_000, linear_decay_steps: int = 0, total_steps: int | None = None
) -> Schedule:
    """base / sqrt(max(step, warmup_steps)): flat, not ramped, until `warmup_steps` (T5 paper, section 3.1.2).

    Args:
      base: numerator; 1.0 gives 0.01 for the first 10,000 steps.
      warmup_steps: steps at the first value.
      linear_decay_steps: over that many last steps the rate goes linearly to zero; 0: never.
      total_steps: where it reaches zero.

    Raises:
      UserError: the rate would be infinite, or there is no step to decay to.
    """
    _at_least("rsqrt.warmup_steps", warmup_steps, 1, "the rate of step 0 is base / sqrt(warmup_steps)")
    _at_least("rsqrt.linear_decay_steps", linear_decay_steps, 0, "it is a number of steps")
    if linear_decay_steps:
        _at_least("rsqrt.total_steps", total_steps, 1, "linear_decay_steps end there")

    def rate(step):
        value = base / jnp.sqrt(jnp.maximum(jnp.asarray(step, jnp.float32), warmup_steps))
        if linear_decay_steps:
            value *= jnp.clip((total_steps - step) / linear_decay_steps, 0.0, 1.0)
        return value

    return rate


def constant(value: float = 1e-3) -> Schedule:
    """The same rate at every step; 0.001 is T5's for fine-tuning."""
    return lambda step: jnp.asarray(value, jnp.float32)


def linear_warmup(schedule: Schedule, steps: int) -> Schedule:
    """`schedule`, multiplied by (step + 1) / steps for the first `steps` steps (not T5's recipe)."""
    _at_least("linear_warmup.steps", steps, 1, "the rate grows over that many steps")
    return lambda step: schedule(step) * jnp.clip((step + 1) / steps, 0.0, 1.0)


def _at_least(name: str, value, least: int, why: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(
            f"schedule.{name} is {value!r}", f"it must be a whole number of at least {least}: {why}",
            f"set --gin.schedule.{name}",
        )  # fmt: skip
