"""One optimizer step: gradients of a batch in microbatches, then the update unless something is not finite."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from t5x_lite.train import trainable

Array = jax.Array
Batch = dict[str, Array]
# (params, batch, key) -> (summed loss, sums that metrics are made of, `weight` among them)
LossFn = Callable[[dict, Batch, Array], tuple[Array, dict[str, Array]]]


def initial_state(params: dict, tx: optax.GradientTransformation, trained: dict) -> dict:
    """The training state, a plain nested dict: step, parameters, optimizer state, and skipped steps.

    Args:
      params: the parameters.
      tx: the optimizer of those that are trained.
      trained: True or False for each parameter.
    """
    zero = jnp.zeros((), jnp.int32)
    return {
        "step": zero,
        "params": params,
        "opt_state": tx.init(trainable.only(trained, params)),
        "nonfinite_steps": zero,
        "nonfinite_in_a_row": zero,
    }


def accumulate(loss_fn: LossFn, params: dict, batch: Batch, key: Array, microbatches: int, without_sums: dict):
    """Gradient of the summed loss and summed metrics, over `microbatches` equal parts of the batch.

    Rows are dealt out so that every device keeps its own: part m holds rows m, m + microbatches, ... Devices whose
    shares of a weight are the same each add up their own rows' gradients over all parts, and then, once, one another's.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if microbatches == 1:
        (_, sums), grads = grad_fn(params, batch, key)
        return grads, sums

    def deal(x):
        spec = jax.typeof(x).sharding.spec
        shape = (x.shape[0] // microbatches, microbatches, *x.shape[1:])
        dealt = jnp.reshape(x, shape, out_sharding=PartitionSpec(spec[0], None, *spec[1:]))
        return jnp.swapaxes(dealt, 0, 1)

    def one(total, inputs):
        part, index = inputs
        (_, sums), grads = grad_fn(params, part, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, (grads, sums)), None

    specs = jax.tree.map(lambda p: jax.typeof(p).sharding.spec, params)
    params = jax.tree.map(jax.sharding.reshard, params, without_sums)
    parts = jax.tree.map(deal, batch)
    shapes = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], parts), key)
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype, out_sharding=s.sharding.spec if s.sharding else None),
        (shapes[1], shapes[0][1]),
    )
    (grads, sums), _ = jax.lax.scan(one, zeros, (parts, jnp.arange(microbatches)))
    return jax.tree.map(jax.sharding.reshard, grads, specs), sums


def make_train_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    learning_rate: Callable[[Array], Array],
    seed: int,
    microbatches: int,
    normalizer: float | None,
    trained: dict,
    without_sums: dict,
) -> Callable[[dict, Batch], tuple[dict, dict[str, Array]]]:
    """The pure function (state, batch) -> (state, metrics), to be jitted with the state donated.

    A step whose loss, gradient or update is not finite leaves parameters and optimizer state as they are; it
    counts as a step of data and of the schedule.

    Args:
      loss_fn: summed loss of a batch and its metric sums.
      tx: optimizer without its learning rate.
      learning_rate: of the state's step.
      seed: of dropout; each step's key is fold_in(seed, step).
      microbatches: parts of the batch computed one after the other.
      normalizer: divisor of the summed loss; None: the number of target tokens of the batch.
      trained: True or False for each parameter; the others stay as they are, bit for bit.
      without_sums: specs of the parameters, `reduced` over the mesh axes that gradients are summed over only after the
        last microbatch.
    """

    def train_step(state: dict, batch: Batch) -> tuple[dict, dict[str, Array]]:
        step = state["step"]
        params, frozen = trainable.only(trained, state["params"]), trainable.rest(trained, state["params"])

        def loss_of(params, batch, key):
            return loss_fn(trainable.joined(params, frozen), batch, key)

        key = jax.random.fold_in(jax.random.key(seed), step)
        grads, sums = accumulate(loss_of, params, batch, key, microbatches, trainable.only(trained, without_sums))
        divisor = jnp.maximum(sums["weight"], 1.0) if normalizer is None else jnp.float32(normalizer)
        grads = jax.tree.map(lambda g: g / divisor, grads)
        grad_norm = optax.tree.norm(grads)
        rate = learning_rate(step)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state["opt_state"], params)
            updates = jax.tree.map(lambda u: -rate * u, updates)
            update_norm = optax.tree.norm(updates)
            finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)
            new_params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                (optax.apply_updates(params, updates), opt_state),
                (params, state["opt_state"]),
            )
        new_state = {
            "step": step + 1,
            "params": trainable.joined(new_params, frozen),
            "opt_state": opt_state,
            "nonfinite_steps": state["nonfinite_steps"] + ~finite,
            "nonfinite_in_a_row": jnp.where(finite, 0, state["nonfinite_in_a_row"] + 1),
        }
        metrics = {
            **sums,
            "grad_norm": grad_norm,
            "update_norm": jnp.where(finite, update_norm, 0.0),
            "learning_rate": rate,
            "finite": finite,
            "nonfinite_in_a_row": new_state["nonfinite_in_a_row"],
            "nonfinite_steps": new_state["nonfinite_steps"],
        }
        return new_state, metrics

    return train_step
