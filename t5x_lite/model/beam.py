"""Beam search with T5's rules.

W live sequences of a row are continued; those that have ended are kept apart, the W best of them. Of all continuations
of the live ones by one token the 2W most probable are looked at: no more than W of them end, so that W go on. One that
ends has the score log-probability / ((5 + length) / 6) ** alpha, where length counts the end token and not the start
token. A row is done when W have ended and even the best live one could not come up to the worst of them: its
log-probability, which can only fall, over the penalty of the greatest length. What has not ended by then follows behind
what has, so that a row in which nothing ended gives its best live sequence.

Of equal continuations that of the better sequence comes first, then that with the lower id; of equal scores the one
that ended first. Sources: Mesh TensorFlow's `beam_search.py` and t5x's `decoding.py`; Wu et al. 2016, equation 14.
"""

import jax
import jax.numpy as jnp

from t5x_lite.model.sampling import at_step
from t5x_lite.model.selection import top_k

Array = jax.Array


def penalty(length: Array | int, alpha: float) -> Array:
    """What a log-probability of so many tokens is divided by."""
    return ((5.0 + length) / 6.0) ** alpha


def begin(empty: Array) -> dict:
    """The state before the first token: a single live sequence of no tokens.

    Args:
      empty: [B, W, T] of zeros.
    """
    none = empty[..., 0].astype(jnp.float32)
    return {
        "ids": empty[:, :1],
        "ancestry": empty[:, :1] - 1,
        "log_probability": none[:, :1],
        "tokens": empty[:, :1, 0],
        "ended_ids": empty,
        "ended_scores": none - jnp.inf,
        "ended_log_probability": none - jnp.inf,
    }


def continuations(log_probability: Array, logits: Array, count: int) -> tuple[Array, Array, Array]:
    """The `count` most probable sequences that are one token longer.

    Args:
      log_probability: [B, W] of the live sequences.
      logits: float32 [B, W, V] of their next tokens.
      count: how many.

    Returns:
      Log-probabilities [B, count] in descending order, -inf where there are no more; indices [B, count] of the live
      sequences that they continue; the tokens [B, count].
    """
    rows, width, vocab = logits.shape
    of_each = min(count, vocab)
    best, tokens = top_k(logits, of_each)
    best = log_probability[..., None] + (best - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
    best, tokens = (jnp.reshape(x, (rows, width * of_each)) for x in (best, tokens))
    if (missing := count - width * of_each) > 0:
        best = jnp.pad(best, ((0, 0), (0, missing)), constant_values=-jnp.inf)
        tokens = jnp.pad(tokens, ((0, 0), (0, missing)))
    best, place = jax.lax.top_k(best, count)
    return best, jnp.minimum(place // of_each, width - 1), jnp.take_along_axis(tokens, place, axis=1)


def advance(state: dict, logits: Array, step: Array, eos: int, alpha: float) -> dict:
    """One token more of the live sequences.

    Args:
      state: from `begin` or before.
      logits: float32 [B, W, V], after `begin` [B, 1, V].
      step: which token it is.
      eos: id that ends a sequence.
      alpha: exponent of the length penalty.
    """
    width = state["ended_ids"].shape[1]
    log_probability, parent, tokens = continuations(state["log_probability"], logits, 2 * width)
    ids = at_step(_of(state["ids"], parent), tokens, step)
    ends = tokens == eos

    live, going_on = jax.lax.top_k(jnp.where(ends, -jnp.inf, log_probability), width)
    scores = jnp.where(ends, log_probability / penalty(step + 1, alpha), -jnp.inf)
    ended, ending = jax.lax.top_k(jnp.concatenate([state["ended_scores"], scores], axis=1), width)
    ended_log_probability = jnp.concatenate([state["ended_log_probability"], log_probability], axis=1)
    own = jnp.broadcast_to(jnp.arange(width), live.shape)
    return {
        "ids": _of(ids, going_on),
        "ancestry": at_step(_of(state["ancestry"], _of(parent, going_on)), own, step),
        "log_probability": live,
        "tokens": _of(tokens, going_on),
        "ended_ids": _of(jnp.concatenate([state["ended_ids"], ids], axis=1), ending),
        "ended_scores": ended,
        "ended_log_probability": _of(ended_log_probability, ending),
    }


def _of(x: Array, index: Array) -> Array:
    """[B, N, ...] and [B, M] -> [B, M, ...]."""
    return jnp.take_along_axis(x, index if x.ndim == 2 else index[..., None], axis=1)


def unfinished(state: dict, alpha: float) -> Array:
    """Whether a live sequence of any row could come before one that has ended."""
    longest = penalty(state["ids"].shape[-1], alpha)
    return jnp.any(state["log_probability"][:, 0] / longest >= state["ended_scores"][:, -1])


def result(state: dict, alpha: float) -> tuple[Array, Array, Array]:
    """Ids [B, W, T], scores [B, W] and log-probabilities [B, W]: those that ended, then the live ones, best first."""
    scores = state["log_probability"] / penalty(state["ids"].shape[-1], alpha)
    ended = jnp.sum(state["ended_scores"] > -jnp.inf, axis=1, keepdims=True)
    place = jnp.arange(state["ids"].shape[1])
    index = jnp.where(place < ended, place, len(place) + place - ended)

    def both(name: str, live: Array) -> Array:
        return _of(jnp.concatenate([state[name], live], axis=1), index)

    return (
        both("ended_ids", state["ids"]),
        both("ended_scores", scores),
        both("ended_log_probability", state["log_probability"]),
    )
