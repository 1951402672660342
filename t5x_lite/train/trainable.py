"""Which parameters are trained: those whose path one of a few patterns is found in.

A tree of parameters has `None` in place of those that are left out, which JAX takes for an empty part of a tree: no
gradient is computed for them and no optimizer state is kept.
"""

import re
from collections.abc import Sequence

import jax

from t5x_lite.errors import UserError


def matching(axes: dict, patterns: Sequence[str] | None) -> dict:
    """True or False for each parameter.

    Args:
      axes: tree of the parameters' logical axes.
      patterns: regular expressions, searched in paths such as decoder/layers/mlp/wo/kernel; None: all are trained.

    Returns:
      The same tree with booleans.

    Raises:
      UserError: a pattern is found in no path.
    """
    found = dict.fromkeys(patterns or (), 0)
    paths = []

    def one(path, _):
        name = "/".join(key.key for key in path)
        paths.append(name)
        hits = [pattern for pattern in found if re.search(pattern, name)]
        for pattern in hits:
            found[pattern] += 1
        return patterns is None or bool(hits)

    tree = jax.tree_util.tree_map_with_path(one, axes, is_leaf=lambda x: isinstance(x, tuple))
    for pattern, count in found.items():
        if not count:
            raise UserError(
                f"TRAINABLE has {pattern!r}",
                f"it is found in none of the {len(paths)} parameters, such as {paths[-1]}",
                "correct --gin.TRAINABLE; train --dry_run lists the parameters",
            )
    return tree


def only(trained: dict, tree: dict) -> dict:
    """The tree with `None` in place of what is not trained."""
    return jax.tree.map(lambda is_trained, leaf: leaf if is_trained else None, trained, tree)


def rest(trained: dict, tree: dict) -> dict:
    """The tree with `None` in place of what is trained."""
    return jax.tree.map(lambda is_trained, leaf: None if is_trained else leaf, trained, tree)


def joined(part: dict, other: dict) -> dict:
    """The whole tree of `only` and `rest`."""
    return jax.tree.map(lambda a, b: b if a is None else a, part, other, is_leaf=lambda x: x is None)
