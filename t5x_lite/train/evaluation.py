"""Teacher-forced evaluation: loss and accuracy a target token, over batches."""

from collections.abc import Callable, Iterable

import jax


def teacher_forced(
    sums_of: Callable[[dict, dict], dict], params: dict, batches: Iterable[dict[str, jax.Array]]
) -> dict[str, float]:
    """Means over all target tokens of the batches.

    Args:
      sums_of: compiled (params, batch) -> sums `loss`, `correct`, `weight`.
      params: the parameters.
      batches: global batches; rows without targets count for nothing.

    Returns:
      `loss` (nats a token, without z-loss), `accuracy` (share of tokens) and `tokens`; NaN without any token.
    """
    sums = [sums_of(params, batch) for batch in batches]
    total = {k: float(sum(s[k] for s in jax.device_get(sums))) for k in ("loss", "correct", "weight")}
    weight = total["weight"] or float("nan")
    return {"loss": total["loss"] / weight, "accuracy": total["correct"] / weight, "tokens": int(total["weight"])}
