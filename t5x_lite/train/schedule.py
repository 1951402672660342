"""Learning-rate schedules of T5, as functions of the step; optax's own can be bound in gin beside them."""

from collections.abc import Callable

import jax.numpy as jnp

Schedule = Callable[[int], float]


def rsqrt(base: float = 1.0, warmup_steps: int = 10_000, linear_decay_steps: int = 0, total_steps: int = 0) -> Schedule:
    """base / sqrt(max(step, warmup_steps)): flat, not ramped, until `warmup_steps` (T5 paper, section 3.1.2).

    Args:
      base: numerator; 1.0 gives 0.01 for the first 10,000 steps.
      warmup_steps: steps at the first value.
      linear_decay_steps: over that many last steps the rate goes linearly to zero; 0: never.
      total_steps: where it reaches zero.
    """

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
    """`schedule`, multiplied by step / steps for the first `steps` steps (not T5's recipe)."""
    return lambda step: schedule(step) * jnp.clip((step + 1) / steps, 0.0, 1.0)
