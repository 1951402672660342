"""Cross-entropy with z-loss and label smoothing, summed so that parts of a batch add up."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def cross_entropy(
    logits: Array, targets: Array, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> tuple[Array, Array]:
    """Loss of each token, in nats.

    With label smoothing e the target has probability 1 - e and each other token e / (V - 1), and the
    entropy of that distribution is subtracted, so that a perfect prediction has loss 0 (as in t5x).

    Args:
      logits: float32 [B, T, V].
      targets: int [B, T].
      z_loss: weight of log(Z)^2, which keeps the softmax normaliser near 1 (T5 uses 1e-4).
      label_smoothing: e above.

    Returns:
      The loss [B, T] with the z-loss included, and the z-loss alone [B, T].
    """
    (loss, z, _), _ = _forward(logits, targets, z_loss, label_smoothing)
    return loss, z


def _smoothing(vocab: int, label_smoothing: float) -> tuple[float, float, float]:
    """Probability of the target, of each other token, and the entropy of the two."""
    if label_smoothing == 0.0:
        return 1.0, 0.0, 0.0
    on, off = 1.0 - label_smoothing, label_smoothing / (vocab - 1)
    entropy = -(on * jnp.log(on) + (vocab - 1) * off * jnp.log(off))
    return on, off, entropy


def _is_target(logits: Array, targets: Array) -> Array:
    # A comparison and not a gather: it needs no communication when the vocabulary is sharded.
    return jax.lax.broadcasted_iota(targets.dtype, (1, 1, logits.shape[-1]), 2) == targets[..., None]


def _forward(logits, targets, z_loss, label_smoothing):
    on, off, entropy = _smoothing(logits.shape[-1], label_smoothing)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    at_target = jnp.sum(jnp.where(_is_target(logits, targets), logits, 0.0), axis=-1)
    loss = log_z - (on - off) * at_target - entropy
    if off:
        loss = loss - off * jnp.sum(logits, axis=-1)
    z = z_loss * jnp.square(log_z)
    return (loss + z, z, log_z), (logits, targets, log_z)


def _vjp_forward(logits, targets, z_loss, label_smoothing):
    (loss, z, _), residuals = _forward(logits, targets, z_loss, label_smoothing)
    return (loss, z), residuals


def _vjp_backward(z_loss, label_smoothing, residuals, cotangents):
    logits, targets, log_z = residuals
    on, off, _ = _smoothing(logits.shape[-1], label_smoothing)
    d_loss, d_z = cotangents
    d_log_z = d_loss + 2 * z_loss * log_z * (d_loss + d_z)
    softmax = jnp.exp(logits - log_z[..., None])
    soft_target = jnp.where(_is_target(logits, targets), on, off)
    return d_log_z[..., None] * softmax - d_loss[..., None] * soft_target, None


cross_entropy.defvjp(_vjp_forward, _vjp_backward)


def batch_loss(
    graphdef: nnx.GraphDef,
    params: dict,
    batch: dict[str, Array],
    key: Array | None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Array, dict[str, Array]]:
    """Summed loss of a batch and the sums that its metrics are made of.

    Args:
      graphdef: from `network.split`.
      params: the parameters.
      batch: `encoder_input_tokens` [B, S], `decoder_input_tokens`, `decoder_target_tokens`,
        `decoder_loss_weights` [B, T], and segment ids where packed.
      key: PRNG key for dropout, or None.
      z_loss, label_smoothing: see `cross_entropy`.

    Returns:
      The sum over target tokens of loss times weight (nats, z-loss included), and a dict of float32
      scalars: `loss` (the same without the z-loss), `z_loss`, `correct` and `weight`.
    """
    logits = nnx.merge(graphdef, params)(batch, key)
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"].astype(jnp.float32)
    with jax.named_scope("loss"):
        loss, z = cross_entropy(logits, targets, z_loss, label_smoothing)
        total, z = jnp.sum(loss * weights), jnp.sum(z * weights)
        correct = jnp.sum((jnp.argmax(logits, axis=-1) == targets) * weights)
    return total, {"loss": total - z, "z_loss": z, "correct": correct, "weight": jnp.sum(weights)}
