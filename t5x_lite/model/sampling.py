"""W sequences of a row, each drawn by itself: greedy, or sampled from the filtered softmax.

A rule of decoding is four functions: `begin`, `advance`, `unfinished` and `result`; see decoding.py.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from t5x_lite.model.selection import keep_top_k, keep_top_p, top_k

Array = jax.Array


def filtered(logits: Array, temperature: float, k: int, p: float) -> Array:
    """What is drawn from: logits / temperature, the k largest of them (0: all), of those the fewest with mass p.

    Args:
      logits: float32 [..., V].
      temperature: above 0.
      k: as in `keep_top_k`, 0 for all.
      p: as in `keep_top_p`, 1 for all.

    Returns:
      [..., V], -inf where nothing is drawn.
    """
    logits = logits / temperature
    logits = keep_top_k(logits, k) if k else logits
    return keep_top_p(logits, p) if p < 1 else logits


def drawn(logits: Array, keys: Array, step: Array) -> Array:
    """[B, W] ids from the softmax of logits [B, W, V], each by its own key [B, W] and the step."""
    keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, step)))(keys)
    return jax.vmap(jax.vmap(jax.random.categorical))(keys, logits).astype(jnp.int32)


def sample_keys(seed: int, row_ids: Array, width: int) -> Array:
    """[B, W] keys, which depend on the seed, the row's id and the number of the sample alone."""
    start, samples = jax.random.key(seed), jnp.arange(width)
    of_row = jax.vmap(lambda row: jax.random.fold_in(start, row))
    return jax.vmap(lambda key: jax.vmap(lambda n: jax.random.fold_in(key, n))(samples))(of_row(row_ids))


def most_probable(logits: Array, step: Array) -> Array:
    """[B, W] ids of the largest logits [B, W, V], the lowest id of equal ones."""
    return top_k(logits, 1)[1][..., 0]


def begin(empty: Array) -> dict:
    """The state before the first token.

    Args:
      empty: [B, W, T] of zeros.
    """
    none = empty[..., 0]
    return {"ids": empty, "tokens": none, "ended": none > 0, "log_probability": none.astype(jnp.float32),
            "ancestry": empty - 1}  # fmt: skip


def advance(state: dict, logits: Array, step: Array, eos: int, choose: Callable[[Array, Array], Array]) -> dict:
    """One token more of each sequence that has not ended.

    Args:
      state: from `begin` or before.
      logits: float32 [B, W, V], or [B, 1, V] where they are the same for all.
      step: which token it is.
      eos: id that ends a sequence.
      choose: (logits [B, W, V], step) -> ids [B, W].
    """
    ended, width = state["ended"], state["ids"].shape[1]
    logits = jnp.broadcast_to(logits, (len(ended), width, logits.shape[-1]))
    chosen = choose(logits, step)
    gain = jnp.take_along_axis(logits, chosen[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)
    tokens = jnp.where(ended, 0, chosen)
    own = jnp.broadcast_to(jnp.arange(width), ended.shape)
    return {
        "ids": at_step(state["ids"], tokens, step),
        "tokens": tokens,
        "ended": ended | (tokens == eos),
        "log_probability": state["log_probability"] + jnp.where(ended, 0.0, gain),
        "ancestry": at_step(state["ancestry"], own, step),
    }


def at_step(table: Array, column: Array, step: Array) -> Array:
    """[B, W, T] with [B, W] in one place of the last axis."""
    return jnp.where(jnp.arange(table.shape[-1]) == step, column[..., None], table)


def unfinished(state: dict) -> Array:
    """Whether any sequence goes on."""
    return ~jnp.all(state["ended"])


def result(state: dict) -> tuple[Array, Array, Array]:
    """Ids [B, W, T], scores [B, W] and log-probabilities [B, W], the most probable first; the last two are the same."""
    order = jnp.argsort(-state["log_probability"], axis=1, stable=True)
    scores = jnp.take_along_axis(state["log_probability"], order, axis=1)
    return jnp.take_along_axis(state["ids"], order[..., None], axis=1), scores, scores
