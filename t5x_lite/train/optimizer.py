"""Optimizers: optax transformations without their learning rate, mapped over stacked layers.

The step multiplies updates by the learning rate of its own step count, so that a
fine-tuned checkpoint goes on with the schedule where pretraining stopped.
"""

import jax
import optax


def adafactor(
    decay_rate: float = 0.8,
    clipping_threshold: float = 1.0,
    min_dim_size_to_factor: int = 128,
    epsilon: float = 1e-30,
    scale_floor: float = 1e-3,
) -> optax.GradientTransformation:
    """Adafactor as T5 trains with it (Shazeer and Stern 2018; T5 paper, section 3.1.2).

    No first moment; second-moment decay 1 - (t + 1)^-decay_rate; the update's RMS is clipped; its scale
    is relative to that of the parameter.

    Args:
      decay_rate: see above.
      clipping_threshold: largest RMS of an update.
      min_dim_size_to_factor: a matrix keeps row and column means when both sides are this large.
      epsilon: added to squared gradients.
      scale_floor: least RMS that a parameter counts as having.
    """
    return optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor, epsilon=epsilon
        ),
        optax.clip_by_block_rms(clipping_threshold),
        optax.scale_by_param_block_rms(scale_floor),
    )


def adamw_rms(
    b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-6, weight_decay: float = 0.0, scale_floor: float = 1e-3
) -> optax.GradientTransformation:
    """AdamW whose updates are scaled by the RMS of the parameter (nanoT5's AdamWScale).

    Plain AdamW diverges on T5, whose parameters differ in scale by design.

    Args:
      b1, b2: decay of the first and second moment.
      epsilon: added to the root of the second moment.
      weight_decay: multiple of the parameter added to the scaled update.
      scale_floor: least RMS that a parameter counts as having.
    """
    return optax.chain(
        optax.scale_by_adam(b1, b2, epsilon),
        optax.scale_by_param_block_rms(scale_floor),
        optax.add_decayed_weights(weight_decay),
    )


def over_layers(tx: optax.GradientTransformation, axes: dict) -> optax.GradientTransformation:
    """`tx` as if every layer of a stack were parameters of its own.

    Factoring, clipping and parameter scales are those of one layer, not of the stack.

    Args:
      tx: the transformation of separate parameters.
      axes: tree of logical axes; a leading `layers` marks a stacked parameter. None where one is not trained.

    Returns:
      A transformation of the stacked tree. Its state is a dict: one entry for each stack, with a leading
      layers dimension, and `other`.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(axes, is_leaf=lambda x: isinstance(x, tuple))
    names = [".".join(k.key for k in path) for path, _ in flat]
    groups = [name.split(".layers.")[0] if a[:1] == ("layers",) else "other" for name, (_, a) in zip(names, flat)]

    def split(tree) -> dict[str, dict]:
        parts: dict[str, dict] = {}
        for name, group, leaf in zip(names, groups, structure.flatten_up_to(tree)):
            parts.setdefault(group, {})[name] = leaf
        return parts

    def join(parts: dict[str, dict]):
        return structure.unflatten([parts[group][name] for name, group in zip(names, groups)])

    def init(params):
        return {g: tx.init(p) if g == "other" else jax.vmap(tx.init)(p) for g, p in split(params).items()}

    def update(updates, state, params=None):
        updates, params = split(updates), split(params)
        new_updates, new_state = {}, {}
        for group, part in updates.items():
            apply = tx.update if group == "other" else jax.vmap(tx.update)
            new_updates[group], new_state[group] = apply(part, state[group], params[group])
        return join(new_updates), new_state

    return optax.GradientTransformation(init, update)
